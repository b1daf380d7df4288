"""Code of a run's folder runs only where a person asked for it; a dry run runs none at all."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from leftover import cli
from leftover.errors import UserError
from leftover.models.load import load_model
from leftover.publish.export import export_policy
from leftover.recipe.files import load_recipe, make_recipe
from leftover.runs.run import Run

EVIL = """
from pathlib import Path
Path(__file__).with_name("FIRED").touch()
def score(prompts, completions):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_run: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, whose recipe names a function in a file that came with it."""
    tiny_run(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    monkeypatch.setattr("leftover.trust._allowed", False)
    change(tmp_path / "run", reward={"functions": [{"type": "python", "function": "evil:score"}]})
    return tmp_path / "run"


def change(folder: Path, **sections: Any) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, section in sections.items():
        recipe[name] |= section
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def status(*words: str) -> int:
    try:
        cli.main(list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def fired(folder: Path) -> bool:
    return (folder.parent / "FIRED").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["run"], ["prepare"], ["train"], ["evaluate"], ["compare"],
        ["generate", "--output", "rows.jsonl", "--n", "1", "--max-prompts", "1"],
    ],
)  # fmt: skip
def test_a_folders_own_functions_do_not_run(words: list[str], folder: Path, capsys: Any) -> None:
    assert status(words[0], str(folder), *words[1:]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the function evil:score would run code that this folder names: add --allow-code" in said
    assert not fired(folder)


@pytest.mark.parametrize("verb", ["inspect", "report", "check", "export"])
def test_what_only_reads_runs_nothing_and_needs_no_leave(verb: str, folder: Path) -> None:
    assert status(verb, str(folder)) == 0
    assert not fired(folder)


def test_with_leave_they_run(folder: Path) -> None:
    words = [
        "generate",
        str(folder),
        "--output",
        "rows.jsonl",
        "--n",
        "1",
        "--max-prompts",
        "1",
        "--unfinished",
        "keep",
    ]
    assert status("--allow-code", *words) == 0 and fired(folder)
    assert status(*words, "--overwrite") == 2, "for one command alone"


def test_functions_that_stand_in_for_a_column_or_judge_are_found(folder: Path) -> None:
    mine = [{"type": "column", "new_completions": {"type": "python", "function": "evil:score"}}]
    change(folder, reward={"functions": mine})
    with pytest.raises(UserError, match="evil:score"):
        _ = Run(load_recipe(folder)).reward
    change(folder, reward={"functions": [{"type": "column"}]}, evaluate={"judges": mine})
    with pytest.raises(UserError, match="evil:score"):
        _ = Run(load_recipe(folder)).judges
    assert not fired(folder)


def test_a_folders_models_run_no_code_of_their_own(folder: Path) -> None:
    policy = folder / "policies/a_lol_seq/seed-0"
    change(folder, model={"trust_remote_code": True})
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(
        json.dumps(config | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    (policy / "evil.py").write_text(EVIL)
    with pytest.raises(UserError):
        export_policy(folder)
    assert not fired(folder) and not (policy / "FIRED").exists()


def test_a_dry_run_imports_no_function_and_still_says_what_is_missing(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (tmp_path / "evil.py").write_text(EVIL)
    content = tiny_recipe(tmp_path, reward={"functions": [{"type": "python", "function": "evil:score"}]})
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    assert status("run", "recipe.yaml", "--dry-run") == 0
    assert not (tmp_path / "FIRED").exists()
    for name, expected in (("evil:scores", "evil.py has no 'scores'"), ("evul:score", "there is no module evul")):
        functions = json.dumps([{"type": "python", "function": name}])
        assert status("run", "recipe.yaml", "--dry-run", "--set", f"reward.functions={functions}") == 2
        assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "FIRED").exists()
    assert Run(make_recipe(content)).reward(["a"], ["bc"]) == [2.0], "the user's own recipe runs"
    assert (tmp_path / "FIRED").exists()


def test_weights_in_a_pickle_are_not_opened(
    tiny_llama_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama_path, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(weights, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match=r"are a pickle \(pytorch_model\.bin\).*save_pretrained.*--allow-code"):
        load_model(str(tmp_path / "model"))
    monkeypatch.setattr("leftover.trust._allowed", True)
    assert load_model(str(tmp_path / "model")).get_input_embeddings().weight.isfinite().all()
