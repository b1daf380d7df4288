"""Every row with what is known of it: a table to sort and filter, streamed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from leftover.report.analysis.rows import ScoredRows
from leftover.store.table import SHARD_ROWS

TABLE_COLUMNS = (
    "where", "reward", "value", "advantage", "kept", "repeats", "contradicts", "source", "prompt", "completion"
)  # fmt: skip
_RIVALS_SHOWN = 5
_DIGITS_OF_REWARD = 12  # it is the user's own number


def table_rows(rows: ScoredRows, pair: np.ndarray) -> Iterator[dict[str, Any]]:
    """A dictionary for each of the N rows, in their order.

        where               file and line, as the row was read
        reward, value, advantage   None where the row has none
        kept                whether it would train: A > 0
        repeats             the place of the first row with its prompt and completion; None of that row itself, and
                            of rows that contradict one another, which are no mere repeats
        contradicts         places of rows with its prompt and completion and another reward, the first of each reward
        source, prompt, completion

    Args:
        pair: [N] a number for every prompt and completion (`find_duplicates`).
    """
    _, first, of_pair = np.unique(pair, return_index=True, return_inverse=True)
    repeats, rivals = first[of_pair], _rivals(of_pair, rows.reward)
    texts = zip(rows.where, rows.sources, rows.prompts, rows.completions, strict=True)
    for start in range(0, len(pair), SHARD_ROWS):
        part = range(start, min(start + SHARD_ROWS, len(pair)))
        others = {int(repeats[i]) for i in part if repeats[i] != i}
        others |= {row for i in part for row in rivals.get(int(of_pair[i]), _NONE).first}
        places = {row: rows.where[row] for row in sorted(others)}
        for i in part:
            where, source, prompt, completion = next(texts)
            found = rivals.get(int(of_pair[i]), _NONE)
            unlike = [row for row in found.first if rows.reward[row] != rows.reward[i]][:_RIVALS_SHOWN]
            shown = [places[row] for row in unlike] if np.isfinite(rows.reward[i]) else []
            if shown and found.num_rewards - 1 > len(shown):
                shown.append(f"and {found.num_rewards - 1 - len(shown):,} more")
            reward = written(rows.reward[i], _DIGITS_OF_REWARD)
            value, advantage = written(rows.value[i]), written(rows.advantage[i])
            again = places[int(repeats[i])] if repeats[i] != i and not found.first else None
            known = (where, reward, value, advantage, bool(rows.advantage[i] > 0), again, "; ".join(shown) or None)
            yield dict(zip(TABLE_COLUMNS, (*known, source, prompt, completion), strict=True))


class _Rivals(NamedTuple):
    """Of one prompt and completion the first rows of some of its rewards, and how many rewards it has."""

    first: list[int]
    num_rewards: int


_NONE = _Rivals([], 0)


def _rivals(pair: np.ndarray, reward: np.ndarray) -> dict[int, _Rivals]:
    """What contradicts itself: the pairs with more than one reward."""
    scored = np.flatnonzero(np.isfinite(reward))
    ordered = scored[np.lexsort((scored, reward[scored], pair[scored]))]
    new = np.ones(len(ordered), bool)
    new[1:] = (np.diff(pair[ordered]) != 0) | (np.diff(reward[ordered]) != 0)
    rows = np.sort(ordered[new])  # the first of every reward of every pair
    num_rewards = np.bincount(pair[rows], minlength=1)
    found = dict[int, _Rivals]()
    for row in rows[num_rewards[pair[rows]] > 1].tolist():
        rivals = found.setdefault(int(pair[row]), _Rivals([], int(num_rewards[pair[row]])))
        if len(rivals.first) <= _RIVALS_SHOWN:  # one more, which may be of the row's own reward
            rivals.first.append(row)
    return found


def written(value: float, digits: int = 6) -> float | None:
    """A number as files have it: 0.06, where a difference of two floats is 0.06000000000000005; None for NaN."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
