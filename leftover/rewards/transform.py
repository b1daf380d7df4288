"""Transforms of a reward or of one of its components, fitted on training rows and stored with the run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leftover.errors import UserError
from leftover.objectives.advantage import beyond_rounding, spread
from leftover.recipe.forms import Transform

# Quantiles kept of the training rewards: enough for a rank, small enough for a JSON file.
_NUM_QUANTILES = 1001


def needs_fit(spec: Transform | None) -> bool:
    """Whether a transform is fitted on training rewards."""
    return spec in ("quantile", "minmax", "standardise")


def fit_transform(spec: Transform | None, train_rewards: np.ndarray) -> dict[str, Any]:
    """What `apply_transform` needs, as JSON: the name and what was fitted on the training rewards (NaN ignored)."""
    rewards = train_rewards[np.isfinite(train_rewards)]
    if spec in (None, "none"):
        return {"name": "none"}
    if isinstance(spec, dict):
        return {"name": "affine", "scale": spec.get("scale", 1.0), "offset": spec.get("offset", 0.0)}
    if spec == "sigmoid":
        return {"name": "sigmoid"}
    if rewards.size == 0:
        raise UserError(
            f"{spec} (reward.transform, or normalise) is fitted on training rewards, and no training row has one"
        )
    if spec == "standardise":
        scale = 1.0 / (spread(rewards) or 1.0)
        return {"name": "affine", "scale": scale, "offset": -float(rewards.mean()) * scale}
    if spec == "minmax":
        low, high = float(rewards.min()), float(rewards.max())
        # Equal rewards may differ by rounding.
        width = float(beyond_rounding(np.array([high - low]), np.abs(rewards).max(keepdims=True))[0])
        scale = 1.0 / width if width > 0 else 1.0
        return {"name": "affine", "scale": scale, "offset": -low * scale, "clip": [0.0, 1.0]}
    grid = np.quantile(rewards, np.linspace(0, 1, min(_NUM_QUANTILES, rewards.size)))
    return {"name": "quantile", "grid": [float(v) for v in grid]}


def apply_transform(fitted: dict[str, Any], rewards: Sequence[float] | np.ndarray) -> np.ndarray:
    """Transformed rewards, float64; NaN (no score) stays NaN."""
    values = np.asarray(rewards, np.float64)
    if fitted["name"] == "none":
        return values
    if fitted["name"] == "affine":
        out = fitted["scale"] * values + fitted["offset"]
        return np.clip(out, *fitted["clip"]) if "clip" in fitted else out
    if fitted["name"] == "sigmoid":
        with np.errstate(over="ignore"):  # exp(1000) is inf, and 1 / inf the right answer
            return 1 / (1 + np.exp(-values))
    grid = np.asarray(fitted["grid"])
    # The middle of the ranks a tie spans, so that the transform does not depend on the order of equal rewards.
    rank = (np.searchsorted(grid, values, "left") + np.searchsorted(grid, values, "right")) / 2 / len(grid)
    return np.where(np.isnan(values), np.nan, rank)
