"""Which rows a policy trains on, how likely each is drawn, and in what order. Functions of the row constants."""

from typing import Any

import numpy as np

from leftover.draws import DrawOrder, draw_batches
from leftover.errors import UserError
from leftover.objectives import OBJECTIVES, Objective

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
    if "advantage" in objective.requires:
        selected &= np.isfinite(columns["advantage"])
    if rows == "leftover":
        selected &= np.nan_to_num(columns["advantage"], nan=-1.0) > 0
        if not selected.any():
            raise UserError(
                "no training row has a positive advantage: every reward is at or below its value estimate"
                f"{_ranges(columns)}. All rewards equal, or the reference's own samples scored higher than the rows? "
                "There is nothing left over to train on; value targets of the kind 'recorded' compare the rows with "
                "one another"
            )
    if rows == "top":
        scored = np.flatnonzero(selected)
        num_top = max(1, round(len(scored) * top_percent / 100))
        best = scored[np.argsort(-columns["reward"][scored], kind="stable")[:num_top]]
        selected = np.isin(np.arange(len(selected)), best)
    return selected


def _ranges(columns: Columns) -> str:
    if not {"reward", "value"} <= columns.keys():
        return ""
    ends = [f(columns[name]) for name in ("reward", "value") for f in (np.nanmin, np.nanmax)]
    return " (rewards {:.4g} to {:.4g}, values {:.4g} to {:.4g})".format(*ends)


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


def selection(args: Any, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """The rows that `args` (a LoLConfig) selects, [N] bool, and their drawing weights, [N]."""
    objective = OBJECTIVES[args.objective]
    check_requirements(args.objective, objective, columns)
    selected = select_rows(objective, columns, args.rows, args.top_percent)
    return selected, draw_weights(objective, columns, selected, "priority" if by_priority(args) else "uniform")


def by_priority(args: Any) -> bool:
    """Whether rows are drawn in proportion to the objective's weight, with replacement."""
    weighted = OBJECTIVES[args.objective].draw_by is not None
    return args.draw.startswith("priority") or (args.draw == "auto" and weighted)


def run_order(args: Any, columns: Columns, selected: np.ndarray, weights: np.ndarray) -> tuple[DrawOrder, int]:
    """The batches of a whole run and its optimizer steps: `max_steps`, or epochs over the SELECTED rows.

    On several processes every one takes as many batches as the others; an incomplete last round is left out.
    """
    per_step = args.gradient_accumulation_steps * args.world_size
    options: dict[str, Any] = {
        "lengths": columns["length"] if args.length_bucketing or args.max_tokens_per_batch else None,
        "groups": columns["group"] if args.whole_groups or OBJECTIVES[args.objective].unit == "group" else None,
        "batch_size": None if args.max_tokens_per_batch else args.per_device_train_batch_size,
        "max_tokens": args.max_tokens_per_batch,
        "replacement": by_priority(args),
        "seed": args.data_seed if args.data_seed is not None else args.seed,
    }
    if args.max_steps <= 0:
        num_units = int(np.ceil(args.num_train_epochs * _num_units(options["groups"], selected)))
        order = draw_batches(weights, num_units, **options)
        num_batches = order.num_batches - order.num_batches % args.world_size
        max_steps = -(-num_batches // per_step)
    else:
        max_steps, num_batches = args.max_steps, args.max_steps * per_step
        num_units = num_batches * args.per_device_train_batch_size
        order = draw_batches(weights, num_units, **options)
        while order.num_batches < num_batches:  # a token budget may fill a batch with more rows
            num_units *= 2
            order = draw_batches(weights, num_units, **options)
    return DrawOrder(order.indices[: order.offsets[num_batches]], order.offsets[: num_batches + 1]), max_steps


def _num_units(groups: np.ndarray | None, selected: np.ndarray) -> int:
    return int(selected.sum()) if groups is None else len(np.unique(groups[selected]))
