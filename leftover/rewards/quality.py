"""How well a fitted reward orders rows that it did not see: rank statistics with intervals clustered by family."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from leftover.metrics import Interval

_MAX_ROWS_OF_A_PROMPT = 1000  # their pairs are counted: half a million


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: how often a row of label 1 is scored above one of label 0, ties one half.

    `weights` [N] says how often each row counts (whole numbers). NaN where one of the labels is missing.
    """
    return _auc(_places(scores), labels, np.ones(len(labels)) if weights is None else weights)


def spearman(scores: np.ndarray, rewards: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Spearman's rank correlation, row i counted `weights[i]` times. NaN where a side is constant."""
    return _spearman(_places(scores), _places(rewards), np.ones(len(scores)) if weights is None else weights)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(weights [N])` when whole clusters are drawn with replacement.

    For statistics that are no means (for those: `leftover.metrics.bootstrap_interval`). Resamples in which it is not
    defined (NaN) are left out; the ends are NaN where it is defined in less than half of them.
    """
    ids = np.unique(np.asarray(clusters), return_inverse=True)[1]
    num_clusters = int(ids.max()) + 1
    rng = np.random.default_rng(seed)
    draws = (rng.integers(num_clusters, size=num_clusters) for _ in range(num_resamples))
    values = np.array([statistic(np.bincount(drawn, minlength=num_clusters)[ids]) for drawn in draws])
    values = values[np.isfinite(values)]
    ends = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]) if 2 * len(values) > num_resamples else ()
    low, high = map(float, ends) if len(ends) else (np.nan, np.nan)
    return Interval(float(statistic(np.ones(len(ids)))), low, high)


def same_prompt_accuracy(scores: np.ndarray, rewards: np.ndarray, prompts: Sequence[str]) -> tuple[float, int]:
    """Share of pairs of one prompt with unequal rewards that the scores put in order (ties one half), and their number.

    This is what a policy can gain from the score: which prompt it answers is not its choice. NaN without pairs. Of a
    prompt's rows the first 1,000 are compared.
    """
    ids = np.unique(np.asarray(prompts), return_inverse=True)[1]
    order = np.argsort(ids, kind="stable")
    right, pairs = 0.0, 0
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        chosen = rows[:_MAX_ROWS_OF_A_PROMPT]
        above = np.sign(np.subtract.outer(rewards[chosen], rewards[chosen])) > 0
        ordered = np.sign(np.subtract.outer(scores[chosen], scores[chosen]))
        right += float((0.5 + 0.5 * ordered[above]).sum())
        pairs += int(above.sum())
    return (right / pairs if pairs else float("nan")), pairs


def held_out_facts(
    target: str, scores: np.ndarray, rewards: np.ndarray, families: Sequence[str], prompts: Sequence[str], pairs: Any
) -> dict[str, Any]:
    """What is said of a scorer on held-out rows, for JSON: a statistic of `target` with its 95 % interval.

    label: AUC. score: Spearman. pairs [P, 2] of rows (chosen, rejected): share whose chosen row is scored higher.
    """
    from leftover.metrics import bootstrap_interval

    facts: dict[str, Any] = {"held_out_rows": len(scores), "held_out_families": len(set(families))}
    if target == "pairs":
        difference = scores[pairs[:, 0]] - scores[pairs[:, 1]]
        families = [families[i] for i in pairs[:, 0]]
        interval = bootstrap_interval((np.sign(difference) + 1) / 2, families)
        return facts | {"held_out_pairs": len(pairs), "held_out_pair_accuracy": _rounded(*interval)}
    places, of_rewards = _places(scores), _places(rewards)
    if target == "label":
        interval = bootstrap(lambda weights: _auc(places, rewards, weights), families)
        facts["held_out_auc"] = _rounded(*interval)
    else:
        interval = bootstrap(lambda weights: _spearman(places, of_rewards, weights), families)
        facts["held_out_spearman"] = _rounded(*interval)
    accuracy, count = same_prompt_accuracy(scores, rewards, prompts)
    if count:
        facts |= {"same_prompt_pairs": count, "same_prompt_accuracy": round(accuracy, 4)}
    return facts


def _rounded(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": value, "low": low, "high": high}
    return {name: round(float(number), 4) if np.isfinite(number) else None for name, number in numbers.items()}


def _places(values: np.ndarray) -> np.ndarray:
    """[N] int: the place of every value among the distinct values, ascending."""
    return np.unique(values, return_inverse=True)[1]


def _ranks(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks from 1, those of a tie averaged, where row i stands `weights[i]` times."""
    at = np.bincount(places, weights)
    return (np.cumsum(at) - (at - 1) / 2)[places]


def _auc(places: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    ones = weights @ labels
    zeros = weights.sum() - ones
    if ones == 0 or zeros == 0:
        return float("nan")
    # Mann and Whitney's U: the rank sum of label 1, less the smallest that it can be.
    return float(((weights * labels) @ _ranks(places, weights) - ones * (ones + 1) / 2) / (ones * zeros))


def _spearman(places: np.ndarray, others: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    a, b = _ranks(places, weights), _ranks(others, weights)
    a, b = a - weights @ a / total, b - weights @ b / total
    spread = (weights @ a**2) * (weights @ b**2)
    return float(weights @ (a * b) / spread**0.5) if spread > 0 else float("nan")
