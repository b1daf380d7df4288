"""Judges that are not independent, scorers that know nothing, and what a folder keeps of an earlier recipe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover.pipeline import run
from leftover.recipe.data_section import DataSection
from leftover.recipe.files import make_recipe
from leftover.rewards.independence import dependent_judges, facts_text, fitted_rewards, idle_scorers
from leftover.runs.claim import open_run
from tests.conftest import scored_rows


def judged(
    judge: dict[str, Any], reward_part: tuple = (0.6, 0.8), earlier: tuple = (), path: str = "rows.jsonl"
) -> list:
    def linear(part: Any) -> dict[str, Any]:
        return {"type": "linear", "fit": {"path": "rows.jsonl", "part": list(part)}}

    content = {
        "name": "x",
        "output_dir": "x",
        "model": {"path": "x"},
        "data": {"path": path, "part": [0.0, 0.6]},
        "reward": {"functions": [linear(reward_part) | {"name": "fitted", "weight": 2.0}]},
        "evaluate": {"judges": [judge if "type" in judge else linear(judge["part"]) | {"name": "held_out"}]},
    }
    return list(dependent_judges(make_recipe(content), earlier))


def test_that_a_reward_was_fitted_is_told_with_what_it_knows() -> None:
    spearman = {"value": 0.58, "low": 0.25, "high": 0.89}
    facts = {"reward stars": {"held_out_rows": 30, "held_out_spearman": spearman}, "judge other": {}}
    [said] = fitted_rewards(facts)
    assert "fitted on scores, reward stars (" in said and "0.58" in said and "on 30 held-out rows" in said


def test_a_judge_of_another_part_is_independent() -> None:
    assert judged({"part": (0.8, 1.0)}) == []
    assert judged({"type": "text", "function": "length"}) == []


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"part": (0.6, 0.8)}, "is a reward that the policies were trained on"),
        ({"part": (0.7, 1.0)}, "fitted on rows of the reward"),
        ({"part": (0.5, 1.0)}, "fitted on rows of the policies and the reward"),
        ({"type": "linear", "fit": {"path": "rows.jsonl"}}, "fitted on rows of the policies and the reward"),
        ({"type": "linear", "fit": "rows"}, "the policies' own rows"),
    ],
)
def test_a_judge_that_shares_rows_or_is_the_reward_is_told(judge: dict[str, Any], said: str) -> None:
    (found,) = judged(judge)
    assert said in found


def test_rows_of_earlier_runs_and_other_spellings_of_a_path_are_shared_rows() -> None:
    part = {"part": (0.5, 0.6)}
    before = (DataSection(path="rows.jsonl", part=(0.0, 0.6)),)
    assert judged(part, path="samples.jsonl") == []
    for found in (judged(part, path="samples.jsonl", earlier=before), judged(part, path="./rows.jsonl")):
        assert found == ["judge 'held_out' is fitted on rows of the policies (set another `part`)"]


def test_a_scorer_whose_interval_holds_chance_is_told() -> None:
    facts = {
        "reward good": {"held_out_auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
        "reward idle": {"held_out_auc": {"value": 0.55, "low": 0.48, "high": 0.6}},
        "judge idle": {"held_out_spearman": {"value": 0.04, "low": -0.2, "high": 0.27}},
        "judge unknown": {"held_out_spearman": {"value": None, "low": None, "high": None}},
    }
    found = list(idle_scorers(facts))
    assert [said.split(" may")[0] for said in found] == ["reward idle", "judge idle"]
    assert facts_text({"rows": 3} | facts["reward good"]) == "rows 3, held out auc 0.800 [0.700, 0.900]"


def test_the_report_says_what_a_judge_and_a_scorer_are_worth(tmp_path: Path, tiny_recipe: Callable) -> None:
    rng = np.random.default_rng(0)
    rows = [row | {"reward": float(rng.normal())} for row in scored_rows(60)]
    judge = {"type": "linear", "name": "own", "fit": "rows"}
    column = {"type": "column", "name": "recorded", "new_completions": {"type": "linear", "fit": "rows"}}
    recipe = tiny_recipe(tmp_path, rows=rows, reward={"functions": [column]})
    recipe["evaluate"] |= {"judges": [judge]}
    results = run(make_recipe(recipe))
    report = (tmp_path / "run/report.md").read_text()
    assert "judge 'own' is fitted on the policies' own rows" in report
    assert any("reward recorded may be no better than chance" in caveat for caveat in results["scoring_caveats"])


def test_values_of_an_earlier_recipe_of_the_folder_are_not_joined_to_other_rows(
    tmp_path: Path, tiny_recipe: Callable, tiny_run: Callable
) -> None:
    assert open_run(make_recipe(tiny_run(tmp_path))).table.has("value")
    other = tiny_recipe(tmp_path, rows=scored_rows(50, seed=1), policies={"nll": {"objective": "nll"}})
    results = run(make_recipe(other))
    assert results["prepare"]["value"] is None and results["prepare"]["leftover"] is None
    assert "## The leftover" not in (tmp_path / "run/report.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/policies/nll/seed-0/metrics.jsonl").read_text().splitlines()]
    assert not any("value/r2" in line or "advantage/mean" in line for line in lines)
