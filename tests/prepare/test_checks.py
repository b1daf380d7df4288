"""What policies ask of their rows is refused with the key and the remedy, before the reference is fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover import pipeline
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from tests.conftest import scored_rows


def refusal(content: dict[str, Any]) -> str:
    """The message that refuses to prepare a recipe."""
    run = open_run(make_recipe(content))
    with pytest.raises(UserError) as refused:
        pipeline.prepare(run)
    assert not (run.folder / "reference").exists(), "before the reference is fitted"
    return str(refused.value)


def pairs(num_prompts: int) -> list[dict[str, Any]]:
    """Pairs of the grammar without scores."""
    rows = scored_rows(num_prompts)
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": rows[i - 1]["completion"]}
        for i, row in enumerate(rows)
    ]


def chosen_only(folder: Path, tiny_recipe: Callable, rows: list[dict[str, Any]], objective: str) -> dict[str, Any]:
    return tiny_recipe(
        folder,
        rows=rows,
        data={"train_on": "chosen"},
        reward={"functions": [{"type": "column"}]},
        policies={"mine": {"objective": objective}},
    )


@pytest.mark.parametrize("objective", ["a_lol", "a_lol_seq"])
def test_chosen_completions_without_scores_have_equal_rewards_and_the_key_is_named(
    objective: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    message = refusal(chosen_only(tmp_path, tiny_recipe, pairs(40), objective))
    assert "'mine'" in message and "equal (1)" in message
    assert "data.train_on: chosen" in message
    for remedy in ("data.train_on: all", "chosen_reward", "reward.functions"):
        assert remedy in message, remedy


@pytest.mark.parametrize("objective", ["a_lol_seq", "nll"])
def test_rows_of_which_none_is_chosen_are_refused_by_the_key(
    objective: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    message = refusal(chosen_only(tmp_path, tiny_recipe, scored_rows(40), objective))
    assert "data.train_on: chosen" in message and "is_chosen" in message
    assert "data.train_on: all" in message


def test_equal_rewards_are_refused_with_a_remedy(tmp_path: Path, tiny_recipe: Callable) -> None:
    rows = [row | {"reward": 0.5} for row in scored_rows(40)]
    message = refusal(tiny_recipe(tmp_path, rows=rows, reward={"functions": [{"type": "column"}]}))
    assert "equal (0.5)" in message and "reward.functions" in message
