"""The frontier by hand, by brute force over subsets, and on curves whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from leftover.evaluation.frontier import (
    COUNTS,
    Curve,
    Resamples,
    best_of_n,
    best_of_n_kl,
    best_of_n_weights,
    interpolated,
    over_optimised,
)
from leftover.metrics import bootstrap_interval


def brute_force(rewards, scores, n):
    """The mean score of the best over all subsets of n; equal bests share a subset."""
    found = []
    for subset in itertools.combinations(range(len(rewards)), n):
        best = max(rewards[i] for i in subset)
        found.append(np.mean([scores[i] for i in subset if rewards[i] == best]))
    return np.mean(found)


@pytest.mark.parametrize("rewards", [[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 0.0, 1.0, 1.0, 0.0, 2.0], [1.0] * 6])
def test_best_of_n_is_the_mean_over_all_subsets(rewards):
    judge = [0.3, -1.0, 7.0, 2.0, 0.0, 1.5]
    for n in range(1, 7):
        weights = best_of_n_weights(np.array(rewards), n)
        assert weights.sum() == pytest.approx(1)
        for scores in (rewards, judge):
            assert weights @ scores == pytest.approx(brute_force(rewards, scores, n))


def test_best_of_n_of_every_prompt_is_chosen_by_its_rewards():
    samples = {"reward": np.array([[1.0, 3.0], [5.0, 4.0]]), "judge/j": np.array([[10.0, 20.0], [30.0, 50.0]])}
    curve = best_of_n(samples, counts=(1, 2))
    assert curve.values["reward"].tolist() == [[2, 4.5], [3, 5]]
    assert curve.values["judge/j"].tolist() == [[15, 40], [20, 30]]
    assert curve.kl.tolist() == [[0, 0], [math.log(2) - 0.5] * 2]


def test_completions_without_a_reward_are_the_last_to_be_chosen_and_in_no_mean():
    nan = np.nan
    samples = {"reward": np.array([[1.0, nan, 3.0], [nan, nan, nan]]), "length": np.array([[1, 9, 2], [4, 5, 6.0]])}
    curve = best_of_n(samples, counts=(1, 2))
    # Of two of the first prompt: (1, nan) gives 1, (1, 3) and (nan, 3) give 3.
    assert curve.values["reward"][:, 0].tolist() == pytest.approx([2, 7 / 3])
    assert curve.values["length"][:, 0].tolist() == pytest.approx([4, 5 / 3])
    assert np.isnan(curve.values["reward"][:, 1]).all()
    resamples = Resamples(range(2))
    assert resamples.means(curve.values["reward"])[0] == pytest.approx([2, 7 / 3])


def test_the_divergence_of_best_of_n_is_that_of_ranks_that_never_tie():
    """Of M equally likely completions the best of n is the k-th with probability (k^n - (k - 1)^n) / M^n."""
    for n in COUNTS:
        exact = {}
        for size in (10, 100_000):
            steps = np.arange(size + 1) / size
            chances = np.diff(steps**n)
            exact[size] = float((chances * np.log(chances * size, where=chances > 0, out=np.zeros(size))).sum())
        assert exact[100_000] == pytest.approx(best_of_n_kl(n), abs=1e-3)
        assert exact[10] <= best_of_n_kl(n) + 1e-12  # an upper bound where completions can repeat


def test_between_neighbours_in_order_of_kl_the_line_is_straight():
    kl, values = np.array([[4.0, 0.0, 1.0]]), np.array([[10.0, 0.0, 4.0]])
    found = {level: interpolated(kl, values, level)[0] for level in (0, 0.5, 1, 2.5, 4, 4.1, -0.1)}
    assert [found[level] for level in (0, 0.5, 1, 2.5, 4)] == [0, 2, 4, 7, 10]
    assert np.isnan(found[4.1]) and np.isnan(found[-0.1])


def constant(kl, **values):
    """Points that have the same numbers for each of 40 prompts."""
    return Curve(np.repeat(np.array([kl]).T, 40, 1), {n: np.repeat(np.array([v]).T, 40, 1) for n, v in values.items()})


def test_points_that_lie_close_together_are_one_and_the_reference_stays_alone():
    # Knots begin at .05 (up to .1625), at 1 (up to 1.35) and at 1.4.
    curve = constant([0.0, 1.4, 0.05, 1.0, 1.3, 0.15], reward=[0.0, 5.0, 1.0, 2.0, 4.0, 3.0]).pooled()
    assert curve.kl[:, 0] == pytest.approx([0, 0.1, 1.15, 1.4])
    assert curve.values["reward"][:, 0] == pytest.approx([0, 2, 3, 5])


def test_a_point_of_negative_kl_is_no_fault():
    curve = constant([0.0, -0.02, 0.3], reward=[0.0, 1.0, 2.0]).pooled()
    assert curve.kl[:, 0] == pytest.approx([0, -0.02, 0.3])
    assert curve.at(0.14, "reward", Resamples(range(40)))["mean"] == pytest.approx(14 / 15)  # of 0 at 0 and 2 at .3


def test_intervals_are_those_of_the_project():
    rng = np.random.default_rng(1)
    for families in (range(60), np.repeat(np.arange(40), 2)[:60], np.repeat(np.arange(12), 5)):
        values = rng.normal(size=60)
        resamples = Resamples(families)
        found, usual = resamples.interval(resamples.means(values[None])[:, 0]), bootstrap_interval(values, families)
        assert found["mean"] == pytest.approx(usual.mean)
        assert [found["low"], found["high"]] == pytest.approx([usual.low, usual.high], abs=0.04)
        assert "families" not in found
    few = Resamples(range(7))
    assert few.interval(few.means(np.arange(7.0)[None])[:, 0])["families"] == 7


def test_the_interval_at_a_kl_knows_that_kl_is_an_estimate():
    """The reward is 0 and 1 whatever the prompt: all that is uncertain at KL 1 is where the second point lies."""
    kl = np.array([np.zeros(64), np.tile([0.0, 4.0], 32)])
    curve = Curve(kl, {"reward": np.array([np.zeros(64), np.ones(64)])})
    found = curve.at(1.0, "reward", Resamples(range(64)))
    # Its KL is 2 -+ 1.96 x 2 / 8, and the line is 1 / KL there.
    assert found["mean"] == 0.5
    assert [found["low"], found["high"]] == pytest.approx([1 / 2.49, 1 / 1.51], abs=0.02)
    assert curve.at(2.5, "reward", Resamples(range(64))) is None


def noisy(kl, reward, judge, seed=0, prompts=120, spread=0.5):
    rng = np.random.default_rng(seed)

    def around(means):
        return np.array(means)[:, None] + rng.normal(scale=spread, size=(len(means), prompts))

    return Curve(np.repeat(np.array([kl]).T, prompts, 1), {"reward": around(reward), "judge/j": around(judge)})


KL = [0.0, 1.0, 2.0, 4.0, 8.0]
RISING = [0.0, 1.0, 2.0, 3.0, 4.0]


def turn_of(curve, families=range(120)):
    return over_optimised(curve, "judge/j", Resamples(families))


def test_a_judge_that_falls_while_the_reward_rises_is_told_from_the_first_clear_point():
    turn = turn_of(noisy(KL, RISING, [0, 1, 2, 1.0, -1]))
    assert (turn.kl, turn.best_kl) == (4, 2)
    assert turn.judge["mean"] == pytest.approx(-1, abs=0.2) and turn.judge["high"] < 0
    assert turn.reward["mean"] == pytest.approx(1, abs=0.2) and turn.reward["low"] > 0


@pytest.mark.parametrize(
    ("reward", "judge"),
    [
        (RISING, [0, 1, 2, 3, 4]),  # the judge rises, too
        ([0, 1, 2, 1, 0], [0, 1, 2, 1, 0]),  # the reward falls, too: bad training
        (RISING, [0, 1, 2, 1, 2.5]),  # the judge comes back
        ([4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),
    ],
)
def test_no_turn_is_seen_where_there_is_none(reward, judge):
    assert turn_of(noisy(KL, reward, judge)) is None


def test_of_too_few_families_no_turn_is_told():
    assert turn_of(noisy(KL, RISING, [0, 1, 2, 1, -1]), np.arange(120) % 7) is None


def test_the_highest_of_many_noisy_points_is_not_taken_for_a_turn():
    """A judge that does not move: at 95 % a pair, without the correction for all pairs, 25 of these 40 would turn."""
    kl, resamples = np.linspace(0, 12, 13), Resamples(range(120))
    curves = [noisy(kl, kl, np.zeros(13), seed) for seed in range(40)]
    assert sum(over_optimised(curve, "judge/j", resamples) is not None for curve in curves) <= 2
