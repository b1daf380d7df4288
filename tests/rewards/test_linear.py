"""The linear reward: its features, its fit, what is held out, and what it refuses."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from leftover.errors import UserError
from leftover.pipeline import run
from leftover.recipe.files import make_recipe
from leftover.rewards import FittedReward, load_reward
from leftover.rewards.examples import data_section, hold_out, read_examples
from leftover.rewards.features import TextFeatures
from leftover.rewards.linear import fit_preferences, preference_rows
from leftover.rewards.tokens import Characters, Words, tokenise
from leftover.store.table import Table
from tests.conftest import scored_rows
from tests.rewards.reward_rows import planted_rows, write

TEXTS = ["Don't stop, the tea!", "The tea-pot: the tea...", "stop  the\tépée, DON'T", "", "tea"]
PATTERN = r"\w+|[^\w\s]"


# Features


def test_words_are_weighed_as_by_scikit_learn():
    expected = TfidfVectorizer(token_pattern=PATTERN, ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(TEXTS)
    features = TextFeatures("completion")
    matrix = features.fit([""] * len(TEXTS), TEXTS)
    names = features.names()
    chosen = [i for i, name in enumerate(names) if name.startswith("words: ")]
    assert {names[i].removeprefix("words: ") for i in chosen} == set(expected.get_feature_names_out())
    order = [names.index(f"words: {term}") for term in expected.get_feature_names_out()]
    assert matrix[:, order].toarray() == pytest.approx(expected.transform(TEXTS).toarray(), abs=1e-12)


def test_characters_are_counted_as_by_scikit_learn_within_words():
    tokens = tokenise(TEXTS)
    spaced = [" ".join(tokens.words[i] for i in tokens.ids[tokens.rows == row]) for row in range(len(TEXTS))]
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2).fit(spaced)
    found = Characters.learn(tokens, 2, (3, 4, 5))
    columns = [found.known.index(gram) for gram in vectorizer.get_feature_names_out()]
    assert len(columns) == len(found.known) > 10
    assert (found(tokens)[:, columns].toarray() == vectorizer.transform(spaced).toarray()).all()


def test_a_bigram_does_not_cross_from_one_text_to_the_next():
    tokens = tokenise(["red tea", "tea pot", "red tea", "tea pot", "pot red"])
    assert Words.learn(tokens, 2).names() == ["red", "tea", "pot", "red tea", "tea pot"]


def test_the_overlap_says_what_of_a_completion_is_found_in_the_prompt():
    features = TextFeatures("overlap")
    prompts = ["the red tea\n\nwhat is hot?", "the red tea"]
    features.fit(prompts * 2, ["the red pot", "the red pot"] * 2)
    assert features.overlap is not None
    raw = features.overlap._measure(features._tokens(prompts, ["the red pot is", "the the hot red tea"]))
    # First part "the red tea": of "the red pot is", 2 of 4 words, 1 of 3 bigrams, 2 of its 3 distinct words.
    assert raw[0, [0, 1, 5]] == pytest.approx([2 / 4, 1 / 3, 2 / 3])
    # The whole prompt also has "is", and six distinct words more or less: the red tea what is hot ?
    assert raw[0, [6, 7, 11]] == pytest.approx([3 / 4, 1 / 3, 3 / 7])
    # Second prompt: the, the, red, tea of five words; "red tea" of (the the, the hot, hot red, red tea).
    assert raw[1, [0, 1, 5]] == pytest.approx([4 / 5, 1 / 4, 3 / 3])
    # Words never learnt (is) are as rare as the rarest; those learnt stand in all texts: their IDF is 1, as is its.
    assert raw[0, [2, 3, 4]] == pytest.approx([2 / 4, np.log1p(2), np.log1p(4)])


def test_the_overlap_of_the_fitted_rows_is_standardised():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "tea", "pot", "hot", "is"], rng.integers(1, 9))) for _ in range(50)]
    features = TextFeatures("overlap")
    matrix = features.fit(texts[::-1], texts).toarray()
    assert matrix.mean(0) == pytest.approx(np.zeros(12), abs=1e-9)
    assert matrix.std(0) == pytest.approx(np.ones(12))
    assert features(texts[:1], texts[:1]).toarray()[0, 0] > 0, "a text that is its own prompt has more than the mean"


def test_a_conversation_is_read_as_its_messages():
    features = TextFeatures("pair")
    chat = [{"role": "user", "content": "the red tea"}, {"role": "user", "content": "what is hot?"}]
    features.fit(["the red tea\n\nwhat is hot?"] * 2, ["the red pot"] * 2)
    as_text = features(["the red tea\n\nwhat is hot?"], ["red tea"])
    assert (features([chat], ["red tea"]) != as_text).nnz == 0 and as_text.nnz > 0


# Fitting


def fitted(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A linear reward fitted on rows, and its facts."""
    folder.mkdir(exist_ok=True)
    fit = {"path": write(folder.parent / f"{folder.name}.jsonl", rows)} | settings.pop("fit", {})
    reward = load_reward({"type": "linear", "fit": fit, **settings})
    return reward, reward.fit(folder)


METRICS = {"label": "held_out_auc", "score": "held_out_spearman", "pairs": "held_out_pair_accuracy"}
CHANCE = {"label": 0.5, "score": 0.0, "pairs": 0.5}


@pytest.mark.parametrize("kind", ["label", "score", "pairs"])
def test_a_planted_signal_is_found_on_held_out_families(kind, tmp_path):
    reward, facts = fitted(tmp_path / "reward", planted_rows(kind))
    assert facts["target"] == kind
    assert facts["held_out_families"] == 16 and facts["families"] == 80 and facts["rows_fitted"] == 128
    assert facts[METRICS[kind]]["low"] > 0.8
    good, bad = reward(["What is in room 1?"] * 2, ["a splendid splendid lamp", "a lamp and a stone"])
    assert good > bad
    assert any("splendid" in name for name in facts["highest"])
    if kind == "score":
        assert 18 < bad < 22 < good < 32, "predictions are on the scale of the scores"
    if kind == "label":
        assert 0 < bad < good < 1


@pytest.mark.parametrize("kind", ["label", "score", "pairs"])
def test_no_signal_is_found_in_shuffled_rows(kind, tmp_path):
    _, facts = fitted(tmp_path / "reward", planted_rows(kind, num_families=200, shuffled=True))
    interval = facts[METRICS[kind]]
    assert interval["low"] < CHANCE[kind] < interval["high"]
    assert interval["high"] - interval["low"] < 0.6


def test_preferences_are_fitted_by_the_model_of_bradley_and_terry():
    # One feature, differences 2, 1, -1. Minimum of w^2 / 2 + C sum log(1 + exp(-w d)): w = C sum d sigmoid(-w d).
    matrix = sparse.csr_array(np.array([[2.0], [0.0], [1.0], [0.0], [0.0], [1.0]]))
    differences, labels = preference_rows(matrix, np.array([[0, 1], [2, 3], [4, 5]]))
    assert (differences.toarray()[:, 0] * (2 * labels - 1)).tolist() == [2.0, 1.0, -1.0]
    for strength in (0.5, 3.0):
        (w,), intercept = fit_preferences(differences, labels, strength)
        d = np.array([2.0, 1.0, -1.0])
        assert w == pytest.approx(strength * (d / (1 + np.exp(w * d))).sum(), abs=1e-5) and intercept == 0.0
        assert w > 0.1


def test_scores_are_the_same_after_loading(tmp_path):
    rows = planted_rows("label")
    reward, _ = fitted(tmp_path / "reward", rows, features="pair")
    prompts, completions = [r["prompt"] for r in rows], [r["completion"] for r in rows]
    scores = reward(prompts, completions)
    assert load_reward({"type": "linear", "path": str(tmp_path / "reward")})(prompts, completions) == scores
    again = load_reward({"type": "linear", "fit": {"path": str(tmp_path / "reward.jsonl")}, "features": "pair"})
    again.load(tmp_path / "reward")
    assert again(prompts, completions) == scores and len(set(scores)) > 50


def test_the_folder_holds_arrays_and_json_and_nothing_pickled(tmp_path):
    fitted(tmp_path / "reward", planted_rows("label"), features="pair")
    assert {file.name for file in (tmp_path / "reward").iterdir()} == {"reward.json", "vocabulary.json", "arrays.npz"}
    with np.load(tmp_path / "reward" / "arrays.npz", allow_pickle=False) as arrays:
        assert "allow_pickle" not in arrays and all(arrays[name].dtype != object for name in arrays)


def test_a_score_does_not_depend_on_the_batch(tmp_path):
    rows = planted_rows("score")
    reward, _ = fitted(tmp_path / "reward", rows, features="pair")
    prompts, completions = [r["prompt"] for r in rows], [r["completion"] for r in rows]
    scores = reward(prompts, completions)
    assert reward(prompts[::-1], completions[::-1])[::-1] == pytest.approx(scores, abs=1e-10)
    assert [reward([p], [c])[0] for p, c in zip(prompts, completions, strict=True)] == pytest.approx(scores, abs=1e-10)
    assert reward([], []) == [] and all(np.isfinite(reward(["?", ""], ["", "\n"])))


def test_short_texts_are_scored_by_the_thousand(tmp_path):
    reward, _ = fitted(tmp_path / "reward", planted_rows("label"))
    texts = [f"{' '.join(row['completion'] for row in planted_rows('label', 4, seed=i))} {i}" for i in range(1000)]
    start = time.process_time()
    reward([""] * len(texts), texts)
    # Some 15,000 a second on one core; the bound is loose, for machines that are busy.
    assert len(texts) / (time.process_time() - start) > 1000


def test_a_logit_is_the_log_odds_of_the_probability(tmp_path):
    one, _ = fitted(tmp_path / "one", planted_rows("label"))
    other, _ = fitted(tmp_path / "other", planted_rows("label"), output="logit")
    asked = ["?", "?"], ["a splendid lamp", "a lamp"]
    p, logit = np.array(one(*asked)), np.array(other(*asked))
    assert np.log(p / (1 - p)) == pytest.approx(logit, abs=1e-9)


# Held-out families


def test_what_held_out_families_are_labelled_changes_their_auc_and_nothing_else(tmp_path):
    rows = planted_rows("label")
    _, facts = fitted(tmp_path / "one", rows)
    data = data_section({"path": str(tmp_path / "one.jsonl")})
    held_out = hold_out(read_examples(data, tmp_path / "rejected", "auto")[0], 0.2, 0)
    turned = [
        row | {"reward": 1 - row["reward"] if out else row["reward"]} for row, out in zip(rows, held_out, strict=True)
    ]
    _, turned_facts = fitted(tmp_path / "two", turned)
    for name in ("arrays.npz", "vocabulary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert turned_facts["held_out_auc"]["value"] == pytest.approx(1 - facts["held_out_auc"]["value"], abs=1e-4)


def test_families_stay_whole_and_another_seed_holds_out_others(tmp_path):
    data = data_section({"path": write(tmp_path / "rows.jsonl", planted_rows("label"))})
    examples, _ = read_examples(data, tmp_path / "rejected", "auto")
    masks = [hold_out(examples, 0.25, seed) for seed in (0, 1)]
    for mask in masks:
        assert not set(examples.families[mask]) & set(examples.families[~mask])
        assert len(set(examples.families[mask])) == 20
    assert (masks[0] != masks[1]).any()


def test_rows_of_the_users_test_split_are_the_ones_held_out(tmp_path):
    rows = [row | {"split": "test" if i < 10 else "train"} for i, row in enumerate(planted_rows("label"))]
    _, facts = fitted(tmp_path / "reward", rows)
    assert (facts["held_out_rows"], facts["rows_fitted"]) == (10, 150)


def test_a_pair_needs_two_neighbours_of_one_prompt(tmp_path):
    rows = planted_rows("pairs")
    lonely = {"prompt": "Alone?", "completion": "yes", "is_chosen": True}
    _, facts = fitted(tmp_path / "reward", [lonely, *rows[:41], lonely, *rows[41:]])
    assert (facts["rows"], facts["rows_without_pair"]) == (158, 4), "the pair that `lonely` parts is lost, and counted"


def test_real_scores_of_pairs_are_fitted_as_scores_unless_pairs_are_asked_for(tmp_path):
    rows = [
        {"prompt": f"p {i // 2}", "completion": f"{'splendid' if i % 2 else 'plain'} {i % 7}", "is_chosen": i % 2 == 1}
        | {"reward": float(i % 2) + 0.25 * (i % 3)}
        for i in range(80)
    ]
    assert fitted(tmp_path / "auto", rows)[1]["target"] == "score"
    assert fitted(tmp_path / "pairs", rows, target="pairs")[1]["held_out_pair_accuracy"]["value"] == 1.0


# Identity, and runs


def test_the_identity_changes_with_data_and_settings_and_with_nothing_else(tmp_path):
    path = write(tmp_path / "rows.jsonl", planted_rows("label"))
    spec: dict[str, Any] = {"type": "linear", "fit": {"path": path}}
    first = load_reward(spec).identity()
    assert load_reward(spec).identity() == first
    for other in ({"features": "pair"}, {"seed": 1}, {"held_out": 0.3}, {"fit": {"path": path, "part": [0.0, 0.5]}}):
        assert load_reward(spec | other).identity() != first
    write(tmp_path / "rows.jsonl", planted_rows("label", seed=1))
    assert load_reward(spec).identity() != first


def test_the_identity_of_a_folder_changes_with_its_files(tmp_path):
    fitted(tmp_path / "reward", planted_rows("label"))
    spec = {"type": "linear", "path": str(tmp_path / "reward")}
    first = load_reward(spec).identity()
    fitted(tmp_path / "reward", planted_rows("label", seed=1))
    assert load_reward(spec).identity() != first


def test_a_judge_of_another_part_shares_no_family_with_the_run(tmp_path: Path, tiny_recipe: Callable) -> None:
    content = tiny_recipe(tmp_path, rows=scored_rows(120))
    content["data"]["part"] = [0.0, 0.5]
    fit = {"path": content["data"]["path"], "part": [0.5, 1.0]}
    content["reward"] = {"functions": [{"type": "linear", "fit": "rows", "name": "critic"}]}
    content["evaluate"]["judges"] = [{"type": "linear", "fit": fit, "name": "judge", "features": "both"}]
    run(make_recipe(content), until="prepare")
    table = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert table["judge judge"]["complete"] and table["reward critic"]["complete"]
    judged, _ = read_examples(data_section(fit), tmp_path / "rejected", "auto")
    rows = Table(tmp_path / "run" / "table").open("rows", "split", "reward")
    assert set(rows["family"]) and not set(rows["family"]) & set(judged.families)
    train = [row for row in rows if row["split"] == "train"]
    facts = table["reward critic"]["facts"]
    assert facts["rows_read"] == len(train) and facts["families"] == len({row["family"] for row in train})
    critic = load_reward({"type": "linear", "path": str(tmp_path / "run" / "rewards" / "reward-critic")})
    assert critic(rows["prompt"][:], rows["completion"][:]) == rows["reward"][:]


# What it refuses


def rows_of(labels: list[float | None], families: int = 40) -> list[dict[str, Any]]:
    return [
        {"prompt": f"p{i % families}", "completion": f"text {i % 5}"} | ({} if label is None else {"reward": label})
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (rows_of([0.0, 1.0] * 4), {}, "8 rows of 8 families are too few"),
        (rows_of([0.0, 1.0] * 20, families=1), {}, "40 rows of 1 families are too few.*name in fit.columns.family"),
        (rows_of([1.0] * 40), {}, "all 40 labels in the column .reward. .* are 1"),
        (rows_of([0.5] * 40), {}, "all 40 scores in the column 'reward' .* are 0.5"),
        (rows_of([None] * 40), {}, r"no row has a score in the column 'reward' \(fit.columns.reward\)"),
        (rows_of([1.0] * 2 + [0.0] * 38), {}, "families have rows of label 1 to learn from; 5 are needed: give more"),
        (rows_of([0.5, 2.0] * 20), {"target": "label"}, "needs 0 or 1 .* found 0.5: set target: score"),
        (rows_of([0.0, 1.0] * 20), {"target": "pairs"}, "target: pairs needs rows `chosen` and `rejected`"),
        (
            [row | {"is_chosen": True} for row in rows_of([None] * 40)],
            {},
            "put the rows of a pair next to each other",
        ),
        (
            [row | {"completion": f"w{i}"} for i, row in enumerate(rows_of([0.0, 1.0] * 20))],
            {},
            "no word occurs in two",
        ),
        (rows_of([0.0, 1.0] * 20), {"fit": {"columns": {"completion": "answer"}}}, "name your columns in fit.columns"),
    ],
)
def test_rows_that_teach_nothing_are_refused_with_a_remedy(rows, settings, expected, tmp_path):
    with pytest.raises(UserError, match=f"(?s)^linear reward: .*{expected}"):
        fitted(tmp_path / "reward", rows, **settings)
    assert not (tmp_path / "reward" / "reward.json").exists()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "needs either `path` .* or `fit`"),
        ({"fit": "rows", "path": "x"}, "needs either `path` .* or `fit`"),
        ({"fit": "row"}, "fit is 'row': it takes `rows`, or the keys of a data section"),
        ({"fit": {"paht": "x"}}, "fit: unknown key 'paht'; did you mean 'path'"),
        ({"fit": {"foo": "x"}}, "fit: unknown key 'foo'; valid here: path, .* on_bad_row, max_rows, part$"),
        ({"fit": {"path": "x", "columns": {"reward": 3}}}, "fit: columns.reward: Input should be a valid string"),
        ({"fit": {"path": "x", "max_prompt_tokens": 3}}, "fit: max_prompt_tokens: .*remove it"),
        ({"fit": "rows", "feature": "pair"}, "unknown key 'feature'; did you mean 'features'"),
        ({"fit": "rows", "features": "all"}, "features: Input should be 'completion', 'both', 'pair' or 'overlap'"),
        ({"fit": "rows", "held_out": 1}, "held_out: Input should be less than 1"),
        ({"fit": "rows", "seed": "a"}, "seed: Input should be a valid integer"),
        ({"path": "x", "features": "pair"}, "features cannot be set beside path"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(spec, expected):
    with pytest.raises(UserError, match=expected):
        load_reward({"type": "linear", **spec})


def test_what_is_not_there_or_not_fitted_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no data file at 'nowhere.jsonl' \(key fit\.path\)"):
        load_reward({"type": "linear", "fit": {"path": "nowhere.jsonl"}}).fit(tmp_path)
    with pytest.raises(UserError, match="no fitted reward at 'nowhere'"):
        load_reward({"type": "linear", "path": "nowhere"}).identity()
    with pytest.raises(UserError, match="is not fitted yet"):
        load_reward({"type": "linear", "fit": "rows"})(["a"], ["b"])
    with pytest.raises(UserError, match="means the rows of a run"):
        load_reward({"type": "linear", "fit": "rows"}).fit(tmp_path)
    (tmp_path / "reward.json").write_text('{"type": "fine_tuned"}')
    with pytest.raises(UserError, match="holds a reward of type fine_tuned, not linear: set the type"):
        load_reward({"type": "linear", "path": str(tmp_path)})(["a"], ["b"])


def test_one_that_has_a_path_is_a_fitted_reward_that_reads_no_rows(tmp_path):
    _, facts = fitted(tmp_path / "reward", planted_rows("label"))
    reward = load_reward({"type": "linear", "path": str(tmp_path / "reward")})
    assert isinstance(reward, FittedReward) and not reward.reads_rows
    assert reward.fit(tmp_path / "elsewhere") == facts and not (tmp_path / "elsewhere").exists()
    assert load_reward({"type": "linear", "fit": "rows"}).reads_rows


# Real rows

TRIPLES = Path("../shared/data/commonsense/triples.csv.gz")


@pytest.mark.skipif(not TRIPLES.exists(), reason="the commonsense triples are not there")
def test_commonsense_labels_are_told_apart_with_the_relation_as_prompt(tmp_path):
    columns = {"prompt": "relation", "completion": "tail", "reward": "label", "family": "head", "split": "none"}
    fit = {"path": str(TRIPLES), "columns": columns, "part": [0.0, 0.3]}
    facts = load_reward({"type": "linear", "features": "both", "fit": fit}).fit(tmp_path)
    assert facts["held_out_auc"]["low"] > 0.75
    assert facts["same_prompt_accuracy"] > 0.53, "the completion says something beside the relation"
