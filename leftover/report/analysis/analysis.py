"""The leftover in numbers: what a page about scored rows shows, as one dictionary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leftover.data.splits import unique_ids
from leftover.metrics import effective_sample_size
from leftover.objectives.advantage import differ
from leftover.prepare.value.described import kinds_of_rows
from leftover.report.analysis.neighbours import neighbour_disagreement
from leftover.report.analysis.rows import ScoredRows

_ROWS_SHOWN = 8
_DUPLICATES_SHOWN = 5  # of each kind


def analyse(rows: ScoredRows) -> dict[str, Any]:
    """What `leftover inspect` reports; rows without a reward or a value only count in `without_advantage`.

    Weights of rows are max(A, 0)^2: by default a row is drawn in proportion to A, and its loss multiplied by A.
    """
    advantage = rows.advantage
    known = np.flatnonzero(np.isfinite(advantage))
    positive = advantage[known][advantage[known] > 0]
    ordered = known[np.argsort(-advantage[known], kind="stable")]
    heaviest = ordered[advantage[ordered] > 0][:_ROWS_SHOWN]
    widest = ordered[advantage[ordered] <= 0][::-1][:_ROWS_SHOWN]
    duplicates = find_duplicates(rows.prompts, rows.completions, rows.reward)
    faulty = duplicates.pop("faulty")
    for kind in ("widest", "most_shared"):
        duplicates[kind] = [one | _row(rows, one["row"]) for one in duplicates[kind]]
    return {
        "rows": len(known),
        "without_advantage": len(rows.reward) - len(known),
        "leftover": len(positive),
        "share": len(positive) / max(len(known), 1),
        "effective_sample_size": effective_sample_size(np.square(positive)),
        "top_weight": weight_of_heaviest(np.square(positive)),
        "faulty_dropped": int((faulty[known] & (advantage[known] <= 0)).sum()),
        "looked_at": rows.looked_at,
        "about_value": rows.about_value,
        "kinds": kinds_of_rows(rows.about_value),
        "calibration": calibration(rows.value, rows.reward, fixed=_constants(rows)),
        "by_source": leftover_by_source(rows.sources, rows.reward, advantage),
        "duplicates": duplicates,
        "disagreement": _disagreement(rows, known),
        "heaviest": [_row(rows, i) for i in heaviest],
        "dropped": [_row(rows, i) for i in widest],
        "advantage": advantage[known],
        "reward": rows.reward[known],
        "value": rows.value[known],
    }


def weight_of_heaviest(weights: np.ndarray, share: float = 0.1) -> float | None:
    """The share of all weight that the heaviest `share` of rows carries; None without any weight."""
    if not len(weights) or not weights.sum() > 0:
        return None
    heaviest = np.sort(weights)[::-1][: max(1, round(share * len(weights)))]
    return float(heaviest.sum() / weights.sum())


def _constants(rows: ScoredRows) -> np.ndarray:
    """[N] bool: the rows whose value is one number for their fold."""
    if set(kinds_of_rows(rows.about_value)) == {"constant"}:
        return np.ones(len(rows.value), bool)
    return np.isin(rows.value, rows.about_value.get("constants", []))


def calibration(
    values: np.ndarray, rewards: np.ndarray, *, num_bins: int = 10, fixed: np.ndarray | None = None
) -> dict[str, Any]:
    """How well V(x) predicts the mean reward: both in bins of equally many rows by value.

    Args:
        values, rewards: [N]; rows without either are skipped.
        fixed: [N] bool, rows that are in no slope: the constant of a fold is the mean of the others, and is the lower
            the higher the fold's own rewards are, by nothing but arithmetic.

    Returns:
        bins: each `count`, mean `value`, mean `reward` and its standard `error` (None for one row). Rows of equal value
            share a bin, so a constant has one.
        mean_gap: mean over rows of reward - value.
        calibration_error: mean |reward - value| of the bins, weighted by count.
        slope, intercept: of the least-squares line of reward on value; None for a constant value.
    """
    usable = np.isfinite(values) & np.isfinite(rewards)
    varied = np.ones(int(usable.sum()), bool) if fixed is None else ~fixed[usable]
    values, rewards = np.asarray(values, np.float64)[usable], np.asarray(rewards, np.float64)[usable]
    if not len(values):
        return {"bins": [], "mean_gap": None, "calibration_error": None, "slope": None, "intercept": None}
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)))
    member = np.searchsorted(edges[1:-1], values, side="left")
    bins = []
    for number in np.unique(member):
        value, reward = values[member == number], rewards[member == number]
        error = float(reward.std(ddof=1) / np.sqrt(len(reward))) if len(reward) > 1 else None
        bins.append({"count": len(value), "value": value.mean(), "reward": reward.mean(), "error": error})
    x, y = values[varied], rewards[varied]
    slope, intercept = (float(number) for number in np.polyfit(x, y, 1)) if len(x) and differ(x) else (None, None)
    gaps = sum(b["count"] * abs(b["reward"] - b["value"]) for b in bins)
    return {
        "bins": bins,
        "mean_gap": float((rewards - values).mean()),
        "calibration_error": gaps / len(values),
        "slope": slope,
        "intercept": intercept,
    }


def leftover_by_source(
    sources: Sequence[str | None], rewards: np.ndarray, advantages: np.ndarray, *, max_sources: int = 20
) -> list[dict[str, Any]]:
    """For every source its leftover share with a 95 % interval, and its share of the weight max(A, 0)^2.

    Largest share first; empty for fewer than two sources. Rows without an advantage (NaN) are skipped; sources beyond
    the `max_sources` largest are merged into one named None.
    """
    known = np.isfinite(advantages)
    places: dict[str, int] = {}
    member = np.fromiter((places.setdefault(str(source), len(places)) for source in sources), np.int64)[known]
    rewards, advantages = rewards[known], advantages[known]
    found, counts = list(places), np.bincount(member, minlength=len(places))
    kept = sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], found[i]))
    if len(kept) < 2:
        return []
    most = kept if len(kept) <= max_sources else kept[: max_sources - 1]
    parts: list[tuple[str | None, np.ndarray]] = [(found[i], member == i) for i in most]
    if len(most) < len(kept):
        parts.append((None, ~np.isin(member, most)))
    weights = np.square(np.clip(advantages, 0.0, None))
    table = []
    for name, inside in parts:
        rows, leftover = int(inside.sum()), int((advantages[inside] > 0).sum())
        low, high = wilson_interval(leftover, rows)
        table.append(
            {
                "source": name,
                "rows": rows,
                "leftover": leftover,
                "share": leftover / rows,
                "low": low,
                "high": high,
                "reward": float(rewards[inside].mean()),
                "weight": float(weights[inside].sum() / weights.sum()) if weights.sum() > 0 else 0.0,
            }
        )
    return sorted(table, key=lambda part: -part["share"])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def find_duplicates(prompts: Sequence[str], completions: Sequence[str], rewards: np.ndarray) -> dict[str, Any]:
    """Duplicates among N rows; texts are equal if they differ in case and white space at most.

    Args:
        rewards: [N], NaN if a row has none.

    Returns:
        contradictions: how many prompt-and-completion pairs were given more than one reward.
        contradicting_rows: the rows with a reward of these pairs.
        repeats: of all other pairs the rows beyond the first, which can be dropped and nothing is lost.
        faulty: [N] bool, those repeats and contradicting rows; no row is both.
        pair: [N] a number for every prompt and completion, which rows that repeat one another share.
        shared_completions: rows whose completion stands under more than one prompt.
        widest: the contradictions of the widest spread, each `row`, `count`, `low`, `high`.
        most_shared: the completions under the most prompts, each `row`, `count` of rows, `prompts`.
    """
    asked, said = _ids(prompts), _ids(completions)
    _, first, pair, counts = np.unique(
        asked * (int(said.max(initial=0)) + 1) + said, return_index=True, return_inverse=True, return_counts=True
    )
    low, high = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    scored = np.isfinite(rewards)
    np.minimum.at(low, pair[scored], rewards[scored])
    np.maximum.at(high, pair[scored], rewards[scored])
    spread = np.where(np.isfinite(low), high - low, 0.0)
    widest = [i for i in np.argsort(-spread, kind="stable")[:_DUPLICATES_SHOWN] if spread[i] > 0]

    contradicting = (spread[pair] > 0) & scored
    repeats = (spread[pair] == 0) & (first[pair] != np.arange(len(pair)))

    # One pair is one prompt under its completion, so counting pairs counts prompts.
    _, first_of, of_completion = np.unique(said[first], return_index=True, return_inverse=True)
    num_prompts, num_rows = np.bincount(of_completion), np.bincount(of_completion, counts).astype(int)
    most = [i for i in np.argsort(-num_prompts, kind="stable")[:_DUPLICATES_SHOWN] if num_prompts[i] > 1]
    return {
        "contradictions": int((spread > 0).sum()),
        "contradicting_rows": int(contradicting.sum()),
        "repeats": int(repeats.sum()),
        "faulty": contradicting | repeats,
        "pair": pair,
        "shared_completions": int(num_rows[num_prompts > 1].sum()),
        "widest": [
            {"row": int(first[i]), "count": int(counts[i]), "low": float(low[i]), "high": float(high[i])}
            for i in widest
        ],
        "most_shared": [
            {"row": int(first[first_of[i]]), "count": int(num_rows[i]), "prompts": int(num_prompts[i])} for i in most
        ],
    }


def _ids(texts: Sequence[str]) -> np.ndarray:
    """[N] int64: equal texts share an integer."""
    return unique_ids((" ".join(text.casefold().split()) for text in texts), len(texts))


def _disagreement(rows: ScoredRows, known: np.ndarray) -> dict[str, Any]:
    """Rows ordered by how far their reward is from their neighbours', each with its nearest neighbour."""
    found = neighbour_disagreement(rows.prompts, rows.completions, rows.reward, among=known)
    gap, correlation = rows.reward[found["rows"]] - found["expected"], found["correlation"]
    return {
        "rows": [
            _row(rows, found["rows"][i])
            | {"expected": float(found["expected"][i]), "neighbour": _row(rows, found["neighbours"][i][0])}
            for i in np.argsort(-np.abs(gap) * found["similarity"], kind="stable")[:_ROWS_SHOWN]
        ],
        "correlation": correlation if np.isfinite(correlation) else None,
        "num_compared": found["num_compared"],
        "num_alike": len(found["rows"]),
    }


def _row(rows: ScoredRows, i: int) -> dict[str, Any]:
    numbers = {"reward": rows.reward[i], "value": rows.value[i], "advantage": rows.advantage[i]}
    return {
        "prompt": rows.prompts[i],
        "completion": rows.completions[i],
        "source": rows.sources[i],
        "where": rows.where[i],
        **{name: float(number) if np.isfinite(number) else None for name, number in numbers.items()},
    }
