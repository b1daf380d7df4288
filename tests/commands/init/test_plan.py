"""What a recipe gets from the machine and from the numbers of its rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover.commands.init import run
from leftover.commands.init.limits import Limits, held_out_share, limits, rows_a_step, steps
from leftover.commands.init.machine import Machine, this_machine
from leftover.commands.init.text import yaml_with_comments
from leftover.recipe.files import load_yaml
from leftover.recipe.sections import Recipe
from tests.conftest import scored_rows, write_rows


def test_limits_let_all_but_the_longest_pass() -> None:
    prompts, completions = np.arange(1, 101), np.full(100, 20)
    # The 98 % quantile of 1 to 100 is 98.02; limits are multiples of 16.
    assert limits(prompts, completions, None) == Limits(112, 32, 0.0, 0.0)
    long = np.where(np.arange(100) == 3, 900, 10)
    assert limits(long, long, None) == Limits(16, 16, 0.01, 0.01)


def test_limits_fit_into_the_positions() -> None:
    lengths = np.full(10, 1000)
    found = limits(lengths, lengths, 512)
    assert (found.prompt, found.completion) == (256, 256) and found.longer_completions == 1.0
    found = limits(np.full(10, 100), lengths, 512)  # 112 for the prompt
    assert (found.prompt, found.completion) == (112, 400)


def test_few_rows_get_smaller_steps_and_larger_held_out_parts() -> None:
    assert [rows_a_step(rows) for rows in (10, 40, 64, 128, 10**6)] == [4, 4, 8, 16, 16]
    assert [held_out_share(families) for families in (20, 150, 10**6)] == [0.25, 0.2, 0.1]
    assert [steps(1600, 16, slow) for slow in (False, True)] == [200, 100]
    assert steps(10, 4, False) == 20 and steps(10**7, 16, False) == 1000


def test_values_that_stand_twice_are_aliases() -> None:
    fit = {"path": "a: b.csv", "part": [0, 1]}
    content = {"data": {"path": "a: b.csv", "n": 1}, "evaluate": {"judges": [{"fit": fit}]}}
    text = yaml_with_comments(content, {"data.path": "rows", "data.n": "x" * 200}, ["path"])
    assert load_yaml(text) == content
    assert "  path: &path 'a: b.csv'  # rows" in text and "fit: {path: *path, part: [0, 1]}" in text
    assert all(len(line) < 120 for line in text.splitlines() if not line.lstrip().startswith("#"))


@pytest.fixture
def recipe_on(tmp_path: Path, tiny_llama_path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`recipe_on(room)`: the recipe for a GPU of so many bytes, and what is said."""
    path = write_rows(tmp_path / "rows.jsonl", scored_rows(60))

    def make(room: float) -> tuple[Recipe, list[str]]:
        monkeypatch.setattr(run, "this_machine", lambda: Machine("a small GPU", True, round(room), False))
        written = run.make(path, tiny_llama_path, assume=True)
        return written.recipe, written.said

    return make


def test_batches_are_halved_until_they_fit(recipe_on: Any) -> None:
    recipe, _ = recipe_on(10e9)
    assert recipe.train["per_device_train_batch_size"] == 4 and "gradient_accumulation_steps" not in recipe.train
    # By the dry run a step of four rows takes 3.0 MB here, and writing 64 completions 5.3 MB.
    recipe, _ = recipe_on(4e6)
    assert recipe.train["per_device_train_batch_size"] == 4 and 4 <= recipe.evaluate.batch_size <= 32
    recipe, said = recipe_on(2.5e6)
    for fields in (recipe.train, recipe.reference.train):
        assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == 4
    assert recipe.train["per_device_train_batch_size"] < 4 and not any("takes about" in line for line in said)


def test_a_model_that_never_fits_gets_an_adapter_and_a_warning(recipe_on: Any) -> None:
    recipe, said = recipe_on(1)
    for fields in (recipe.train, recipe.reference.train):
        assert fields["per_device_train_batch_size"] == 1 and fields["gradient_accumulation_steps"] == 4
        assert fields["gradient_checkpointing"]
    assert recipe.model.lora is not None and recipe.train["learning_rate"] == 1e-4
    assert any("takes about" in line and "a small GPU" in line for line in said)


def test_this_machine_has_memory() -> None:
    machine = this_machine()
    assert machine.room > 2**28 and ("cores" in machine.name or machine.on_gpu)
