"""How well V(x) predicts the mean reward of a prompt's rows."""

from typing import Any

import numpy as np


def calibration(values: np.ndarray, rewards: np.ndarray, *, num_bins: int = 10) -> dict[str, Any]:
    """Mean value against mean reward, in bins of equally many rows by value.

    Args:
        values, rewards: [N]; rows without either are skipped.

    Returns:
        bins: per bin `count`, `value` (mean), `reward` (mean) and `error` (standard error of the latter; None for one
            row). Rows of equal value share a bin, so a constant has one.
        mean_gap: mean over rows of reward - value.
        calibration_error: mean |reward - value| of the bins, weighted by count.
        slope, intercept: of the least-squares line of reward on value; None for a constant value.
    """
    usable = np.isfinite(values) & np.isfinite(rewards)
    values, rewards = np.asarray(values, np.float64)[usable], np.asarray(rewards, np.float64)[usable]
    if not len(values):
        return {"bins": [], "mean_gap": None, "calibration_error": None, "slope": None, "intercept": None}
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)))
    member = np.searchsorted(edges[1:-1], values, side="left") if len(edges) > 2 else np.zeros(len(values), np.int64)
    bins = [_bin(values[member == number], rewards[member == number]) for number in np.unique(member)]
    slope, intercept = (float(x) for x in np.polyfit(values, rewards, 1)) if np.ptp(values) > 0 else (None, None)
    gaps = sum(b["count"] * abs(b["reward"] - b["value"]) for b in bins)
    return {
        "bins": bins,
        "mean_gap": float((rewards - values).mean()),
        "calibration_error": gaps / len(values),
        "slope": slope,
        "intercept": intercept,
    }


def _bin(values: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
    count = len(values)
    error = float(rewards.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return {"count": count, "value": float(values.mean()), "reward": float(rewards.mean()), "error": error}
