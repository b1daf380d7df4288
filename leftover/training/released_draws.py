"""The draws of the released code (github.com/abaheti95/LoL-RL), for `released_code: true`.

Its draws in proportion to a weight do not depend on the seed, so that two runs of one seed differ. Here they do not
depend on `seed` and `data_seed` either, but are the same in every run, so that a killed run can continue.
"""

import numpy as np

from leftover.errors import UserError
from leftover.objectives import Columns, Objective
from leftover.recipe.lol_config import LoLConfig
from leftover.training.draws import DrawOrder

# Rows a draw in proportion to a weight in the assistant script, at any batch size.
_LITERAL_BATCH = 4
_SEED = 0


def released_order(
    args: LoLConfig, objective: Objective, columns: Columns, selected: np.ndarray, weights: np.ndarray, priority: bool
) -> tuple[DrawOrder, int]:
    """The batches of a whole run and its optimizer steps, as the script draws them.

    Draws with replacement: by priority, and in the assistant script also uniformly among the leftover rows ("good
    random"). Otherwise epochs are shuffled, by `seed`.
    """
    if args.world_size > 1:
        raise UserError("released_code draws as the released scripts do, in one process: start it on one")
    if objective.unit == "group":
        raise UserError(f"the released code has no '{args.objective}': leave released_code out for it")
    assistant = args.released_script == "assistant"
    among_leftover = args.rows == "leftover" or (args.rows == "auto" and objective.rows == "leftover")
    drawn = priority or (assistant and among_leftover)
    size = _LITERAL_BATCH if drawn and assistant else args.per_device_train_batch_size
    share = _positive_share(columns, assistant) if drawn and among_leftover else 1.0
    batches, steps = (_assistant_length if assistant else _tasks_length)(args, len(selected), size, share)
    if drawn:
        rows = np.random.default_rng(_SEED).choice(len(weights), (batches, size), p=weights / weights.sum())
        return DrawOrder(rows.reshape(-1).astype(np.int64), np.arange(batches + 1) * size), steps
    return _shuffled(args, np.flatnonzero(selected), size, batches, keep_rest=not assistant), steps


def _positive_share(columns: Columns, assistant: bool) -> float:
    """The share of rows by which the run is shortened; the tasks script counts A = 0 as left over here."""
    if "advantage" not in columns:  # not known yet, in a dry run
        return 1.0
    advantage = columns["advantage"][np.isfinite(columns["advantage"])]
    return float((advantage > 0).mean()) if assistant else 1 - float((advantage < 0).mean())


def _assistant_length(args: LoLConfig, num_rows: int, size: int, share: float) -> tuple[int, int]:
    """`max_steps` (or those of the epochs over all rows), times the leftover share."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * num_rows) // per_step
    steps = max(1, int(steps * share))
    return steps * args.gradient_accumulation_steps, steps


def _tasks_length(args: LoLConfig, num_rows: int, size: int, share: float) -> tuple[int, int]:
    """Epochs of the leftover share of batches and one more; each drops what does not fill an accumulation."""
    in_epoch = -(-num_rows // size)
    in_epoch = min(in_epoch, int(in_epoch * share) + 1)
    accumulation = args.gradient_accumulation_steps
    steps = max(1, int(args.num_train_epochs * (in_epoch // accumulation)))
    steps = min(steps, args.max_steps) if args.max_steps > 0 else steps
    return steps * accumulation, steps


def _shuffled(args: LoLConfig, rows: np.ndarray, size: int, num_batches: int, keep_rest: bool) -> DrawOrder:
    """Epochs in random order; the rows that do not fill a batch at its end are kept in a smaller one, or dropped."""
    if len(rows) < size and not keep_rest:
        raise UserError(f"released_code: {len(rows)} rows do not fill a batch of {size}")
    generator = np.random.default_rng(args.data_seed if args.data_seed is not None else args.seed)
    batches: list[np.ndarray] = []
    while len(batches) < num_batches:
        order = generator.permutation(rows)
        whole = np.split(order, range(size, len(order), size))
        # An epoch ends at a whole optimizer step in the tasks script.
        whole = whole[: len(whole) - len(whole) % args.gradient_accumulation_steps] if keep_rest else whole
        batches += [batch for batch in whole if keep_rest or len(batch) == size]
        if not batches:
            raise UserError(f"released_code: {len(rows)} rows do not fill one optimizer step")
    batches = batches[:num_batches]
    offsets = np.cumsum([0, *(len(batch) for batch in batches)])
    return DrawOrder(np.concatenate(batches).astype(np.int64), offsets)
