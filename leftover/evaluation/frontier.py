"""Reward and judges against KL to the reference: methods as curves, best-of-n, over-optimisation. Pure functions.

A point has one number a prompt, and all points have the same prompts, so that all of them are resampled together: KL is
an estimate like the others.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from leftover.metrics import FEW_CLUSTERS, MANY_CLUSTERS, mean_of_known, students_factor, widened
from leftover.runs.records import IntervalRecord

LEVELS = (1.0, 2.0, 4.0, 8.0)  # nats, at which methods are compared
BEST_OF_N = "best of n"  # its curve, among those of the methods
COUNTS = (1, 2, 4, 8, 16)  # of completions that best-of-n chooses from
_WIDTH, _LEAST = 1.25, 0.1  # the points of a knot: up to so many times the KL of its first, and so many nats more


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || reference) = log n - (n - 1) / n, in nats (arXiv 2009.01325, appendix G.3).

    It is reached where no completion is drawn twice, and an upper bound elsewhere (arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_n_weights(rewards: np.ndarray, n: int) -> np.ndarray:
    """How often each of N completions is the best of n of them, over all subsets of n, [N]; it sums to 1.

    The one with i - 1 others below it is the best of C(i - 1, n - 1) of the C(N, n) subsets; equal ones take turns.
    The weighted mean of any score is the unbiased estimate for best-of-n (arXiv 2112.09332, appendix I).

    Args:
        rewards: [N], by which the best is chosen.
    """
    number = len(rewards)
    chosen = np.array([math.comb(below, n - 1) for below in range(number)]) / math.comb(number, n)
    _, value, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    return (np.bincount(np.sort(value), chosen) / counts)[value]


class Resamples:
    """The prompt families as they are, and drawn with replacement (`leftover.metrics.bootstrap_ends`).

    Args:
        families: [N] ids of the prompts' families.
    """

    def __init__(self, families: Sequence[int], num_resamples: int = 2000, seed: int = 0):
        ids = np.unique(np.asarray(families), return_inverse=True)[1]
        self.num_families = number = int(ids.max()) + 1
        drawn = np.random.default_rng(seed).integers(number, size=(num_resamples, number))
        counts = np.zeros((num_resamples, number))
        np.add.at(counts, (np.arange(num_resamples)[:, None], drawn), 1)
        self.weights = np.vstack(
            [np.ones(len(ids)), counts[:, ids]]
        )  # [1 + B, N], the first of the prompts as they are

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means over the prompts that have a number, of the data and of every resample: [P, N] -> [1 + B, P]."""
        known = ~np.isnan(values.T)
        with np.errstate(invalid="ignore"):
            return self.weights @ np.where(known, values.T, 0.0) / (self.weights @ known)

    def interval(self, found: np.ndarray) -> IntervalRecord | None:
        """A statistic with its 95 % interval, from [1 + B] of its values; None where it is undefined for the data.

        Ends are NaN where half of the resamples or more leave it undefined.
        """
        centre, defined = float(found[0]), found[1:][np.isfinite(found[1:])]
        if not math.isfinite(centre):
            return None
        low, high = np.quantile(defined, (0.025, 0.975)) if 2 * len(defined) > len(found) - 1 else (np.nan, np.nan)
        if 1 < self.num_families < MANY_CLUSTERS:
            low, high = widened(low, high, centre, self.num_families)
        record: IntervalRecord = {"mean": centre, "low": float(low), "high": float(high)}
        if self.num_families < FEW_CLUSTERS:
            record["families"] = self.num_families
        return record


class Curve(NamedTuple):
    """P points, the reference first, with one number for each of N prompts."""

    kl: np.ndarray  # [P, N] in nats
    values: dict[str, np.ndarray]  # measure -> [P, N]

    def pooled(self) -> "Curve":
        """In the order of KL, those that lie close together as one: the mean of several is less uncertain than each.

        A knot takes the points up to `_WIDTH` times the KL of its first; the reference, whose KL is known, stays alone.
        """
        means = self.kl.mean(1)
        knots, start = [[0]], math.inf
        for point in sorted(range(1, len(means)), key=lambda i: means[i]):
            if math.isinf(start) or means[point] > _WIDTH * max(start, 0.0) + _LEAST:
                knots.append([])
                start = means[point]
            knots[-1].append(point)

        def pool(values: np.ndarray) -> np.ndarray:
            return np.array([mean_of_known(values[knot], 0) for knot in knots])

        return Curve(pool(self.kl), {name: pool(values) for name, values in self.values.items()})

    def at(self, level: float, measure: str, resamples: Resamples) -> IntervalRecord | None:
        """The measure at a KL, by linear interpolation between neighbours; None outside the curve's range."""
        kl, values = resamples.means(self.kl), resamples.means(self.values[measure])
        return resamples.interval(interpolated(kl, values, level))


def interpolated(kl: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """`values` at KL = `level`, linear between neighbouring points in the order of KL: [B, P], [B, P] -> [B].

    NaN outside the range of KL.
    """
    order = np.argsort(kl, axis=1)
    x, y = np.take_along_axis(kl, order, 1), np.take_along_axis(values, order, 1)
    right = np.clip((x < level).sum(1), 1, x.shape[1] - 1)  # the first point that is not below the level
    rows = np.arange(len(x))
    x0, x1, y0, y1 = x[rows, right - 1], x[rows, right], y[rows, right - 1], y[rows, right]
    share = (level - x0) / np.where(x1 > x0, x1 - x0, np.nan)
    return np.where((share >= 0) & (share <= 1), y0 + share * (y1 - y0), np.nan)


class Turn(NamedTuple):
    """Where a method over-optimises: from this KL on its judge falls while its reward rises."""

    kl: float
    best_kl: float  # where the judge is highest
    judge: IntervalRecord  # at `kl`, minus the best before it
    reward: IntervalRecord


def over_optimised(curve: Curve, judge: str, resamples: Resamples) -> Turn | None:
    """The first point whose judge is below its best before, and whose reward is above it, by intervals clear of 0.

    Of many noisy points the highest is too high, and any later one would seem to fall: the intervals hold 95 % for all
    pairs of points together (Bonferroni; Student's of the bootstrap's standard error, since so far out it has few
    resamples). No later point may be back at the best.
    """
    kl, judged, reward = curve.kl.mean(1), curve.values[judge], curve.values["reward"]
    level = mean_of_known(judged, 1)
    order = np.argsort(kl, kind="stable")
    if resamples.num_families < FEW_CLUSTERS:  # too few to tell
        return None
    reach = students_factor(resamples.num_families, 1 - 0.05 / math.comb(len(order), 2))
    for place in range(1, len(order)):
        point, before, rest = order[place], order[:place], order[place:]
        best = before[np.argmax(level[before])]
        found = resamples.means(np.array([values[point] - values[best] for values in (judged, reward)]))
        (fall, rise), (fall_reach, rise_reach) = found[0], reach * found[1:].std(0)
        if fall + fall_reach < 0 < rise - rise_reach and level[rest].max() < level[best]:
            ends = [
                IntervalRecord(mean=float(mean), low=float(mean - half), high=float(mean + half))
                for mean, half in ((fall, fall_reach), (rise, rise_reach))
            ]
            return Turn(float(kl[point]), float(kl[best]), *ends)
    return None


def best_of_n(samples: Mapping[str, np.ndarray], counts: Sequence[int] = COUNTS) -> Curve:
    """Best-of-n of the reference as a curve.

    Args:
        samples: measure -> [N prompts, S completions]; `reward` chooses, and one that has none (NaN) last.
    """
    rewards = np.nan_to_num(samples["reward"], nan=-np.inf)
    weights = np.array([[best_of_n_weights(of_prompt, n) for of_prompt in rewards] for n in counts])
    kl = np.repeat([[best_of_n_kl(n)] for n in counts], len(rewards), axis=1)

    def chosen(values: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return (weights * np.where(known, values, 0.0)).sum(-1) / (weights * known).sum(-1)

    return Curve(kl, {name: chosen(values) for name, values in samples.items()})
