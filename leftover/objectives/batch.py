"""What an objective sees, and how one is declared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class CompletionBatch(NamedTuple):
    """B completions of at most T tokens, with the constants of their rows.

    Log-probabilities are <= 0 and only `logprobs` carries a gradient. Entries outside `mask` are ignored,
    whatever they hold. A column that the table lacks is NaN, so that using it by mistake shows.
    """

    logprobs: Float[Tensor, "B T"]
    reference_logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    reward: Float[Tensor, " B"]
    value: Float[Tensor, " B"]
    advantage: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple default, never written to


@dataclass(frozen=True)
class NoSettings:
    """An objective without settings of its own."""


@dataclass(frozen=True)
class Objective:
    """One entry of `OBJECTIVES`: a loss, its settings, and what it asks of the rows and of the draw order."""

    loss: Callable[[CompletionBatch, Any], Tensor]
    settings: type = NoSettings
    # Names of columns, and "nonnegative_reward" where the loss is meaningless for R < 0.
    requires: frozenset[str] = field(default_factory=frozenset)
    unit: str = "completion"  # or "group": one loss per completion or per group
    draw_by: str | None = None  # column that sets the drawing probability under `priority`, and weighs the loss
    # The unclipped importance weights that the loss uses, with the mask of the valid ones; for the log only.
    importance_weights: Callable[[CompletionBatch, Any], tuple[Tensor, Tensor]] | None = None


def sequence_logprobs(logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """log pi(y|x) = sum_t log pi(y_t | x, y_<t): the SUM over completion tokens, end of sequence included."""
    return logprobs.masked_fill(~mask, 0.0).sum(-1)


def clipped(weight: Tensor, clip: float | None) -> Tensor:
    """Importance weights held inside [1 - clip, 1 + clip]; untouched where `clip` is None."""
    return weight if clip is None else weight.clamp(1 - clip, 1 + clip)


def positive(advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """max(A, 0): rows worse than the reference's average contribute nothing, filtered out or not."""
    return torch.clamp(advantage, min=0.0)
