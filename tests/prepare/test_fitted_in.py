"""`reward.fitted_in`: a second run's rows on the scale of the first, whatever these rows are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover import pipeline
from leftover.demo.grammar import score_answers
from leftover.errors import UserError
from leftover.recipe.files import make_recipe
from leftover.runs.claim import open_run
from leftover.runs.names import REWARD_STATE
from leftover.runs.run import Run
from leftover.store.files import read_json
from leftover.store.table import column
from tests.conftest import scored_rows

LENGTH = {"type": "text", "function": "length", "normalise": "standardise"}
LINEAR = {"type": "linear", "fit": "rows", "name": "fitted"}
seen: list[str] = []


def counting(prompts: list[str], completions: list[str]) -> list[float]:
    """The grammar's score; remembers what it was asked."""
    seen.extend(completions)
    return score_answers(prompts, completions)


def scored(folder: Path, recipe: Callable, rows: list[dict], functions: list[dict], **reward: Any) -> Run:
    folder.mkdir(exist_ok=True)
    content = recipe(folder, rows=rows, reward={"functions": functions} | reward)
    run = open_run(make_recipe(content))
    try:
        pipeline.prepare(run, "score")
    finally:
        run.close()
    return run


def rewards(run: Run, name: str = "reward", block: str = "reward") -> np.ndarray:
    return column(run.table.open(block), name)


def test_state_and_fitted_scorers_are_those_of_the_other_run(tmp_path: Path, tiny_recipe: Callable) -> None:
    functions = [LENGTH, LINEAR | {"weight": 0.5}]
    first = scored(tmp_path / "a", tiny_recipe, scored_rows(60), functions)
    state = read_json(first.folder / REWARD_STATE)
    rows = scored_rows(60, seed=5)
    alone = scored(tmp_path / "b", tiny_recipe, rows, functions)
    taken = scored(tmp_path / "c", tiny_recipe, rows, functions, fitted_in=str(first.folder))
    # A third run takes it from the second, which has fitted nothing itself.
    third = scored(tmp_path / "d", tiny_recipe, rows, functions, fitted_in=str(taken.folder))
    assert read_json(taken.folder / REWARD_STATE) == state != read_json(alone.folder / REWARD_STATE)
    lengths = rewards(taken, "reward/length", "score-length")
    scorer = first.reward.components["fitted"]
    by_hand = scorer([row["prompt"] for row in rows], [row["completion"] for row in rows])
    fitted = state["components"]["length"]["transform"]
    expected = fitted["scale"] * lengths + fitted["offset"] + 0.5 * np.array(by_hand)
    np.testing.assert_allclose(rewards(taken), expected)
    np.testing.assert_array_equal(rewards(third), rewards(taken))
    assert not (taken.folder / "rewards").exists()
    assert taken.manifest.facts("reward fitted") == first.manifest.facts("reward fitted")


def test_rows_that_were_scored_there_are_not_scored_again(tmp_path: Path, tiny_recipe: Callable) -> None:
    functions = [{"type": "python", "function": f"{__name__}:counting", "name": "counted"}]
    rows = scored_rows(60)
    first = scored(tmp_path / "a", tiny_recipe, rows[:50], functions)
    seen.clear()
    second = scored(tmp_path / "b", tiny_recipe, rows, functions, fitted_in=str(first.folder))
    assert seen == [row["completion"] for row in rows[50:]]
    np.testing.assert_array_equal(rewards(second), [row["reward"] for row in rows])


def test_a_recorded_score_stays_and_the_stand_in_scores_new_rows(tmp_path: Path, tiny_recipe: Callable) -> None:
    functions = [{"type": "column", "new_completions": {"type": "linear", "fit": "rows"}}]
    rows = scored_rows(60)
    rows[0] = {name: value for name, value in rows[0].items() if name != "reward"}  # none there, and so none here
    first = scored(tmp_path / "a", tiny_recipe, rows, functions)
    new = [{"prompt": row["prompt"], "completion": row["completion"]} for row in scored_rows(3, seed=7)]
    second = scored(tmp_path / "b", tiny_recipe, rows + new, functions, fitted_in=str(first.folder))
    by_hand = first.reward.components["column"]([row["prompt"] for row in new], [row["completion"] for row in new])
    expected = [np.nan, *(row["reward"] for row in rows[1:]), *by_hand]
    np.testing.assert_allclose(rewards(second), expected)


@pytest.mark.parametrize(
    ("functions", "reward", "message"),
    [
        ([LENGTH, LINEAR | {"target": "pairs"}], {}, "target"),
        ([LENGTH, LINEAR | {"name": "other"}], {}, "reward other"),
        ([LENGTH | {"weight": 2.0}, LINEAR], {}, "weights.length"),
        ([LENGTH, LINEAR], {"transform": "sigmoid"}, "transform"),
    ],
)
def test_another_reward_is_refused(
    functions: list[dict], reward: dict, message: str, tmp_path: Path, tiny_recipe: Callable
) -> None:
    first = scored(tmp_path / "a", tiny_recipe, scored_rows(60), [LENGTH, LINEAR])
    with pytest.raises(UserError, match=f"fitted_in.*{message}.*leave fitted_in out"):
        scored(tmp_path / "b", tiny_recipe, scored_rows(60), functions, fitted_in=str(first.folder), **reward)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, tiny_recipe: Callable) -> None:
    with pytest.raises(UserError, match=r"reward.fitted_in: .*nowhere"):
        scored(tmp_path / "b", tiny_recipe, scored_rows(60), [LENGTH], fitted_in=str(tmp_path / "nowhere"))
