"""Rows of one prompt, in the order of preference: as tensors for the losses, as arrays for the selection."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from leftover.objectives.advantage import differ
from leftover.objectives.batch import Columns, CompletionBatch

_UNKNOWN = 0.5  # between rejected (0) and chosen (1)


def ranked_groups(batch: CompletionBatch, by_choice: bool = False) -> tuple[Int[Tensor, "G n"], Bool[Tensor, "G n"]]:
    """The rows of each group, best first, and the mask of the places in use; groups in order of their id.

    The best has the highest reward; with `by_choice` chosen rows (extra `is_chosen`: 1, 0, or NaN for neither) come
    before the others and rejected ones after them. Equal rows keep their order.
    """
    ids, member_of = batch.group.unique(return_inverse=True)
    order = by_reward(batch)
    if by_choice and "is_chosen" in batch.extras:
        choice = batch.extras["is_chosen"].nan_to_num(nan=_UNKNOWN)
        order = order[choice[order].argsort(descending=True, stable=True)]
    order = order[member_of[order].argsort(stable=True)]
    sizes = member_of.bincount(minlength=len(ids))
    mask = torch.arange(int(sizes.max()), device=sizes.device) < sizes[:, None]
    return torch.zeros_like(mask, dtype=order.dtype).masked_scatter(mask, order), mask


def by_reward(batch: CompletionBatch) -> Int[Tensor, " B"]:
    """The rows in order of reward, highest first, as float64 tells them apart; equal rows keep their order."""
    if batch.reward_low is None:
        return batch.reward.argsort(descending=True, stable=True)
    order = batch.reward_low.argsort(descending=True, stable=True)
    return order[batch.reward[order].argsort(descending=True, stable=True)]


def best_and_worst(columns: Columns, selected: np.ndarray) -> np.ndarray:
    """[N] bool: the first and the last row of every prompt, in the order of `ranked_groups` by choice.

    A prompt with one selected row, or whose two are alike in choice and reward, has no pair.
    """
    keep = np.zeros(len(selected), bool)
    reward = columns["reward"]
    choice = np.nan_to_num(columns.get("is_chosen", np.full(len(reward), np.nan)), nan=_UNKNOWN)
    for rows in _groups(columns, selected):
        ranked = rows[np.lexsort((-reward[rows], -choice[rows]))]
        best, worst = ranked[0], ranked[-1]
        if choice[best] != choice[worst] or differ(reward[[best, worst]]):
            keep[[best, worst]] = True
    return keep


def unequal(columns: Columns, selected: np.ndarray) -> np.ndarray:
    """[N] bool: the selected rows of prompts that have several of them whose rewards are not all equal."""
    keep = np.zeros(len(selected), bool)
    for rows in _groups(columns, selected):
        keep[rows] = len(rows) > 1 and differ(columns["reward"][rows])
    return keep


def members_of(group: np.ndarray) -> list[np.ndarray]:
    """The rows of every group of `group` [N] ids, in the order of the ids."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _groups(columns: Columns, selected: np.ndarray) -> list[np.ndarray]:
    rows = np.flatnonzero(selected)
    return [rows[members] for members in members_of(columns["group"][rows])] if len(rows) else []
