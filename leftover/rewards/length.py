"""What length alone explains of a score, so that it can be taken off (`reward.length`). Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leftover.objectives.advantage import spread

# Where a spline of five knots has them (Harrell, Regression Modeling Strategies, 2nd edition, 2015, table 2.3).
_QUANTILES = (0.05, 0.275, 0.5, 0.725, 0.95)
# A curve through fewer rows a knot would take off what single rows are worth.
_ROWS_A_KNOT = 10


def text_lengths(completions: Sequence[str]) -> np.ndarray:
    """[N] float64: the characters of each text that are no white space.

    Not words: writing systems without spaces have none, and a policy would learn to leave the spaces out. Not white
    space: it would learn to pad with it. Not the logarithm: scores that add up over a text would then rise with length
    again beyond the longest rows.
    """
    return np.array([sum(map(len, text.split())) for text in completions], np.float64)


def fit_length(debias: str, scores: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """What length explains of training scores, for `explained`, as JSON; rows without a score (NaN) do not count.

    f = argmin sum_i (score_i - f(length_i))^2 over natural cubic splines, given by their values at the knots: two knots
    for `linear` (a straight line), five at quantiles of length for `spline`. Outside the knots f is straight. Below 50
    rows a spline is a line; of fewer than 20, or equal scores or lengths, f is a constant, which takes nothing off.

    Returns:
        knots (characters) and the values of f there; mean: of f over the rows; r2: the share of the scores' variance
        that f explains; slope: by how much f rises between the outer knots, for 100 characters; rows.
    """
    known = np.isfinite(scores)
    scores, lengths = scores[known], lengths[known]
    variance = spread(scores) ** 2 if len(scores) else 0.0
    knots = _knots(debias, lengths) if variance > 0 else np.empty(0)
    found: dict[str, Any] = {"debias": debias, "rows": len(scores), "knots": knots.tolist()}
    if len(knots) < 2:
        return found | {"values": [0.0] * len(knots), "mean": 0.0, "r2": 0.0, "slope": 0.0}
    basis = _basis(knots, lengths)
    values = np.linalg.lstsq(basis, scores)[0]
    fitted = basis @ values
    return found | {
        "values": values.tolist(),
        "mean": float(fitted.mean()),
        "r2": max(0.0, 1 - float(np.square(scores - fitted).mean()) / variance),
        "slope": 100 * float((values[-1] - values[0]) / (knots[-1] - knots[0])),
    }


def explained(fitted: dict[str, Any], lengths: np.ndarray) -> np.ndarray:
    """[N] f(length) - mean f: what `fit_length` found length to add to a score, 0 on average over training rows.

    0 for a text without characters: no row is one, and to take off what a line far below the rows says would pay for
    silence.
    """
    if len(fitted["knots"]) < 2:
        return np.zeros(len(lengths))
    found = _basis(np.array(fitted["knots"]), lengths) @ np.array(fitted["values"]) - fitted["mean"]
    return np.where(lengths > 0, found, 0.0)


def _knots(debias: str, lengths: np.ndarray) -> np.ndarray:
    """Lengths of rows, ascending: two or five that differ; fewer than two if there is nothing to fit."""
    if len(lengths) < 2 * _ROWS_A_KNOT:
        return np.empty(0)
    knots = np.empty(0)
    if debias == "spline" and len(lengths) >= len(_QUANTILES) * _ROWS_A_KNOT:
        knots = np.unique(np.quantile(lengths, _QUANTILES, method="nearest"))
    return knots if len(knots) > 1 else np.unique([lengths.min(), lengths.max()])


def _basis(knots: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N, K]: the natural cubic splines that are 1 at one knot and 0 at the others, straight outside the knots."""
    from scipy.interpolate import CubicSpline

    splines = CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    inside = np.clip(lengths, knots[0], knots[-1])
    return splines(inside) + splines(inside, 1) * (lengths - inside)[:, None]
