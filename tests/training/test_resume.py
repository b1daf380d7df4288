"""A run killed in the middle of preparing and of training ends in the weights of an undisturbed run."""

import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import yaml
from safetensors.torch import load_file

from leftover.cli import main
from leftover.store.checkpoints import last_whole_checkpoint
from tests.conftest import scored_rows
from tests.forked import forked
from tests.store.test_checkpoints import write_checkpoint

STEPS = 40


def start(recipe: Path) -> ForkProcess:
    return forked(lambda: main(["train", str(recipe)]), recipe.with_suffix(".log"))


def said(recipe: Path) -> str:
    return recipe.with_suffix(".log").read_text("utf-8")


def finish(recipe: Path) -> None:
    process = start(recipe)
    process.join(timeout=200)
    assert process.exitcode == 0, said(recipe)


def kill_when(recipe: Path, happened: Callable[[], bool]) -> None:
    process, deadline = start(recipe), time.monotonic() + 120
    while not happened():
        assert process.is_alive(), said(recipe)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()


def weights(folder: Path) -> dict:
    return load_file(folder / "run/policies/a_lol_seq/seed-0/model.safetensors")


def test_killed_while_preparing_and_while_training_gives_the_undisturbed_weights(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    recipes = {}
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
        content = tiny_recipe(tmp_path / name, rows=scored_rows(80), train=settings)
        recipes[name] = tmp_path / name / "recipe.yaml"
        recipes[name].write_text(yaml.safe_dump(content))
    finish(recipes["undisturbed"])
    run = tmp_path / "killed/run"
    kill_when(recipes["killed"], lambda: (run / "reference/checkpoints").is_dir())
    assert not (run / "table/value").exists()
    checkpoints = run / "policies/a_lol_seq/seed-0/checkpoints"
    kill_when(recipes["killed"], lambda: last_whole_checkpoint(checkpoints) is not None)
    assert not (run / "policies/a_lol_seq/seed-0/model.safetensors").exists()
    before = len(said(recipes["killed"]))
    finish(recipes["killed"])
    last = said(recipes["killed"])[before:]
    assert "kept from before" in last and "continues at checkpoint-" in last
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "undisturbed")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    files = [tmp_path / name / "run/policies/a_lol_seq/seed-0/evaluations.jsonl" for name in recipes]
    assert files[0].read_text() == files[1].read_text() != ""


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10)
    (write_checkpoint(tmp_path, 20) / "trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-30").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
