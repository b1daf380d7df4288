"""Every example runs, with few steps and on a small model in place of the one that it names."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leftover.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.rglob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.rglob("*.ipynb"))
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What an example leaves behind that shows that it did its work.
MADE = {
    "ten_lines": "runs/ten_lines/policy/model.safetensors",
    "custom_objective": "runs/custom_objective/policy/model.safetensors",
    "bandit": "runs/bandit.png",
    "first_look": "runs/first_look/policy/model.safetensors",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of an example, with its rows; it may register objectives."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example"])
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    before = dict(OBJECTIVES._known)
    yield tmp_path
    OBJECTIVES._known = before


def small(text: str, model: str) -> str:
    text = text.replace(MODEL, model)
    return re.sub(r"max_steps=\d+", "max_steps=2, use_cpu=True, max_prompt_length=48, disable_tqdm=True", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script: Path, folder: Path, tiny_llama_path: str, capsys: pytest.CaptureFixture) -> None:
    copy = folder / script.relative_to(ROOT)
    copy.write_text(small(copy.read_text("utf-8"), tiny_llama_path), encoding="utf-8")
    runpy.run_path(str(copy), run_name="__main__")
    said = capsys.readouterr().out
    if script.stem in MADE:
        assert (folder / MADE[script.stem]).stat().st_size > 1000
    else:
        assert re.search(r"\d", said.splitlines()[-1])  # the measure that it ends with


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook: Path, folder: Path, tiny_llama_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "examples")
    content = json.loads(notebook.read_text("utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert content["nbformat"] == 4 and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    exec(small("\n\n".join("".join(cell["source"]) for cell in cells), tiny_llama_path), {"__name__": "__main__"})
    assert Path(MADE[notebook.stem]).stat().st_size > 1000


def test_the_bandit_ends_where_its_optimum_is_written_down() -> None:
    bandit = runpy.run_path(str(EXAMPLES / "bandit.py"))
    for method in bandit["METHODS"]:
        assert bandit["train"](method, 400)[-1] == pytest.approx(bandit["optimum"](method), abs=0.01)


def test_an_objective_of_an_installed_package_is_compared_in_processes(
    folder: Path, tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    """The example is built and installed as pip does, and `compare --jobs 2` trains by it."""
    site = folder / "site"
    built = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([sys.executable, *built, str(folder / "examples" / "custom_objective")], check=True)
    recipe = tiny_recipe(
        folder,
        policies={
            "above_bar": {"objective": "above_bar", "objective_settings": {"bar": 1.5}},
            "nll": {"objective": "nll"},
        },
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "leftover", "compare", "recipe.yaml", "--seeds", "1", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "run" / "policies" / "above_bar").is_dir()
    assert "above_bar" in done.stdout
