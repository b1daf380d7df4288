"""Rank statistics of held-out rows: against scipy and scikit-learn, with weights, ties and clusters."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from leftover.metrics import bootstrap_interval, pair_accuracy
from leftover.rewards.examples import Examples
from leftover.rewards.quality import auc, bootstrap, held_out_facts, spearman

RNG = np.random.default_rng(0)
SCORES = RNG.integers(0, 6, 60).astype(float)  # many ties
LABELS = (SCORES + RNG.normal(0, 2, 60) > 3).astype(float)
REWARDS = np.round(SCORES + RNG.normal(0, 2, 60))
WEIGHTS = RNG.integers(0, 4, 60)


def test_auc_counts_ties_as_one_half():
    # Of label 1 scored 2, 1 against label 0 scored 1, 0: above, above, tie, above = 3.5 of 4.
    assert auc(np.array([2.0, 1, 1, 0]), np.array([1.0, 1, 0, 0]))(np.ones(4)) == 3.5 / 4
    assert auc(SCORES, LABELS)(np.ones(60)) == pytest.approx(roc_auc_score(LABELS, SCORES))


def test_a_weight_is_a_row_repeated():
    repeated = np.repeat(np.arange(60), WEIGHTS)
    assert auc(SCORES, LABELS)(WEIGHTS) == pytest.approx(roc_auc_score(LABELS[repeated], SCORES[repeated]))
    expected = stats.spearmanr(SCORES[repeated], REWARDS[repeated]).statistic
    assert spearman(SCORES, REWARDS)(WEIGHTS) == pytest.approx(expected)


def test_spearman_is_that_of_scipy():
    assert spearman(SCORES, REWARDS)(np.ones(60)) == pytest.approx(stats.spearmanr(SCORES, REWARDS).statistic)
    assert np.isnan(spearman(SCORES, np.ones(60))(np.ones(60)))


def test_the_bootstrap_of_a_mean_is_that_of_the_metrics():
    clusters = np.repeat(np.arange(30), 2)
    found = bootstrap(lambda w: float(w @ SCORES / w.sum()), clusters)
    assert found == pytest.approx(bootstrap_interval(SCORES, clusters), abs=0.06)


def test_rows_that_come_in_families_of_copies_make_no_interval_narrower():
    once = bootstrap(auc(SCORES, LABELS), np.arange(60))
    nine = bootstrap(auc(np.tile(SCORES, 9), np.tile(LABELS, 9)), np.tile(np.arange(60), 9))
    assert nine == pytest.approx(once, abs=1e-9)


def test_what_is_not_defined_has_no_value_and_no_interval():
    labels, families, pairs = np.array([1.0, 1]), np.array(["a", "b"]), np.empty((0, 2), int)
    rows = Examples("label", ["p", "q"], ["", ""], labels, families, pairs, np.zeros(2, bool), ["row 1", "row 2"])
    facts = held_out_facts(np.array([0.0, 1]), rows)
    assert facts["held_out_auc"] == {"value": None, "low": None, "high": None}


def test_the_same_prompt_accuracy_compares_rows_of_one_prompt_alone():
    # p: rewards 2 > 1 in order, 2 > 0 in order, 1 > 0 tied in score: 2.5 of 3. q: wrong. r: equal rewards, no pair.
    scores, rewards = np.array([3.0, 1, 1, 0, 5, 1, 2]), np.array([2.0, 1, 0, 1, 0, 4, 4])
    assert pair_accuracy(scores, rewards, list("pppqqrr")) == (2.5 / 4, 4)
    value, pairs = pair_accuracy(scores, rewards, list("abcdefg"))
    assert np.isnan(value) and pairs == 0
