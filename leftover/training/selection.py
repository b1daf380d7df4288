"""Which rows a policy trains on, how likely each is drawn, and in what order. Functions of the row constants."""

import logging
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from leftover.errors import PYTHON, UserError
from leftover.objectives import Columns, Objective
from leftover.objectives.advantage import beyond_rounding, leftover_mask
from leftover.objectives.requirements import ROW_NUMBERS, check_groups, check_requirements
from leftover.recipe.lol_config import LoLConfig, objective_of, objective_settings
from leftover.store.table import column, list_lengths
from leftover.training.draws import DrawOrder, draw_batches
from leftover.training.released_draws import released_order

log = logging.getLogger(__name__)

# No model could read more in one pass; a log may hold a prompt with a hundred thousand completions.
MOST_TOKENS_OF_A_GROUP = 2**20


class Selection(NamedTuple):
    """The rows that may be drawn, [N] bool, and their drawing weights, [N], 0 outside.

    `facts`, of an objective of groups: how many prompts it draws from, and how many it cannot use (one completion, or
    all alike).
    """

    selected: np.ndarray
    weights: np.ndarray
    facts: dict[str, int]


def training_columns(rows: Dataset) -> Columns:
    """The numbers of prepared training rows that selection and draws depend on, [N] each."""
    columns = {name: column(rows, name) for name in (*ROW_NUMBERS, "group") if name in rows.column_names}
    if "is_chosen" in rows.column_names:
        columns["is_chosen"] = column(rows, "is_chosen").astype(np.float64)  # true, false or none
    if {"reward", "advantage"} <= columns.keys():  # those that a user prepared, or an earlier version
        columns["advantage"] = beyond_rounding(columns["advantage"], columns["reward"])
    columns["length"] = list_lengths(rows, "prompt_ids") + list_lengths(rows, "completion_ids")
    return columns


def select_rows(
    objective: Objective, columns: Columns, rows: str, top_percent: float, settings: Any = None
) -> np.ndarray:
    """[N] bool, the rows that may be drawn.

    rows: all; leftover (advantage > 0); top (the `top_percent` % of highest reward); best (of every prompt the row of
    highest reward); auto (the objective's own). Of equal rewards the earlier rows are taken. Rows without a number that
    this choice or the objective needs are not selected.
    """
    rows = objective.rows if rows == "auto" else rows
    chosen_by = {"leftover": "advantage", "top": "reward", "best": "reward"}.get(rows)
    if chosen_by and (chosen_by not in columns or not np.isfinite(columns[chosen_by]).any()):
        raise UserError(f"rows: {rows} needs the column '{chosen_by}', which no training row has")
    needs = objective.needs(settings or objective.settings())
    selected = np.ones(len(next(iter(columns.values()))), bool)
    for name in ROW_NUMBERS:
        if name in needs or name == chosen_by:
            selected &= np.isfinite(columns[name])
    if rows == "leftover":
        selected &= leftover_mask(columns["advantage"])
        if not selected.any():
            raise UserError(
                "no training row has a positive advantage: every reward is at or below its value estimate"
                f"{_ranges(columns)}, so nothing is left over to train on. Are all rewards equal, or did the "
                "reference's own samples score higher than the rows? 'recorded' value targets compare the rows with "
                "one another"
            )
    if rows in ("top", "best"):
        scored = np.flatnonzero(selected)
        ranked = scored[np.argsort(-columns["reward"][scored], kind="stable")]
        if rows == "top":
            taken = ranked[: max(1, round(len(scored) * top_percent / 100))]
        else:
            taken = ranked[np.unique(columns["group"][ranked], return_index=True)[1]]
        selected = np.isin(np.arange(len(selected)), taken)
    return selected


def _ranges(columns: Columns) -> str:
    if not {"reward", "value"} <= columns.keys():
        return ""
    ends = [f(columns[name]) for name in ("reward", "value") for f in (np.nanmin, np.nanmax)]
    return " (rewards {:.4g} to {:.4g}, values {:.4g} to {:.4g})".format(*ends)


def draw_weights(objective: Objective, columns: Columns, selected: np.ndarray, draw: str) -> np.ndarray:
    """[N] drawing weights, 0 outside the selection.

    priority and priority_unweighted draw in proportion to the objective's own weight (advantage or reward, its
    positive part); uniform draws the selected rows with equal probability.
    """
    if draw == "uniform" or objective.draw_by is None:
        return selected.astype(np.float64)
    weights = np.where(selected, np.clip(np.nan_to_num(columns[objective.draw_by]), 0.0, None), 0.0)
    if not weights.sum() > 0:
        raise UserError(f"no selected row has a positive {objective.draw_by}: there is nothing to draw by priority")
    return weights


def total_weights(args: LoLConfig, columns: Columns, drawing: np.ndarray) -> np.ndarray:
    """[N] how much every row weighs in a run, up to a factor: how often it is drawn, times its weight in the loss.

    Drawn by A and multiplied by A, a row weighs A^2. What importance weights add is not known before training.
    """
    objective = objective_of(args)
    if objective.row_weight is not None:
        return drawing * np.nan_to_num(objective.row_weight(columns, objective_settings(args)))
    if objective.draw_by is None or args.draw == "priority_unweighted":
        return drawing
    return drawing * np.clip(np.nan_to_num(columns[objective.draw_by]), 0.0, None)


def selection(args: LoLConfig, columns: Columns) -> Selection:
    """What the settings select of the training rows. Raises UserError if the rows cannot serve the objective."""
    objective, settings, who = objective_of(args), objective_settings(args), f"the objective '{args.objective}'"
    check_requirements(who, objective, columns, settings, names=PYTHON)  # whose rows were checked before
    selected = select_rows(objective, columns, args.rows, args.top_percent, settings)
    if objective.usable is None:
        weights = draw_weights(objective, columns, selected, "priority" if by_priority(args) else "uniform")
        return Selection(selected, weights, {})
    check_groups(who, objective, columns["group"][selected])
    usable = objective.usable(columns, selected)
    given, taken = (len(np.unique(columns["group"][rows])) for rows in (selected, usable))
    if taken == 0:
        raise UserError(
            f"{who} compares completions of one prompt by their rewards, and in none of the {given} "
            "prompts do they differ"
        )
    dropped = given - taken
    log.info(
        "%s: %d prompts with completions to compare; %d dropped (one completion, or all alike)",
        args.objective, taken, dropped,
    )  # fmt: skip
    # Groups of any size are drawn with equal probability: the weights of each sum to 1.
    _, member_of = np.unique(columns["group"], return_inverse=True)
    sizes = np.bincount(member_of, usable)
    weights = np.where(usable, 1 / np.maximum(sizes, 1)[member_of], 0.0)
    return Selection(usable, weights, {"groups": taken, "groups_left_out": dropped})


def by_priority(args: LoLConfig) -> bool:
    """Whether rows are drawn in proportion to the objective's weight, with replacement; groups never are."""
    objective = objective_of(args)
    weighted = args.draw == "auto" and objective.draw_by is not None
    return objective.unit == "completion" and (args.draw.startswith("priority") or weighted)


def _check_group_sizes(args: LoLConfig, groups: np.ndarray, lengths: np.ndarray) -> None:
    """Raises UserError if the rows of a prompt are too many for one pass."""
    _, member_of = np.unique(groups, return_inverse=True)
    rows, tokens = np.bincount(member_of), np.bincount(member_of, lengths)
    largest = int(tokens.argmax())
    if tokens[largest] > MOST_TOKENS_OF_A_GROUP:
        raise UserError(
            f"{args.objective} trains on all rows of a prompt at once, and a prompt has {rows[largest]:,} rows, of "
            f"{tokens[largest]:,.0f} tokens; at most {MOST_TOKENS_OF_A_GROUP:,} can pass: give fewer of its rows, or "
            "take an objective of single completions without whole_groups"
        )


def run_order(args: LoLConfig, columns: Columns, selected: np.ndarray, weights: np.ndarray) -> tuple[DrawOrder, int]:
    """The batches of a whole run and its optimizer steps: `max_steps`, or epochs over the SELECTED rows.

    Epochs end with a whole step: the batches of one that would be incomplete are left out, unless it is the only one.
    """
    if args.released_code:
        return released_order(args, objective_of(args), columns, selected, weights, by_priority(args))
    # Only the selected rows of a group are drawn; a single row that is not selected has a weight of 0.
    by_group = args.whole_groups or objective_of(args).unit == "group"
    rows = np.flatnonzero(selected) if by_group else np.arange(len(selected))
    if by_group:
        _check_group_sizes(args, columns["group"][rows], columns["length"][rows])
    weights, group = weights[rows], columns["group"][rows] if by_group else None
    world, per_step = args.world_size, args.gradient_accumulation_steps * args.world_size
    options: dict[str, Any] = {
        "lengths": columns["length"][rows] if args.length_bucketing or args.max_tokens_per_batch else None,
        "groups": group,
        "batch_size": None if args.max_tokens_per_batch else args.per_device_train_batch_size,
        "max_tokens": args.max_tokens_per_batch,
        "replacement": by_priority(args),
        "seed": args.data_seed if args.data_seed is not None else args.seed,
    }
    if args.max_steps <= 0:
        num_units = int(selected.sum()) if group is None else len(np.unique(group))
        order = draw_batches(weights, int(np.ceil(args.num_train_epochs * num_units)), **options)
        # Whole steps alone, so that the run is the same whatever number of processes shares its steps.
        num_batches = order.num_batches - order.num_batches % (per_step if order.num_batches >= per_step else world)
        max_steps = -(-num_batches // per_step)
    else:
        max_steps, num_batches = args.max_steps, args.max_steps * per_step
        num_units = num_batches * args.per_device_train_batch_size
        order = draw_batches(weights, num_units, **options)
        while order.num_batches < num_batches:  # a token budget may fill a batch with more rows
            num_units *= 2
            order = draw_batches(weights, num_units, **options)
    indices = rows[order.indices[: order.offsets[num_batches]]]
    return DrawOrder(indices, order.offsets[: num_batches + 1]), max_steps
