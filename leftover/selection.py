"""Which rows a policy trains on, and how likely each is drawn. Pure functions of the row constants."""

import numpy as np

from leftover.errors import UserError
from leftover.objectives import Objective

Columns = dict[str, np.ndarray]


def check_requirements(name: str, objective: Objective, columns: Columns) -> None:
    """Refuse an objective that the rows cannot serve, before anything is computed."""
    for column in sorted(objective.requires - {"nonnegative_reward", "reference_logprobs"}):
        if column not in columns or not np.isfinite(columns[column]).any():
            raise UserError(f"objective '{name}' needs the column '{column}', which no training row has")
    if "nonnegative_reward" in objective.requires:
        negative = int((columns["reward"] < 0).sum())
        if negative:
            raise UserError(
                f"objective '{name}' needs rewards >= 0 (a negative one would train against its row): {negative} of "
                f"{len(columns['reward'])} rows are below 0, the lowest {np.nanmin(columns['reward']):.4g}; set "
                "reward.transform (minmax, sigmoid, quantile, or a scale and an offset)"
            )


def select_rows(objective: Objective, columns: Columns, rows: str, top_percent: float) -> np.ndarray:
    """[N] bool, the rows that may be drawn.

    rows: all; leftover (advantage > 0); top (the `top_percent` % of highest reward; of equal rewards the earlier
    rows); auto (leftover where the objective is weighted by the advantage, else all). Rows that lack the reward
    or the advantage a choice or an objective needs are not selected.
    """
    if rows == "auto":
        rows = "leftover" if objective.draw_by == "advantage" else "all"
    needed = {"leftover": "advantage", "top": "reward"}.get(rows)
    if needed and (needed not in columns or not np.isfinite(columns[needed]).any()):
        raise UserError(f"rows: {rows} needs the column '{needed}', which no training row has")
    selected = np.ones(len(next(iter(columns.values()))), bool)
    if "reward" in objective.requires or rows == "top":
        selected &= np.isfinite(columns["reward"])
    if rows == "leftover":
        selected &= np.nan_to_num(columns["advantage"], nan=-1.0) > 0
        if not selected.any():
            raise UserError(
                "no training row has a positive advantage: every reward is at or below its value estimate (are all "
                "rewards equal?); there is nothing left over to train on"
            )
    if rows == "top":
        scored = np.flatnonzero(selected)
        num_top = max(1, round(len(scored) * top_percent / 100))
        best = scored[np.argsort(-columns["reward"][scored], kind="stable")[:num_top]]
        selected = np.isin(np.arange(len(selected)), best)
    return selected


def draw_weights(objective: Objective, columns: Columns, selected: np.ndarray, draw: str) -> np.ndarray:
    """[N] drawing weights, 0 outside the selection.

    priority and priority_unweighted draw in proportion to the objective's own weight (advantage or reward, its
    positive part); uniform draws the selected rows alike.
    """
    if draw == "uniform" or objective.draw_by is None:
        return selected.astype(np.float64)
    weights = np.where(selected, np.clip(np.nan_to_num(columns[objective.draw_by]), 0.0, None), 0.0)
    if not weights.sum() > 0:
        raise UserError(f"no selected row has a positive {objective.draw_by}: there is nothing to draw by priority")
    return weights
