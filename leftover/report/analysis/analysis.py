"""The leftover in numbers: what a page about scored rows shows, as one dictionary."""

from typing import Any

import numpy as np

from leftover.metrics import effective_sample_size
from leftover.report.analysis.calibration import calibration
from leftover.report.analysis.duplicates import find_duplicates
from leftover.report.analysis.neighbours import neighbour_disagreement
from leftover.report.analysis.rows import ScoredRows
from leftover.report.analysis.sources import leftover_by_source

_ROWS_SHOWN = 8


def analyse(rows: ScoredRows, *, seed: int = 0) -> dict[str, Any]:
    """What `leftover inspect` reports about rows; arrays for pictures under `advantage`, `reward` and `value`.

    Rows without a reward or a value are counted in `without_advantage` and nowhere else.
    """
    advantage = rows.advantage
    known = np.flatnonzero(np.isfinite(advantage))
    positive = advantage[known][advantage[known] > 0]
    ordered = known[np.argsort(-advantage[known], kind="stable")]
    heaviest = ordered[advantage[ordered] > 0][:_ROWS_SHOWN]
    widest = ordered[advantage[ordered] <= 0][::-1][:_ROWS_SHOWN]
    duplicates = find_duplicates(rows.prompts, rows.completions, rows.reward)
    for kind in ("widest", "most_shared"):
        duplicates[kind] = [one | _row(rows, one["row"]) for one in duplicates[kind]]
    return {
        "rows": len(known),
        "without_advantage": len(rows.reward) - len(known),
        "leftover": len(positive),
        "share": len(positive) / max(len(known), 1),
        "effective_sample_size": effective_sample_size(positive),
        "top_weight": weight_of_heaviest(positive),
        "about_value": rows.about_value,
        "calibration": calibration(rows.value, rows.reward),
        "by_source": leftover_by_source(rows.sources, rows.reward, advantage),
        "duplicates": duplicates,
        "disagreement": _disagreement(rows, known, seed),
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


def _disagreement(rows: ScoredRows, known: np.ndarray, seed: int) -> dict[str, Any]:
    """Rows ordered by how far their reward is from their neighbours', each with its nearest neighbour."""
    found = neighbour_disagreement(
        [rows.prompts[i] for i in known], [rows.completions[i] for i in known], rows.reward[known], seed=seed
    )
    reward = rows.reward[known]
    gap = reward[found["rows"]] - found["expected"]
    shown = []
    for i in np.argsort(-np.abs(gap) * found["similarity"], kind="stable")[:_ROWS_SHOWN]:
        nearest = known[found["neighbours"][i][0]]
        shown.append(
            _row(rows, known[found["rows"][i]])
            | {
                "expected": float(found["expected"][i]),
                "similarity": float(found["similarity"][i]),
                "neighbour": _row(rows, nearest),
            }
        )
    correlation = found["correlation"]
    return {
        "rows": shown,
        "correlation": correlation if np.isfinite(correlation) else None,
        "num_compared": found["num_compared"],
        "num_alike": len(found["rows"]),
        "num_rows": len(known),
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
