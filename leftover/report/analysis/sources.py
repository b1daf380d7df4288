"""Which source of the data the leftover comes from."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def leftover_by_source(
    sources: Sequence[str | None], rewards: np.ndarray, advantages: np.ndarray, *, max_sources: int = 20
) -> list[dict[str, Any]]:
    """For every source its rows, leftover share with a 95 % interval (Wilson, 1927), and share of the drawing weight.

    Rows without an advantage (NaN) are skipped; sources beyond the `max_sources` largest are merged into one named
    None. The weight of a row is max(A, 0), by which priority draws. Largest share first; empty for fewer than two
    sources.
    """
    known = np.isfinite(advantages)
    names = np.array([str(source) for source in sources], object)[known]
    rewards, advantages = np.asarray(rewards)[known], np.asarray(advantages)[known]
    found, member, counts = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    if len(found) < 2:
        return []
    kept = np.argsort(-counts, kind="stable")
    if len(found) > max_sources:
        kept = kept[: max_sources - 1]
    parts: list[tuple[str | None, np.ndarray]] = [(str(found[i]), member == i) for i in kept]
    if len(kept) < len(found):
        parts.append((None, ~np.isin(member, kept)))
    weights = np.clip(advantages, 0.0, None)
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
