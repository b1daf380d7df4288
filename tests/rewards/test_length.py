"""What length explains of scores is taken off: the fit alone, in a sum, and in a run of a recipe."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leftover import cli, pipeline
from leftover.errors import UserError
from leftover.prepare.readers import training_mask
from leftover.recipe.files import dump_recipe, make_recipe
from leftover.rewards import load_reward, text_lengths
from leftover.rewards.facts import component_facts, length_text, show_facts
from leftover.rewards.length import explained, fit_length
from leftover.rewards.sum import fresh_reward
from leftover.runs.claim import open_run
from leftover.runs.names import REWARD_STATE, read_completions
from leftover.runs.run import Run
from leftover.store.files import read_json
from leftover.store.table import column

NAN = float("nan")


def quality(text: str) -> float:
    """A number in [0, 1) that has nothing to do with length."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def length_and_quality(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [0.1 * len(text.replace(" ", "")) + quality(text) for text in completions]


def debiased(debias: str, scores: np.ndarray, lengths: np.ndarray, new: np.ndarray | None = None) -> np.ndarray:
    """Fit, store and take off, as a run does; `new`: lengths of texts with a score of 0."""
    fitted = json.loads(json.dumps(fit_length(debias, scores, lengths)))
    return scores - explained(fitted, lengths) if new is None else -explained(fitted, new)


# The measure.


def test_length_is_characters_without_white_space() -> None:
    assert text_lengths(["a bc", "", " \n\t", "日本 語", "a\u00a0b"]).tolist() == [3, 0, 0, 3, 2]


@pytest.mark.parametrize("other", ["oneword", "one  word", "\n\none word\n", "o n e w o r d"])
def test_neither_leaving_spaces_out_nor_padding_with_them_changes_a_length(other: str) -> None:
    assert text_lengths(["one word"]) == text_lengths([other])


# The fit.


def test_a_line_is_taken_off_and_the_mean_stays() -> None:
    """Scores 2 x - 1 are all length: what is left is their mean, 2 * 10.5 - 1 = 20; a text of 101 is extrapolated."""
    x = np.arange(1.0, 21.0)
    np.testing.assert_allclose(debiased("linear", 2 * x - 1, x), np.full(20, 20.0))
    np.testing.assert_allclose(debiased("linear", 2 * x - 1, x, np.array([1.0, 101.0])), [19.0, -181.0])
    fitted = fit_length("linear", 2 * x - 1, x)
    assert fitted["r2"] == pytest.approx(1) and fitted["slope"] == pytest.approx(200) and fitted["rows"] == 20


def test_a_line_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.integers(5, 300, 80).astype(float), rng.normal(size=80)
    scores = 0.02 * x + noise
    slope = np.polyfit(x, scores, 1)[0]
    np.testing.assert_allclose(debiased("linear", scores, x), scores - slope * (x - x.mean()))
    fitted = fit_length("linear", scores, x)
    assert fitted["r2"] == pytest.approx(np.corrcoef(x, scores)[0, 1] ** 2)
    assert fitted["slope"] == pytest.approx(100 * slope) and fitted["mean"] == pytest.approx(scores.mean())


@pytest.mark.parametrize("debias", ["linear", "spline"])
def test_quality_is_left_of_length_and_quality(debias: str) -> None:
    rng = np.random.default_rng(1)
    x, good = rng.integers(20, 400, 500).astype(float), rng.normal(size=500)
    rises = 0.02 * x if debias == "linear" else 3 * np.log(x)
    left = debiased(debias, rises + good, x)
    assert np.corrcoef(left, good)[0, 1] > 0.98 and abs(np.corrcoef(left, x)[0, 1]) < 1e-9
    assert left.mean() == pytest.approx((rises + good).mean())


def test_a_spline_follows_what_levels_off_where_a_line_does_not() -> None:
    x = np.linspace(1, 400, 400)
    scores = np.minimum(x, 150.0)
    line, curve = (debiased(debias, scores, x).std() for debias in ("linear", "spline"))
    assert curve < line / 3


def test_a_spline_is_straight_beyond_its_knots_so_that_longer_texts_earn_nothing() -> None:
    """Second differences outside the 5 % and 95 % quantiles are 0, and the curve has no step or kink at the knots."""
    x = np.arange(1.0, 102.0)
    fitted = fit_length("spline", np.sqrt(x), x)
    assert fitted["knots"][0] == 6 and fitted["knots"][-1] == 96
    outside = np.concatenate([explained(fitted, np.arange(96.0, 301)), explained(fitted, np.arange(1.0, 7))])
    np.testing.assert_allclose(np.delete(np.diff(outside, 2), [203, 204]), 0, atol=1e-12)
    ends = explained(fitted, np.array([95.99, 96.0, 96.01]))
    assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1], rel=1e-3)
    assert np.diff(explained(fitted, np.array([96.0, 1000.0])))[0] > 0


def test_rows_without_a_score_teach_nothing_and_keep_none() -> None:
    x = np.arange(1.0, 41.0)
    scores = np.where(x % 2 == 1, 3 * x, NAN)
    left = debiased("linear", scores, x)
    assert np.isnan(left[1::2]).all() and left[::2] == pytest.approx(np.full(20, 60.0))


@pytest.mark.parametrize("debias", ["linear", "spline"])
def test_silence_is_not_paid_for(debias: str) -> None:
    # Far below the rows the line says that a text is worth little, and an empty one would be better than that.
    x = np.random.default_rng(0).integers(40, 200, 100).astype(float)
    fitted = fit_length(debias, 0.02 * x, x)
    assert explained(fitted, np.array([1.0]))[0] < -1 and explained(fitted, np.array([0.0]))[0] == 0


@pytest.mark.parametrize(
    ("scores", "lengths"),
    [
        (np.arange(19.0), np.arange(19.0)),  # too few
        (np.arange(60.0), np.full(60, 7.0)),
        (np.full(60, 0.3), np.arange(60.0)),
        (np.full(60, NAN), np.arange(60.0)),
        (np.empty(0), np.empty(0)),
    ],
    ids=["few rows", "one length", "one score", "no score", "no row"],
)
@pytest.mark.parametrize("debias", ["linear", "spline"])
def test_where_nothing_can_be_fitted_nothing_is_taken_off(debias: str, scores: np.ndarray, lengths: np.ndarray) -> None:
    fitted = fit_length(debias, scores, lengths)
    assert fitted["r2"] == 0 and explained(fitted, np.array([0.0, 5.0, 1e6])).tolist() == [0, 0, 0]


def test_few_rows_and_few_lengths_have_fewer_knots() -> None:
    rng = np.random.default_rng(0)
    assert len(fit_length("spline", rng.normal(size=49), np.arange(49.0))["knots"]) == 2
    assert len(fit_length("spline", rng.normal(size=50), np.arange(50.0))["knots"]) == 5
    two = np.repeat([10.0, 20.0], 30)
    np.testing.assert_allclose(debiased("spline", two + 5, two), np.full(60, 20.0))
    mostly = np.array([10.0] * 99 + [30.0])  # whose quantiles are all one
    np.testing.assert_allclose(debiased("spline", 2 * mostly, mostly), np.full(100, 20.4))


# In a sum.

LENGTH = {"type": "python", "function": "tests.rewards.test_length:length_and_quality", "name": "preferred"}
VADER = {"type": "text", "function": "vader", "weight": -1.0}
TEXTS = ["a" * n + f" {n}" for n in range(1, 61)]


def test_a_sum_in_python_is_fitted_on_texts_and_stored() -> None:
    reward = load_reward({"functions": [LENGTH, VADER], "length": {"debias": "linear"}})
    with pytest.raises(UserError, match=r"reward\.length is fitted .*call fit"):
        reward(["p"], ["a"])
    scores, lengths = reward.score_components(["p"] * 60, TEXTS), text_lengths(TEXTS)
    with pytest.raises(UserError, match=r"lengths.*text_lengths"):
        reward.fit(scores)
    state = json.loads(json.dumps(reward.fit(scores, lengths=lengths)))
    other = load_reward({"functions": [LENGTH, VADER], "length": {"debias": "linear"}})
    other.state = state
    raw = np.array(scores["preferred"])
    left = other(["p"] * 60, TEXTS)  # no word of TEXTS has a sentiment
    slope = np.polyfit(lengths, raw, 1)[0]
    np.testing.assert_allclose(left, raw - slope * (lengths - lengths.mean()))
    np.testing.assert_allclose(other.total(scores), raw, err_msg="raw scores give the raw reward")


def test_length_is_taken_off_before_normalise_and_before_missing_scores_are_imputed() -> None:
    scores = {"preferred": np.append(2 * np.arange(20.0) + np.tile([1.0, -1.0], 10), NAN), "vader": np.zeros(21)}
    spec = [LENGTH | {"normalise": "standardise", "weight": 3.0}, VADER]
    reward = load_reward({"functions": spec, "length": {"debias": "linear"}, "missing": "impute"})
    lengths = np.arange(21.0)
    reward.fit(scores, lengths=lengths)
    counted = reward.without_length(scores, lengths)
    known = counted["preferred"][:20]
    expected = 3 * (known - known.mean()) / known.std()
    np.testing.assert_allclose(reward.total(counted), [*expected, 0.0], atol=1e-12)
    assert counted["vader"].tolist() == [0.0] * 21, "what length does not explain stays as it is"


def test_a_recorded_column_is_fitted_on_recorded_scores_and_its_stand_in_freed_alike() -> None:
    spec = {"type": "column", "name": "preferred", "new_completions": {"type": "text", "function": "length"}}
    reward = load_reward({"functions": [spec], "length": {"debias": "linear"}})
    reward.fit({"preferred": np.arange(20.0)}, lengths=2 * np.arange(20.0))
    # f = length / 2, its mean 9.5: three words of six characters have 3 - 3 + 9.5, one word of two 1 - 1 + 9.5.
    assert reward(["p", "p"], ["aa bb cc", "aa"]) == pytest.approx([9.5, 9.5])


def test_without_the_key_nothing_changes() -> None:
    reward = load_reward({"functions": [LENGTH, VADER]})
    scores = reward.score_components(["p"] * 60, TEXTS)
    assert "length" not in reward.fit(scores)
    assert reward.without_length(scores, np.empty(0))["preferred"].tolist() == scores["preferred"]
    assert reward(["p"] * 60, TEXTS) == pytest.approx(scores["preferred"])


def test_a_reward_that_is_fitted_on_rows_is_refused_outside_a_recipe() -> None:
    with pytest.raises(UserError, match="length: fitted on the rows of a recipe"):
        fresh_reward(load_reward({"functions": [LENGTH], "length": {"debias": "linear"}}))


@pytest.mark.parametrize("length", [{"debias": "cubic"}, {}, {"debias": "linear", "knots": 3}, "linear"])
def test_a_faulty_section_is_named(length: Any, tmp_path: Path, tiny_recipe: Callable) -> None:
    with pytest.raises(UserError, match=r"reward\.length"):
        make_recipe(tiny_recipe(tmp_path, reward={"functions": [LENGTH], "length": length}))


# Facts.


def test_what_length_explains_is_told_of_every_component(caplog: pytest.LogCaptureFixture) -> None:
    reward = load_reward({"functions": [LENGTH, VADER], "length": {"debias": "spline"}})
    lengths = np.arange(60.0)
    scores = {"preferred": 0.5 * lengths, "vader": np.zeros(60)}
    reward.fit(scores, lengths=lengths)
    counted = reward.without_length(scores, lengths)
    facts = component_facts(reward, counted, reward.total(counted))
    assert facts["length"]["preferred"] == {
        "debias": "spline", "rows": 60, "r2": pytest.approx(1), "slope": pytest.approx(50),
    }  # fmt: skip
    said = length_text(facts)
    assert "explains 100% of the variance of preferred" in said and "60 training rows" in said and "+50" in said
    with caplog.at_level("INFO", "leftover"):
        show_facts(facts, reward)
    assert said in caplog.text and "length explains nothing of 'vader'" in caplog.text
    assert length_text({}) == ""


# In a run.


def length_recipe(tiny_recipe: Callable, folder: Path, **overrides: Any) -> Any:
    reward = {"functions": [LENGTH], "length": {"debias": "linear"}}
    return make_recipe(tiny_recipe(folder, **({"reward": reward} | overrides)))


def test_a_run_trains_chooses_and_reports_without_length_and_keeps_the_raw_reward(
    tmp_path: Path, tiny_recipe: Callable
) -> None:
    policies = {"nll": {"objective": "nll"}, "qrpo": {"objective": "qrpo", "reference_samples": 2}}
    recipe = length_recipe(tiny_recipe, tmp_path, policies=policies, data={"max_completion_tokens": 38})
    results = pipeline.run(recipe)
    assert results is not None
    run = Run(recipe)
    rows = run.table.open("rows", "split", "reward", "score-preferred")
    fitted = read_json(run.folder / REWARD_STATE)["length"]["preferred"]
    scores, lengths = column(rows, "reward/preferred"), text_lengths(rows["completion"])
    train = training_mask(run.table.open("split", "tokens"))
    assert train.sum() < (np.array(rows["split"]) == "train").sum(), "rows that are too long teach nothing"
    slope = np.polyfit(lengths[train], scores[train], 1)[0]
    expected = scores - slope * (lengths - lengths[train].mean())
    np.testing.assert_allclose(column(rows, "reward"), expected)
    found = np.corrcoef(column(rows, "reward"), [quality(text) for text in rows["completion"]])[0, 1]
    assert found > 0.99, "what is left is the quality"
    facts = read_json(run.folder / "prepare.json")["reward"]["length"]["preferred"]
    assert facts["r2"] == pytest.approx(fitted["r2"]) and facts["r2"] > 0.9

    def freed(text: str, raw: float) -> float:
        return raw - slope * float(text_lengths([text])[0] - lengths[train].mean())

    records = read_completions(run.folder, "nll-seed-0")
    for record in records:
        raw = length_and_quality([""], [record["text"]])[0]
        assert record["reward/preferred"] == pytest.approx(raw) and record["raw_reward"] == pytest.approx(raw)
        assert record["reward"] == pytest.approx(freed(record["text"], raw))
    row = results["sampled"]["table"]["nll"]
    sampled = [record for record in records if record["decoding"] == "sampled"]
    assert row["raw_reward"]["mean"] == pytest.approx(np.mean([record["raw_reward"] for record in sampled]))
    assert row["reward"]["mean"] == pytest.approx(np.mean([record["reward"] for record in sampled]))
    for name in ("report.md", "report.html", "policies/nll/seed-0/README.md"):
        text = (run.folder / name).read_text(encoding="utf-8")
        assert "raw reward" in text and "of the variance of preferred" in text, name
    logged = [json.loads(line) for line in (run.folder / "policies/nll/seed-0/metrics.jsonl").open()]
    chosen = [line["eval_reward/mean"] for line in logged if "eval_reward/mean" in line]
    assert chosen and all(abs(value - expected[train].mean()) < 1 for value in chosen), "quality is between 0 and 1"


def test_generate_frees_its_rows_of_length_too(tmp_path: Path, tiny_recipe: Callable, tiny_llama_path: str) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "new.jsonl"
    recipe.write_text(dump_recipe(length_recipe(tiny_recipe, tmp_path)))
    given = ["--n", "1", "--max-new-tokens", "4", "--max-prompts", "5", "--unfinished", "keep"]
    cli.main(["generate", tiny_llama_path, "--recipe", str(recipe), "--output", str(output), *given])
    fitted = read_json(tmp_path / "run" / REWARD_STATE)["length"]["preferred"]
    rows = [json.loads(line) for line in output.open()]
    assert rows
    for row in rows:
        taken_off = explained(fitted, text_lengths([row["completion"]]))[0]
        assert row["reward"] == pytest.approx(row["reward/preferred"] - taken_off)
        assert row["reward/preferred"] == pytest.approx(length_and_quality([""], [row["completion"]])[0])


def test_a_new_debias_makes_rewards_anew_and_scores_nothing_again(tmp_path: Path, tiny_recipe: Callable) -> None:
    plain = {"functions": [LENGTH]}
    one, other = (length_recipe(tiny_recipe, tmp_path, **change) for change in ({"reward": plain}, {}))
    keys = []
    for recipe in (one, other, one):
        run = open_run(recipe)
        pipeline.prepare(run, "score")
        run.close()
        keys.append({name: run.table.digest(name) for name in ("score-preferred", "reward")})
    assert keys[0] == keys[2] and keys[0]["score-preferred"] == keys[1]["score-preferred"]
    assert keys[0]["reward"] != keys[1]["reward"]
    assert "length" not in run.table.manifest.entries["reward"]["key"], "the key of a recipe without it is as it was"
