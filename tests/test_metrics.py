"""Statistics on texts and numbers small enough to count by hand."""

import math

import numpy as np
import pytest

from leftover.metrics import (
    Interval,
    bootstrap_ends,
    bootstrap_interval,
    cut_to_equal_length,
    distinct_n,
    pair_accuracy,
    perplexity,
    rank_correlation,
    win_rate,
    win_rate_at_equal_length,
)

TEXTS = ["The cat the cat", "the  dog\n"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 3 / 6),  # the cat the cat the dog
        (2, 3 / 4),  # the-cat cat-the the-cat the-dog; none spans two texts
        (3, 2 / 2),  # the-cat-the cat-the-cat
        (5, 0.0),
    ],
)
def test_distinct_n_counts_over_the_whole_corpus(n, expected):
    assert distinct_n(TEXTS, n) == expected


def test_distinct_n_of_nothing_is_zero():
    assert distinct_n([], 1) == distinct_n(["", " "], 1) == 0.0


def test_texts_are_cut_to_their_shortest_version():
    assert cut_to_equal_length([["a b c", "d"], ["x  y", "u v w"]]) == [["a b", "d"], ["x y", "u"]]


def test_corpora_of_unequal_size_are_not_cut():
    with pytest.raises(ValueError):
        cut_to_equal_length([["a"], ["b", "c"]])


def test_the_bootstrap_interval_agrees_with_the_standard_error():
    values = np.random.default_rng(0).normal(2, 3, 400)
    interval = bootstrap_interval(values)
    error = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05)


def test_clusters_of_like_values_widen_the_interval():
    # 100 families of 4 equal values: resampling families gives twice (square root of 4) the width.
    families = np.repeat(np.arange(100), 4)
    values = np.random.default_rng(0).normal(size=100)[families]
    width = lambda interval: interval.high - interval.low  # noqa: E731
    ratio = width(bootstrap_interval(values, families)) / width(bootstrap_interval(values))
    assert ratio == pytest.approx(2, rel=0.1)


def test_the_mean_is_over_values_not_over_clusters():
    # Of 40 families half have three values of 1, half one of 5.
    sizes = np.tile([3, 1], 20)
    values, families = np.repeat(np.tile([1.0, 5.0], 20), sizes), np.repeat(np.arange(40), sizes)
    found = bootstrap_interval(values, families)
    # Residuals of a family: 3 - 3 x 2 = -3 and 5 - 2 = 3, so that the standard error is 3 sqrt(40) / 80.
    assert found.mean == 2 and (found.high - found.low) / 2 == pytest.approx(1.96 * 3 * 40**0.5 / 80, rel=0.1)


def test_of_few_clusters_the_interval_is_students():
    # Means 1, 2 and 6 of three families of two: 3 -+ 4.303 sd / sqrt(3), the sd sqrt(7).
    low, high = 3 - 4.3027 * (7 / 3) ** 0.5, 3 + 4.3027 * (7 / 3) ** 0.5
    found = bootstrap_interval([0, 2, 2, 2, 5, 7], [0, 0, 1, 1, 2, 2])
    assert found == (3, pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert bootstrap_interval([0, 0, 1], limits=(0, 1)) == (pytest.approx(1 / 3), 0, 1)
    # Families of 3 x 1 and 1 x 5: the residuals -3 and 3 of the mean 2, 12.706 sqrt(2 x 18) / 4.
    assert bootstrap_interval([1, 1, 1, 5], ["a", "a", "a", "b"]).high == pytest.approx(2 + 12.706 * 6 / 4, abs=1e-3)


@pytest.mark.parametrize("num_clusters", [3, 8, 15])
def test_intervals_of_few_clusters_cover_the_mean_as_often_as_they_say(num_clusters):
    # The bootstrap covers 75, 88 and 91 % of these.
    rng, families = np.random.default_rng(num_clusters), np.repeat(np.arange(num_clusters), 4)
    samples = [rng.normal(size=num_clusters)[families] + rng.normal(size=len(families)) for _ in range(400)]
    found = [bootstrap_interval(values, families) for values in samples]
    assert np.mean([interval.low <= 0 <= interval.high for interval in found]) > 0.93


def test_from_30_clusters_on_the_interval_is_the_bootstraps(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    found = bootstrap_interval(values)
    monkeypatch.setattr("leftover.metrics.MANY_CLUSTERS", 0)
    assert bootstrap_interval(values) == found


def test_bootstrap_ends_of_few_clusters_are_as_much_wider_as_students():
    values = np.random.default_rng(0).normal(size=8)
    low, high = bootstrap_ends(lambda drawn: values[drawn].mean(-1), 8)
    student = bootstrap_interval(values)
    assert (low, high) == pytest.approx((student.low, student.high), abs=0.12)
    assert bootstrap_ends(lambda drawn: values[drawn].mean(-1), 8, limits=(0, 0.01))[1] == 0.01


def test_cluster_ids_may_be_numbers_or_names():
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap_interval(values, [9, 9, 4, 4]) == bootstrap_interval(values, ["z", "z", "b", "b"])


def test_one_seed_gives_one_interval():
    one, again, other = (bootstrap_interval(np.arange(40.0), seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_more_confidence_is_a_wider_interval():
    values = np.arange(50.0)
    narrow, wide = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_without_spread():
    assert bootstrap_interval([3, 3, 3]) == (3, 3, 3)
    assert bootstrap_interval([1, 3], ["a", "a"]) == (2, 2, 2)
    assert bootstrap_interval([7]) == (7, 7, 7)
    assert all(math.isnan(number) for number in bootstrap_interval([]))


def test_an_interval_prints_as_mean_and_ends():
    assert str(Interval(1, 0.5, 1.25)) == "1.000 [0.500, 1.250]"


def test_a_tie_is_half_a_win():
    assert win_rate([1, 2, 3, 4], [0, 2, 5, 4]) == (1 + 0.5 + 0 + 0.5) / 4
    assert win_rate([1, 1], [1, 1]) == 0.5


def test_the_two_win_rates_add_up_to_one():
    ours, theirs = np.random.default_rng(0).integers(0, 4, (2, 50))
    assert win_rate(ours, theirs) + win_rate(theirs, ours) == pytest.approx(1)


def test_win_rate_refuses_lists_of_unequal_length():
    with pytest.raises(ValueError, match="prompt by prompt"):
        win_rate([1, 2], [1])


def test_win_rate_of_nothing_is_nan():
    assert math.isnan(win_rate([], []))


def test_win_rate_at_equal_length_leaves_out_pairs_of_unlike_length():
    # 9 of 10 differ by a tenth of the longer; 8 of 10 and 5 of 10 by more; 0 and 0 not at all.
    rate, pairs = win_rate_at_equal_length([1, 0, 1, 1], [0, 9, 0, 1], [10, 10, 5, 0], [9, 8, 10, 0])
    assert (rate, pairs) == ((1 + 0.5) / 2, 2)


def test_the_tolerance_of_equal_length_is_of_the_longer_one():
    for lengths in ([[10], [8]], [[8], [10]]):
        assert win_rate_at_equal_length([1], [0], *lengths, tolerance=0.2) == (1, 1)
        assert win_rate_at_equal_length([1], [0], *lengths, tolerance=0.19)[1] == 0


def test_no_pair_of_equal_length_is_nan_and_none():
    rate, pairs = win_rate_at_equal_length([1], [0], [10], [100])
    assert math.isnan(rate) and pairs == 0


def test_pair_accuracy_counts_pairs_of_one_prompt():
    # a: 1<2 right, 1<3 wrong, 2<3 a tie of scores; b: equal rewards; c: alone.
    scores, rewards = [0.5, 0.7, 0.3, 1, 2, 9], [1, 2, 3, 4, 4, 0]
    assert pair_accuracy(scores, rewards, list("aaabbc")) == (1 / 3, 3)
    assert pair_accuracy([0.5, 0.7, 0.7, 1, 2, 9], rewards, list("aaabbc")) == ((1 + 1 + 0.5) / 3, 3)


def test_pair_accuracy_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = list(zip(rng.normal(size=30), rng.integers(0, 4, 30), rng.integers(0, 6, 30), strict=True))
    assert pair_accuracy(*zip(*rows, strict=True)) == pytest.approx(pair_accuracy(*zip(*rows[::-1], strict=True)))


def test_pair_accuracy_without_pairs_is_nan_and_none():
    share, pairs = pair_accuracy([1, 2], [3, 3], ["a", "a"])
    assert math.isnan(share) and pairs == 0


def test_rank_correlation_is_of_ranks():
    assert rank_correlation([1, 10, 100], [2, 3, 4]) == pytest.approx(1)
    assert rank_correlation([1, 10, 100], [4, 3, 2]) == pytest.approx(-1)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 24 / 60)


def test_rank_correlation_without_spread_is_nan():
    for scores, rewards in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 1]), ([1, 2], [1, 2])):
        assert math.isnan(rank_correlation(scores, rewards))


def test_perplexity_is_the_inverse_of_the_geometric_mean_probability():
    assert perplexity(math.log(1 / 2) + math.log(1 / 8), 2) == pytest.approx(4)
    assert math.isnan(perplexity(0.0, 0))
