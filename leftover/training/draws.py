"""Which rows each batch of a whole run holds: resuming is a slice of this order, each process takes a shard of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from leftover.errors import UserError
from leftover.objectives.groups import members_of

# Batches are formed inside windows of this many batches, so that rows of similar length meet while the order of the run
# stays random. Which rows are drawn is settled before: bucketing changes no row's expected count.
_WINDOW_BATCHES = 64
MOST_DRAWS = 10**9  # two arrays of as many numbers are held


class DrawOrder(NamedTuple):
    """Batch i holds the rows `indices[offsets[i]:offsets[i + 1]]`; both arrays are int64."""

    indices: np.ndarray
    offsets: np.ndarray

    @property
    def num_batches(self) -> int:
        return len(self.offsets) - 1

    def batch(self, i: int) -> np.ndarray:
        """Row indices of batch i, shape [rows in the batch]."""
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    def units_per_batch(self, groups: np.ndarray | None = None) -> float:
        """The mean number of rows in a batch of the run; with `groups` [N] ids, of groups."""
        if groups is None:
            return len(self.indices) / self.num_batches
        return float(np.mean([len(np.unique(groups[self.batch(i)])) for i in range(self.num_batches)]))


class Batches(Sequence):
    """The batches of an order as lists of row numbers, each made when it is asked for."""

    def __init__(self, order: DrawOrder):
        self.order = order

    def __len__(self) -> int:
        return self.order.num_batches

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.order.batch(i).tolist()


def draw_batches(
    weights: np.ndarray | None,
    num_units: int,
    *,
    lengths: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    replacement: bool = True,
    seed: int = 0,
) -> DrawOrder:
    """Draw `num_units` rows (or whole groups) and cut them into batches.

    Args:
        weights: [N] non-negative; a row is drawn in proportion to its weight, a group to the sum over its rows. None:
            all rows weigh the same.
        num_units: how many rows (with `groups`: how many groups) the run draws in all.
        lengths: [N] tokens a row; given, rows of similar length share a batch (see `_WINDOW_BATCHES`).
        groups: [N] ids; given, the unit is a group and all its rows come in one batch.
        batch_size: the most units in a batch.
        max_tokens: the most padded tokens in a batch (rows times the longest row); needs `lengths`. A unit that
            exceeds it forms its own batch.
        replacement: independent draws, or shuffled epochs in which every unit of positive weight comes once, the
            heavier ones tending to come earlier. Epochs do not share batches.

    Returns:
        The order of the whole run. Raises ValueError for weights that are negative, not finite or all zero, and for
        contradictory arguments.
    """
    sizes = {len(column) for column in (weights, lengths, groups) if column is not None}
    if len(sizes) != 1:
        raise ValueError(f"give at least one of weights, lengths, groups, all of one length; got lengths {sizes}")
    if batch_size is None and max_tokens is None:
        raise ValueError("draw_batches needs batch_size, max_tokens or both")
    if num_units > MOST_DRAWS:
        raise UserError(
            f"a run of {num_units:,} draws: at most {MOST_DRAWS:,} can be drawn; lower max_steps (num_train_epochs) or "
            "the batches"
        )
    if max_tokens is not None and lengths is None:
        raise ValueError("max_tokens needs lengths")
    rng, num_rows = np.random.default_rng(seed), sizes.pop()
    members = None if groups is None else members_of(np.asarray(groups))
    unit_weights = _unit_weights(weights, members, num_rows)
    unit_lengths = None if lengths is None else _reduce(np.asarray(lengths), members, np.max)
    unit_rows = _reduce(np.ones(num_rows, np.int64), members, np.sum)

    counts: list[int] = [0]
    indices = [np.empty(0, np.int64)]  # of a window, an array: one for every batch would weigh more
    window = _WINDOW_BATCHES * (batch_size or 64)
    for epoch in _epochs(unit_weights, num_units, replacement, rng):
        for start in range(0, len(epoch), window):
            units = epoch[start : start + window]
            batches = _cut(units, unit_lengths, unit_rows, batch_size, max_tokens, rng)
            if members is not None:
                batches = [np.concatenate([members[unit] for unit in batch]) for batch in batches]
            indices.append(np.concatenate(batches))
            counts += map(len, batches)
    return DrawOrder(np.concatenate(indices).astype(np.int64, copy=False), np.cumsum(counts, dtype=np.int64))


def _reduce(values: np.ndarray, members: list[np.ndarray] | None, how) -> np.ndarray:
    return values if members is None else np.array([how(values[rows]) for rows in members])


def _unit_weights(weights: np.ndarray | None, members: list[np.ndarray] | None, num_rows: int) -> np.ndarray:
    if weights is None:
        return np.ones(num_rows if members is None else len(members))
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be finite and not negative")
    weights = _reduce(weights, members, np.sum)
    if not weights.sum() > 0:
        raise ValueError("no row has a positive weight: there is nothing to draw")
    return weights


def _epochs(weights: np.ndarray, num_units: int, replacement: bool, rng: np.random.Generator):
    """Yield arrays of unit indices, `num_units` in all: one array with replacement, else one per epoch."""
    if replacement:
        yield rng.choice(len(weights), size=num_units, p=weights / weights.sum())
        return
    candidates = np.flatnonzero(weights > 0)
    log_weights = np.log(weights[candidates])
    while num_units > 0:
        # Sorting by log-weight + Gumbel noise is a weighted random order (Efraimidis and Spirakis, 2006).
        order = np.argsort(-(log_weights + rng.gumbel(size=len(candidates))))
        yield candidates[order[:num_units]]
        num_units -= len(candidates)


def _cut(
    units: np.ndarray,
    lengths: np.ndarray | None,
    unit_rows: np.ndarray,
    batch_size: int | None,
    max_tokens: int | None,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Cut one window of units into batches; with lengths, neighbours in length share one, in random order."""
    if lengths is None:
        assert batch_size is not None
        return [units[start : start + batch_size] for start in range(0, len(units), batch_size)]
    units = units[np.argsort(lengths[units], kind="stable")]
    if max_tokens is None:
        assert batch_size is not None
        # The incomplete batch is put at a random place of the sorted window: if it were always the last, the longest
        # rows would train in smaller batches than the rest.
        num_full, rest = divmod(len(units), batch_size)
        sizes = [batch_size] * num_full
        if rest:
            sizes.insert(int(rng.integers(num_full + 1)), rest)
        batches = np.split(units, np.cumsum(sizes)[:-1])
    else:
        batches = _cut_by_tokens(units, lengths, unit_rows, batch_size, max_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut_by_tokens(
    units: np.ndarray, lengths: np.ndarray, unit_rows: np.ndarray, batch_size: int | None, max_tokens: int
) -> list[np.ndarray]:
    batches, start, rows = [], 0, 0
    for position, unit in enumerate(units):
        # Sorted by length, so the newest unit is the longest of the batch.
        too_many_tokens = (rows + unit_rows[unit]) * lengths[unit] > max_tokens
        too_many_units = batch_size is not None and position - start >= batch_size
        if position > start and (too_many_tokens or too_many_units):
            batches.append(units[start:position])
            start, rows = position, 0
        rows += unit_rows[unit]
    batches.append(units[start:])
    return batches
