"""What an objective sees, and how one is declared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leftover.objectives.advantage import beyond_rounding

# Columns of the training rows by name, [N] each.
Columns = dict[str, np.ndarray]


class CompletionBatch(NamedTuple):
    """B completions of at most T tokens, with the constants of their rows.

    Log-probabilities are <= 0. Only `logprobs`, and extras that are trained along, carry a gradient. Entries outside
    `mask` are ignored. A column that the table lacks is NaN, so that using it by mistake shows.
    `extras` holds what only single objectives need, by their names in `leftover.training.extras`.
    """

    logprobs: Float[Tensor, "B T"]
    reference_logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    reward: Float[Tensor, " B"]
    value: Float[Tensor, " B"]
    advantage: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple default, never written to
    # R is `reward` + `reward_low`: what float32 loses, which tells 16,777,217 from 16,777,216. None: nothing is lost.
    reward_low: Float[Tensor, " B"] | None = None


def above(batch: CompletionBatch, threshold: float) -> Bool[Tensor, " B"]:
    """R > threshold, as exactly as float64 compares; not where the two differ by rounding."""
    if batch.reward_low is None:
        return batch.reward > threshold
    near = batch.reward.new_tensor(threshold)
    difference = (batch.reward - near) + (batch.reward_low - (threshold - near.item()))
    return beyond_rounding(difference, near) > 0


@dataclass(frozen=True)
class NoSettings:
    """An objective without settings."""


@dataclass(frozen=True)
class Objective:
    """One entry of `OBJECTIVES`: a loss, its settings, and what it needs of the rows and of the draw order."""

    loss: Callable[[CompletionBatch, Any], Tensor]
    settings: type = NoSettings
    # Names of columns and of extras; "nonnegative_reward" if the loss is meaningless for R < 0.
    requires: frozenset[str] = frozenset()
    # What is required under some settings only.
    also_requires: Callable[[Any], frozenset[str]] = lambda settings: frozenset()
    optional: frozenset[str] = frozenset()  # extras that it uses if rows have them
    unit: str = "completion"  # or "group": one loss per completion or per group
    rows: str = "all"  # what `rows: auto` selects: all, leftover or top
    # With unit "group": which of the selected rows the loss can use (`leftover.objectives.groups`).
    usable: Callable[[Columns, np.ndarray], np.ndarray] | None = None
    draw_by: str | None = None  # column that weighs the loss, and the drawing under `priority`
    # How much the loss weighs each training row, [N], if that is known before training and is not the column `draw_by`.
    row_weight: Callable[[Columns, Any], np.ndarray] | None = None
    # The unclipped importance weights of the loss and the mask of the valid ones, for the log.
    importance_weights: Callable[[CompletionBatch, Any], tuple[Tensor, Tensor]] | None = None
    # What else is logged of a batch: vectors by name, whose means are taken.
    metrics: Callable[[CompletionBatch, Any], dict[str, Tensor]] | None = None

    def needs(self, settings: object) -> frozenset[str]:
        """All that it requires under these settings."""
        return self.requires | self.also_requires(settings)


def sequence_logprobs(logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """log pi(y|x) = sum_t log pi(y_t | x, y_<t): the SUM over completion tokens, end of sequence included."""
    return logprobs.masked_fill(~mask, 0.0).sum(-1)


def clipped(weight: Tensor, clip: float | None) -> Tensor:
    """Importance weights held inside [1 - clip, 1 + clip]; untouched where `clip` is None."""
    return weight if clip is None else weight.clamp(1 - clip, 1 + clip)


def positive(advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """max(A, 0): rows worse than the reference's average contribute nothing, even if they are drawn."""
    return torch.clamp(advantage, min=0.0)


def log_ratio(batch: CompletionBatch) -> Float[Tensor, " B"]:
    """lp - lq: the log-ratio of policy and reference of every completion, with its gradient."""
    return sequence_logprobs(batch.logprobs - batch.reference_logprobs, batch.mask)
