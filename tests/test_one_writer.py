"""One writer a folder: while another process holds it, every command that writes there exits with 2 and names it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leftover.cli import main
from leftover.commands.judge.ask import VerdictStore
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.store.test_folders import another_process_holds

# Arguments, with the folder (or file) that is held in place of HELD.
COMMANDS = {
    "run": ["run", "recipe.yaml"],
    "prepare": ["prepare", "recipe.yaml", "--only", "rows"],
    "train": ["train", "HELD"],
    "compare": ["compare", "recipe.yaml", "--methods", "nll"],
    "report on a recipe": ["report", "recipe.yaml"],
    "inspect": ["inspect", "recipe.yaml"],
    "generate": ["generate", "nowhere", "--recipe", "recipe.yaml", "--output", "out.jsonl"],
    "export": ["export", "HELD"],
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_another_process_writes_is_left_alone(
    command: str, tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    open_run(make_recipe(recipe | {"seed": 1})).lock = None  # let go of, with what it wrote
    model = Path("run/policies/a_lol_seq/seed-0/config.json")
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    Path("run/manifest.json").write_text('{"tokenizer": {"key": {}, "complete": false}}')
    with another_process_holds(tmp_path / "run") as other:
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        message = refused([part.replace("HELD", "run") for part in COMMANDS[command]], capsys)
        assert f"process {other.pid} " in message and "run is being written" in message
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_so_are_fitted_rewards_demonstrations_generated_rows_and_verdicts(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path)
    held = tmp_path / "held"
    (held / "seed-0").mkdir(parents=True)
    for target, arguments in {
        held: ["fit-reward", "rows.jsonl", "--output", "held"],
        held / "seed-0": ["demo", "--output-dir", "held"],
        tmp_path / "out.jsonl": ["generate", recipe["model"]["path"], "rows.jsonl", "--output", "out.jsonl"],
    }.items():
        if target == held:
            (held / "seed-0").rmdir()
        with another_process_holds(target) as other:
            assert f"process {other.pid} " in refused(arguments, capsys)
        (held / "seed-0").mkdir(exist_ok=True)
    with another_process_holds(tmp_path / "verdicts.jsonl") as other, pytest.raises(UserError) as told:
        VerdictStore(tmp_path).__enter__()
    assert f"process {other.pid} " in str(told.value)


def test_a_run_gives_its_folder_back(tmp_path: Path, tiny_recipe: Callable) -> None:
    opened = open_run(make_recipe(tiny_recipe(tmp_path)))
    assert (tmp_path / "run/writer.lock").is_file()
    opened.close()
    opened.close()
    assert not (tmp_path / "run").exists(), "nothing was computed, and nothing is left"
