"""Statistics of completions and of comparisons: pure functions."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Numbers = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """A mean with the ends of its bootstrap interval."""

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
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval that resamples whole clusters.

    Args:
        values: [N] one number a prompt (a reward, or a paired difference of two methods).
        clusters: [N] ids of prompt families (a story, a conversation); None makes every value its own cluster.

    Returns:
        All NaN without values; low = high = mean for one cluster, which has no spread to resample.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    if array.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    ids = np.arange(len(array)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, counts = np.bincount(ids, array), np.bincount(ids)
    mean = float(array.mean())
    if len(sums) == 1 or np.ptp(array) == 0:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=256,
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def win_rate(rewards: Numbers, other_rewards: Numbers) -> float:
    """Share of prompts on which the first reward is the higher one; a tie counts as one half."""
    ours, theirs = np.asarray(rewards, np.float64), np.asarray(other_rewards, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"win_rate compares prompt by prompt: got {ours.shape} and {theirs.shape}")
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
    return win_rate(np.asarray(rewards)[near], np.asarray(other_rewards)[near]), int(near.sum())


def pair_accuracy(scores: Numbers, rewards: Numbers, groups: Sequence) -> tuple[float, int]:
    """Share of same-prompt pairs with unequal rewards that `scores` puts in the rewards' order; tie one half.

    Returns the share and the number of pairs (NaN and 0 where no prompt has two unequal rewards).
    """
    by_group = defaultdict(list)
    for score, reward, group in zip(scores, rewards, groups, strict=True):
        by_group[group].append((score, reward))
    agreements = [
        (score - other_score) * (reward - other_reward)
        for rows in by_group.values()
        for (score, reward), (other_score, other_reward) in itertools.combinations(rows, 2)
        if reward != other_reward
    ]
    correct = sum(1.0 if agreement > 0 else 0.5 if agreement == 0 else 0.0 for agreement in agreements)
    return (correct / len(agreements) if agreements else float("nan")), len(agreements)


def rank_correlation(scores: Numbers, rewards: Numbers) -> float:
    """Spearman's rank correlation; NaN where either side is constant or there are fewer than three rows."""
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
    return float(np.exp(-logprob_sum / num_tokens)) if num_tokens else float("nan")


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted rows would carry as much information (Kish, 1965)."""
    weights = np.asarray(weights, np.float64)
    total = weights.sum()
    return float(total**2 / np.square(weights).sum()) if total > 0 else 0.0
