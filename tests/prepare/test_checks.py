"""What policies ask of their rows is refused with the key and the remedy, before the reference is fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leftover import pipeline
from leftover.commands.dry_run.estimate import estimate_run
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


@pytest.mark.parametrize("policies", [{"mine": {"objective": "nll"}}, {"mine": {"objective": "wbc"}}])
@pytest.mark.parametrize("absent", [True, False])
def test_scores_that_no_row_has_are_refused_with_their_column_whatever_the_policy(
    policies: dict[str, Any], absent: bool, tmp_path: Path, tiny_recipe: Callable
) -> None:
    changed = {"Rating" if absent else "other": 1.0, "reward": None}
    rows = [row | changed for row in scored_rows(40)]
    if absent:
        rows = [{name: value for name, value in row.items() if name != "reward"} for row in rows]
    content = tiny_recipe(tmp_path, rows=rows, policies=policies, reward={"functions": [{"type": "column"}]})
    for _ in range(2):  # as clearly when it is tried again
        message = refusal(content)
        assert "'reward'" in message and "data.columns.reward" in message and "reward.functions" in message
        assert ("did you mean 'Rating'" in message) is absent
    with pytest.raises(UserError, match=r"data\.columns\.reward"):
        estimate_run(make_recipe(content))


@pytest.mark.parametrize("objective", ["nll", "a_lol_seq"])
def test_a_function_that_scores_no_row_is_named(
    objective: str, tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_scores.py").write_text("def score(prompts, completions):\n    return [None] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    functions = [{"type": "python", "function": "no_scores:score", "name": "silent"}]
    policies = {"mine": {"objective": objective}}
    message = refusal(tiny_recipe(tmp_path, policies=policies, reward={"functions": functions}))
    assert "'silent'" in message and "None" in message and "column" not in message


def test_scores_of_different_rows_are_told_of_the_rule_for_missing_ones(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def a(prompts, completions):\n    return [None if len(c) % 2 else 1.0 for c in completions]\n"
    source += "def b(prompts, completions):\n    return [1.0 if len(c) % 2 else None for c in completions]\n"
    (tmp_path / "halves.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    functions = [{"type": "python", "function": f"halves:{name}"} for name in "ab"]
    assert "reward.missing" in refusal(tiny_recipe(tmp_path, reward={"functions": functions}))


def test_a_policy_is_told_with_its_objective(tmp_path: Path, tiny_recipe: Callable) -> None:
    rows = [row | {"reward": row["reward"] - 10} for row in scored_rows(40)]
    policies = {"mine": {"objective": "wbc"}}
    message = refusal(tiny_recipe(tmp_path, rows=rows, policies=policies, reward={"functions": [{"type": "column"}]}))
    assert "policy 'mine' (objective wbc)" in message
