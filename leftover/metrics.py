"""Statistics of completions and of comparisons: pure functions."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Numbers = Sequence[float] | np.ndarray

# From how many clusters on the bootstrap is used as it is, and below how many no interval is to be relied on.
MANY_CLUSTERS, FEW_CLUSTERS = 30, 8


class Interval(NamedTuple):
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the corpus (Li et al., 2016), lower-cased white-space tokens.

    The ratio falls as a corpus grows: compare corpora of equally many completions. 0.0 without any n-gram.
    """
    corpus = [text.lower().split() for text in texts]
    grams = [tuple(tokens[i : i + n]) for tokens in corpus for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def cut_to_equal_length(corpora: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cut completion i of every corpus to the length, in white-space tokens, of its shortest version."""
    tokens = [[text.split() for text in corpus] for corpus in corpora]
    shortest = [min(map(len, versions)) for versions in zip(*tokens, strict=True)]
    return [[" ".join(words[:n]) for words, n in zip(corpus, shortest, strict=True)] for corpus in tokens]


def bootstrap_interval(
    values: Numbers,
    clusters: Sequence | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval that resamples whole clusters.

    Of fewer than `MANY_CLUSTERS` the bootstrap interval is too narrow: it covers the mean of 3 normal clusters in 73 %
    of cases, of 8 in 89 %. Those get Student's interval with the clustered standard error of a ratio,

    mean -+ t_{G-1} sqrt(G / (G - 1) sum_g (S_g - mean n_g)^2) / N           (Cochran, Sampling Techniques, 1977, 9.3)

    where cluster g has n_g of the N values, with the sum S_g.

    Args:
        values: [N] one number a prompt (a reward, or a paired difference of two methods).
        clusters: [N] ids of prompt families (a story, a conversation); default: every value is its own cluster.
        limits: what the mean cannot be below or above, such as (0, 1) for a share.

    Returns:
        All NaN without values; low = high = mean for one cluster, which has no spread. See `FEW_CLUSTERS`.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    ids = np.arange(len(array)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, counts = np.bincount(ids, array), np.bincount(ids)
    mean = float(array.mean())
    if len(sums) == 1 or np.ptp(array) == 0:
        return Interval(mean, mean, mean)

    if len(sums) < MANY_CLUSTERS:
        half = (
            students_factor(len(sums), confidence) * float(np.sqrt(np.square(sums - mean * counts).sum())) / len(array)
        )
        return Interval(mean, max(limits[0], mean - half), min(limits[1], mean + half))

    def means(drawn: np.ndarray) -> np.ndarray:
        return sums[drawn].sum(-1) / counts[drawn].sum(-1)

    ends = bootstrap_ends(means, len(sums), confidence=confidence, num_resamples=num_resamples, seed=seed)
    return Interval(mean, *ends)


def students_factor(num_clusters: int, confidence: float = 0.95) -> float:
    """t_{G-1} sqrt(G / (G - 1)): by how many bootstrap standard errors the mean of G clusters may be off."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, num_clusters - 1) * np.sqrt(num_clusters / (num_clusters - 1)))


def bootstrap_ends(
    statistic: Callable[[np.ndarray], np.ndarray],
    num_clusters: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    """Percentile interval of a statistic when whole clusters are drawn with replacement.

    Resamples in which it is undefined (NaN) are dropped; if that is half of them or more, the ends are NaN. Of fewer
    than `MANY_CLUSTERS` the ends are moved away from the statistic, by as much as Student's interval is wider.

    Args:
        statistic: of the numbers of drawn clusters [B, num_clusters] -> [B], one for each resample.
        num_clusters: two at least.
        limits: what the statistic cannot be below or above.
    """
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(num_clusters),),
            lambda drawn, axis=-1: statistic(drawn),
            vectorized=True,
            confidence_level=confidence,
            n_resamples=num_resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
            batch=256,
        )
    interval = result.confidence_interval
    found = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
    if len(found) < num_resamples:
        defined = 2 * len(found) > num_resamples
        interval = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2]) if defined else (np.nan, np.nan)
    low, high = float(interval[0]), float(interval[1])
    if num_clusters < MANY_CLUSTERS:
        centre = float(statistic(np.arange(num_clusters)[None])[0])
        low, high = widened(low, high, centre, num_clusters, confidence)
        low, high = float(np.maximum(low, limits[0])), float(np.minimum(high, limits[1]))  # NaN stays NaN
    return low, high


def widened(low: float, high: float, centre: float, num_clusters: int, confidence: float = 0.95) -> tuple[float, float]:
    """The ends of a bootstrap interval of few clusters, moved away from the statistic as far as Student's are."""
    from scipy import stats

    wider = students_factor(num_clusters, confidence) / float(stats.norm.ppf((1 + confidence) / 2))
    return centre - wider * (centre - low), centre + wider * (high - centre)


def mean_of_known(values: Numbers | Sequence[np.ndarray], axis: int | None = None) -> np.ndarray:
    """The mean over an axis (None: of all), without the entries that are NaN; NaN where no other is."""
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    if known.all() and array.size:
        return array.mean(axis)
    with np.errstate(invalid="ignore"):
        return np.where(known, array, 0.0).sum(axis) / known.sum(axis)


def win_rate(rewards: Numbers, other_rewards: Numbers) -> float:
    """Share of prompts on which the first reward is the higher one; a tie counts as one half.

    Prompts on which either has none (NaN) do not count.
    """
    ours, theirs = np.asarray(rewards, np.float64), np.asarray(other_rewards, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"win_rate compares prompt by prompt: got {ours.shape} and {theirs.shape}")
    known = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[known], theirs[known]
    return float((ours > theirs).mean() + 0.5 * (ours == theirs).mean()) if ours.size else float("nan")


def win_rate_at_equal_length(
    rewards: Numbers,
    other_rewards: Numbers,
    lengths: Numbers,
    other_lengths: Numbers,
    tolerance: float = 0.1,
) -> tuple[float, int]:
    """Win rate over the prompts whose two completions differ in length by at most `tolerance` of the longer one.

    Returns the rate and the number of these prompts (NaN and 0 without any).
    """
    ours, theirs = np.asarray(lengths, np.float64), np.asarray(other_lengths, np.float64)
    near = np.abs(ours - theirs) <= tolerance * np.maximum(ours, theirs)
    near &= ~(np.isnan(rewards) | np.isnan(other_rewards))
    return win_rate(np.asarray(rewards)[near], np.asarray(other_rewards)[near]), int(near.sum())


def pair_accuracy(
    scores: Numbers, rewards: Numbers, groups: Sequence | np.ndarray, *, max_group_rows: int | None = None
) -> tuple[float, int]:
    """Share of same-prompt pairs with unequal rewards that `scores` puts in the rewards' order; tie one half.

    This is what a policy can gain from a score: it does not choose which prompt it answers.

    Args:
        groups: [N] ids of the prompts.
        max_group_rows: compare only the first of a prompt's rows: their pairs grow with the square.

    Returns:
        The share and the number of pairs (NaN and 0 if no prompt has two unequal rewards).
    """
    correct, pairs = (found.sum() for found in pairs_of_groups(scores, rewards, groups, max_group_rows=max_group_rows))
    return (float(correct / pairs) if pairs else float("nan")), int(pairs)


def pairs_of_groups(
    scores: Numbers, rewards: Numbers, groups: Sequence | np.ndarray, *, max_group_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of `pair_accuracy` for each of G prompts, in the order of their ids: [G] pairs in order, [G] all pairs."""
    scores, rewards = np.asarray(scores, np.float64), np.asarray(rewards, np.float64)
    ids = np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.argsort(ids, kind="stable")
    correct, pairs = [], []
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        chosen = rows[:max_group_rows]
        above = np.subtract.outer(rewards[chosen], rewards[chosen]) > 0
        agreement = np.sign(np.subtract.outer(scores[chosen], scores[chosen]))[above]
        correct.append(float((0.5 + 0.5 * agreement).sum()))
        pairs.append(int(above.sum()))
    return np.array(correct), np.array(pairs)


def rank_correlation(scores: Numbers, rewards: Numbers) -> float:
    """Spearman's rank correlation; NaN if either side is constant or there are fewer than three rows."""
    from scipy import stats

    if len(scores) < 3 or np.ptp(np.asarray(scores)) == 0 or np.ptp(np.asarray(rewards)) == 0:
        return float("nan")
    return float(stats.spearmanr(scores, rewards).statistic)


def sampled_kl(logprobs: Numbers, reference_logprobs: Numbers) -> np.ndarray:
    """The estimate of KL(policy || reference) from each of N completions sampled from the policy, [N], in nats.

    log pi(y|x) - log pi_ref(y|x) of the whole completion, whose mean over samples is unbiased; a single one may be
    negative (k1 of Schulman, "Approximating KL Divergence", 2020, http://joschu.net/blog/kl-approx.html).

    Args:
        logprobs, reference_logprobs: [N], sums over the tokens of a completion.
    """
    return np.asarray(logprobs, np.float64) - np.asarray(reference_logprobs, np.float64)


def perplexity(logprob_sum: float, num_tokens: int) -> float:
    """exp of the mean negative log-probability a token."""
    with np.errstate(over="ignore"):  # beyond 709 nats a token it is infinite
        return float(np.exp(-logprob_sum / num_tokens)) if num_tokens else float("nan")


# The share of the selected rows below which an effective sample size means that few rows carry the run.
FEW_ROWS = 0.1


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted rows would carry as much information (Kish, 1965)."""
    weights = np.asarray(weights, np.float64)
    total = weights.sum()
    return float(total**2 / np.square(weights).sum()) if total > 0 else 0.0
