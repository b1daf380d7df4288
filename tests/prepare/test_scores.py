"""The score stage: sums of components, rows without a score, what a killed run keeps, rewards that learn."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import leftover.prepare.scores
from leftover import pipeline
from leftover.cli import main
from leftover.data.rows import text_hash
from leftover.errors import UserError
from leftover.prepare.scores import score_block
from leftover.recipe.files import load_recipe, make_recipe
from leftover.rewards import SumReward
from leftover.rewards.base import REWARDS
from leftover.rewards.facts import component_facts
from leftover.runs.claim import open_run
from leftover.runs.names import REWARD_STATE
from leftover.runs.run import Run
from leftover.store.files import read_json
from leftover.store.table import column, equals
from tests.conftest import scored_rows

PROMPTS = ["p"] * 4
LENGTH = {"type": "text", "function": "length"}
DIVERSITY = {"type": "text", "function": "ngram_diversity"}
ALL = np.ones(4, bool)


def summed(missing: str = "drop", **changes) -> SumReward:
    """length x 2, standardised, and diversity x 1, fitted on hand-made scores."""
    return SumReward([LENGTH | {"weight": 2.0, "normalise": "standardise"} | changes, DIVERSITY], missing=missing)


SCORES = {"length": np.array([1.0, 3.0, np.nan, 5.0]), "ngram_diversity": np.array([0.5, np.nan, np.nan, 1.0])}
# Of 1, 3, 5: mean 3, standard deviation sqrt(8/3).
Z = 2 / np.sqrt(8 / 3)


def test_a_component_is_normalised_by_the_training_rows_and_weighted():
    reward = summed()
    state = reward.fit(SCORES, ALL)
    assert state["components"]["length"]["transform"]["scale"] == pytest.approx(1 / np.sqrt(8 / 3))
    np.testing.assert_allclose(reward.total(SCORES), [-2 * Z + 0.5, np.nan, np.nan, 2 * Z + 1.0])
    assert reward.combine({"length": [4.0], "ngram_diversity": [0.25]}) == pytest.approx([Z + 0.25])


def test_only_training_rows_are_fitted_on():
    reward = summed()
    reward.fit({"length": np.array([1.0, 3.0, 5.0, 1e6]), "ngram_diversity": np.zeros(4)}, np.array([1, 1, 1, 0], bool))
    assert reward.total({"length": [5.0], "ngram_diversity": [0.0]}) == pytest.approx([2 * Z])


def test_imputing_counts_a_missing_component_with_its_training_mean():
    reward = summed("impute")
    reward.fit(SCORES, ALL)
    # The mean of standardised lengths is 0, that of the two diversities .75.
    np.testing.assert_allclose(reward.total(SCORES), [-2 * Z + 0.5, 0.75, 0.75, 2 * Z + 1.0], atol=1e-12)


def test_renormalising_scales_the_weights_that_are_left_to_the_same_sum():
    reward = summed("renormalise", weight=3.0)
    reward.fit(SCORES, ALL)
    # Row 1 has the length alone (weight 3 of 4), standardised to 0; row 2 has nothing.
    np.testing.assert_allclose(reward.total(SCORES), [-3 * Z + 0.5, 0.0, np.nan, 3 * Z + 1.0], atol=1e-12)
    only_diversity = {"length": [None], "ngram_diversity": [0.5]}
    assert reward.combine(only_diversity) == pytest.approx([0.5 * 4 / 1])


def test_a_new_completion_without_a_score_is_refused_where_nothing_stands_in_for_it():
    reward = summed()
    reward.fit(SCORES, ALL)
    with pytest.raises(UserError, match=r"no score for 1 of 2 new completions from length: .*reward\.missing"):
        reward.combine({"length": [None, 1.0], "ngram_diversity": [1.0, 1.0]})


def test_a_normalisation_that_needs_rows_is_refused_before_it_has_seen_any():
    with pytest.raises(UserError, match=r"'length' is normalised by standardise.* recipe"):
        summed()(PROMPTS, ["a"] * 4)
    assert SumReward([LENGTH | {"normalise": {"scale": 0.5, "offset": 1.0}}])(["p"], ["a b"]) == [2.0]


@pytest.mark.parametrize("faulty", ["zscore", {"scale": "x"}, {"factor": 2}, 3])
def test_a_faulty_normalisation_is_refused_by_name(faulty):
    with pytest.raises(UserError, match=r"functions\[0\]: normalise.*: Input should be"):
        SumReward([LENGTH | {"normalise": faulty}])


def test_the_facts_of_components_are_their_moments_correlation_and_share_of_the_variance():
    scores = {"length": np.array([0.0, 2.0, 4.0, 6.0]), "ngram_diversity": np.array([1.0, -1.0, 1.0, -1.0])}
    reward = SumReward([LENGTH | {"weight": 0.5}, DIVERSITY])
    reward.fit(scores, ALL)
    facts = component_facts(reward, scores, reward.total(scores))
    assert facts["components"]["length"]["mean"] == 3.0
    assert facts["components"]["length"]["sd"] == pytest.approx(np.sqrt(5))
    # Parts 0 1 2 3 and 1 -1 1 -1: covariance -.5, variances 1.25 and 1, so the sum's is 1.25.
    assert facts["correlation"]["length | ngram_diversity"] == pytest.approx(-0.5 / np.sqrt(1.25))
    shares = [of["share_of_variance"] for of in facts["components"].values()]
    assert shares == pytest.approx([(1.25 - 0.5) / 1.25, (1 - 0.5) / 1.25])


def test_a_component_that_dominates_the_sum_is_warned_of(tmp_path, tiny_recipe, caplog):
    functions = [LENGTH, DIVERSITY | {"weight": 0.001}]
    prepare(tiny_recipe(tmp_path, reward={"functions": functions}))
    assert "'length' makes up 100%" in caplog.text and "normalise: standardise" in caplog.text


@pytest.mark.parametrize("functions", [[LENGTH], [LENGTH, DIVERSITY]])
def test_scoring_ends_with_a_table_of_every_component(functions, tmp_path, tiny_recipe, caplog, capsys):
    caplog.set_level(logging.INFO, "leftover")
    prepare(tiny_recipe(tmp_path, reward={"functions": functions}))
    shown = capsys.readouterr().err
    assert "training rows" in shown and "mean" in shown
    assert all(function["function"] in shown for function in functions)
    assert ("Correlation" in shown) == ("variance" in shown) == (len(functions) > 1)


def prepare(content: dict, only: str = "score") -> Run:
    run = open_run(make_recipe(content))
    pipeline.prepare(run, only)
    return run


def test_every_component_has_a_column_of_its_own_and_another_function_leaves_it_alone(tmp_path, tiny_recipe, caplog):
    caplog.set_level(logging.INFO, "leftover")
    content = tiny_recipe(tmp_path, reward={"functions": [LENGTH]})
    prepare(content)
    caplog.clear()
    content["reward"] = {"functions": [LENGTH | {"weight": 3.0}, DIVERSITY]}
    run = prepare(content)
    assert "Scores by length: kept from before" in caplog.text
    table = run.table.open(*[score_block(n) for n in run.reward.components], "reward")
    expected = 3.0 * column(table, "reward/length") + column(table, "reward/ngram_diversity")
    np.testing.assert_allclose(column(table, "reward"), expected)


def test_a_run_that_is_killed_while_scoring_scores_no_batch_twice(tmp_path, tiny_recipe, monkeypatch):
    monkeypatch.setattr(leftover.prepare.scores, "BATCH_ROWS", 8)
    content = tiny_recipe(tmp_path, reward={"functions": [LENGTH]})
    rows = len(scored_rows(60))
    run = open_run(make_recipe(content))
    calls: list[int] = []
    whole = run.reward.components["length"].__class__.__call__

    def failing(self, prompts, completions):
        calls.append(len(completions))
        if len(calls) in (4, 6):
            raise RuntimeError("killed")
        return whole(self, prompts, completions)

    monkeypatch.setattr(run.reward.components["length"].__class__, "__call__", failing)
    with pytest.raises(RuntimeError):
        pipeline.prepare(run, "score")
    scratch = tmp_path / "run/table/score-length/00000.scratch"
    scratch.write_bytes(scratch.read_bytes() + b"\0\0\0")  # a write that was cut short
    with pytest.raises(RuntimeError):
        prepare(content)
    run = prepare(content)
    assert sum(calls) - 2 * 8 == rows  # the batches that failed were asked for twice, and no other
    assert not scratch.exists()
    texts = run.table.open("rows")["completion"][:]
    assert column(run.table.open("score-length"), "reward/length").tolist() == [len(t.split()) for t in texts]


def test_rows_that_a_function_has_no_score_for_have_no_reward_or_the_mean(tmp_path, tiny_recipe, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "def score(prompts, completions):\n    return [None if len(c) % 2 else 1.0 * len(c) for c in completions]\n"
    )
    (tmp_path / "half_scored.py").write_text(source)
    functions = [{"type": "python", "function": "half_scored:score", "name": "half"}]
    content = tiny_recipe(tmp_path, reward={"functions": functions})
    run = prepare(content)
    odd = np.array([len(c) % 2 == 1 for c in run.table.open("rows")["completion"]])
    assert odd.any() and not odd.all()
    np.testing.assert_array_equal(np.isnan(column(run.table.open("reward"), "reward")), odd)
    content["reward"]["missing"] = "impute"
    run = prepare(content)
    table = run.table.open("reward", "score-half", "split")
    train = equals(table, "split", "train")
    mean = np.nanmean(column(table, "reward/half")[train])
    np.testing.assert_allclose(column(table, "reward")[odd], mean)
    assert read_json(tmp_path / "run" / REWARD_STATE)["components"]["half"]["mean"] == pytest.approx(mean)


class Learner:
    """Learns the number of training rows, and gives it as every score."""

    reads_rows = True
    fits = 0

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def fit(self, folder: Path, rows) -> dict:
        assert not list(folder.iterdir())
        type(self).fits += 1
        count = int(equals(rows, "split", "train").sum())
        (folder / "count.json").write_text(json.dumps(count))
        return {"rows": count}

    def load(self, folder: Path) -> None:
        self.count = json.loads((folder / "count.json").read_text())

    def identity(self) -> dict:
        return {"type": "learner", "factor": self.factor}

    def __call__(self, prompts, completions):
        return [self.factor * self.count + len(c) for c in completions]


def test_a_reward_that_learns_is_fitted_once_and_again_when_it_changes(tmp_path, tiny_recipe, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "leftover")
    monkeypatch.setitem(REWARDS, "learner", "tests.prepare.test_scores:Learner")
    from tests.prepare.test_scores import Learner as Imported  # the class that load_reward finds

    monkeypatch.setattr(Imported, "fits", 0)
    spec = {"type": "learner", "name": "mine"}
    content = tiny_recipe(tmp_path, reward={"functions": [spec]}, evaluate={"judges": [spec | {"factor": 2.0}]})
    run = prepare(content)
    train = int(equals(run.table.open("split"), "split", "train").sum())
    assert Imported.fits == 2  # the reward and the judge
    assert run.reward(["p"], ["ab"]) == [train + 2]
    assert run.judges(["p"], ["ab"]) == [2 * train + 2]
    assert f"reward mine: rows {train}" in caplog.text
    prepare(content)
    assert Imported.fits == 2
    content["reward"]["functions"][0]["factor"] = 5.0
    caplog.clear()
    assert prepare(content).reward(["p"], [""]) == [5 * train]
    assert Imported.fits == 3
    assert "Scores by mine: made again" in caplog.text
    # Other training rows: it learns anew, and what it scored before is stale although it scores the same rows.
    caplog.clear()
    prepare(content | {"seed": 1})
    assert "Rows: kept from before" in caplog.text and "Scores by mine: made again" in caplog.text


def test_prepare_only_stops_after_the_step_it_names(tmp_path, tiny_recipe, capsys):
    content = tiny_recipe(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    main(["prepare", str(file), "--only", "score"])
    run = open_run(make_recipe(content))
    assert run.table.has("reward") and not run.table.has("reference")
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(file), "--only", "scores"])
    assert stopped.value.code == 2
    assert "did you mean 'score'?" in capsys.readouterr().err


def families(run: Run) -> set[str]:
    return set(run.table.open("rows")["family"][:])


def test_parts_share_no_family_and_are_whole_together(tmp_path, tiny_recipe):
    parts = [(0.0, 0.6), (0.6, 1.0)]
    found = []
    for i, part in enumerate(parts):
        (tmp_path / str(i)).mkdir()
        found.append(families(prepare(tiny_recipe(tmp_path / str(i), data={"part": part}), "split")))
    everything = {row["family"] for row in scored_rows(60)}
    assert found[0] | found[1] == everything and not found[0] & found[1]
    assert all(text_hash(f"part\0{family}") / 2**64 < 0.6 for family in found[0])
    content = tiny_recipe(tmp_path, data={"part": [0.5, 0.5]})
    with pytest.raises(UserError, match=r"data\.part \[0\.5, 0\.5\]"):
        prepare(content, "rows")


def test_a_run_named_like_a_number_is_read_back(tmp_path, tiny_recipe):
    content = tiny_recipe(tmp_path, name="1e5")
    run = open_run(make_recipe(content))
    assert load_recipe(run.folder).name == "1e5"
    open_run(make_recipe(content))  # the folder is known as its own
