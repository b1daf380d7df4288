"""How well a fitted reward orders held-out rows: rank statistics with intervals clustered by family.

AUC and Spearman's correlation are functions of row weights here: ranks are counted once, and each of the thousands of
resamples of a bootstrap repeats rows by their weight.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from leftover.metrics import Interval, bootstrap_ends, bootstrap_interval, pair_accuracy
from leftover.rewards.examples import Examples
from leftover.rewards.features import prompt_text

_MAX_ROWS_OF_A_PROMPT = 1000  # their pairs are counted: half a million

Weighted = Callable[[np.ndarray], float]


def auc(scores: np.ndarray, labels: np.ndarray) -> Weighted:
    """Area under the ROC curve: how often a row of label 1 is scored above one of label 0, ties one half.

    Returns a function of weights [N], how often each row counts; it is NaN if one of the labels is missing.
    """
    places = _places(scores)

    def weighted(weights: np.ndarray) -> float:
        ones = weights @ labels
        zeros = weights.sum() - ones
        if ones == 0 or zeros == 0:
            return float("nan")
        # Mann and Whitney's U: the rank sum of label 1, less the smallest that it can be.
        return float(((weights * labels) @ _ranks(places, weights) - ones * (ones + 1) / 2) / (ones * zeros))

    return weighted


def spearman(scores: np.ndarray, rewards: np.ndarray) -> Weighted:
    """Spearman's rank correlation as a function of weights [N]; NaN if a side is constant."""
    places, others = _places(scores), _places(rewards)

    def weighted(weights: np.ndarray) -> float:
        total = weights.sum()
        a, b = _ranks(places, weights), _ranks(others, weights)
        a, b = a - weights @ a / total, b - weights @ b / total
        spread = (weights @ a**2) * (weights @ b**2)
        return float(weights @ (a * b) / spread**0.5) if spread > 0 else float("nan")

    return weighted


def bootstrap(statistic: Weighted, clusters: np.ndarray, limits: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """A statistic of weighted rows with its 95 % interval (see `bootstrap_ends`) by the clusters [N] of the rows."""
    ids = np.unique(clusters, return_inverse=True)[1]
    num_clusters = int(ids.max()) + 1
    value = statistic(np.ones(len(ids)))
    if num_clusters == 1:
        return Interval(value, value, value)

    def resampled(drawn: np.ndarray) -> np.ndarray:
        return np.array([statistic(np.bincount(one, minlength=num_clusters)[ids]) for one in drawn])

    return Interval(value, *bootstrap_ends(resampled, num_clusters, limits=limits))


def held_out_facts(scores: np.ndarray, rows: Examples) -> dict[str, Any]:
    """The quality of scores [N] of held-out rows, for JSON: a statistic of their target with its 95 % interval.

    label: AUC. score: Spearman. pairs: share whose chosen row is scored higher.
    """
    facts: dict[str, Any] = {"held_out_rows": len(scores), "held_out_families": len(set(rows.families))}
    if rows.target == "pairs":
        chosen, rejected = rows.pairs.T
        shares = (np.sign(scores[chosen] - scores[rejected]) + 1) / 2
        interval = bootstrap_interval(shares, rows.families[chosen], limits=(0, 1))
        return facts | {"held_out_pairs": len(chosen), "held_out_pair_accuracy": _rounded(interval)}
    name, statistic, lowest = ("auc", auc, 0) if rows.target == "label" else ("spearman", spearman, -1)
    facts[f"held_out_{name}"] = _rounded(bootstrap(statistic(scores, rows.scores), rows.families, (lowest, 1)))
    prompts = [prompt_text(prompt) for prompt in rows.prompts]
    accuracy, count = pair_accuracy(scores, rows.scores, prompts, max_group_rows=_MAX_ROWS_OF_A_PROMPT)
    if count:
        facts |= {"same_prompt_pairs": count, "same_prompt_accuracy": round(accuracy, 4)}
    return facts


def _rounded(interval: Interval) -> dict[str, float | None]:
    numbers = zip(("value", "low", "high"), interval, strict=True)
    return {name: round(float(number), 4) if np.isfinite(number) else None for name, number in numbers}


def _places(values: np.ndarray) -> np.ndarray:
    """[N] int: the place of every value among the distinct values, ascending."""
    return np.unique(values, return_inverse=True)[1]


def _ranks(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks from 1, those of a tie averaged, where row i stands `weights[i]` times."""
    at = np.bincount(places, weights)
    return (np.cumsum(at) - (at - 1) / 2)[places]
