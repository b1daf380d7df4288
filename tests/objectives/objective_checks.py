"""Batches written as probabilities, and how a loss and its gradient are compared with numbers derived by hand."""

import math
from typing import Any

import torch
from torch import Tensor

from leftover.objectives import OBJECTIVES, CompletionBatch, Objective

L = math.log(2)
POLICY = [[1 / 2, 1 / 4], [1 / 8, 1 / 2, 1 / 2]]
REFERENCE = [[1 / 4, 1 / 4], [1 / 2, 1 / 2, 2 / 5]]
REWARD = (3.0, 2.0)
ADVANTAGE = (2.0, 1 / 2)


def as_doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_batch(
    policy: Any = POLICY,
    reference: Any = REFERENCE,
    reward: Any = REWARD,
    advantage: Any = ADVANTAGE,
    *,
    group: Any = None,
    padding: int = 1,
    junk: float = 7.0,
    **extras: Any,
) -> CompletionBatch:
    """In double precision; `padding` columns beyond the longest completion, `junk` wherever no token is."""
    size = (len(policy), max(map(len, policy)) + padding)
    logprobs, reference_logprobs = torch.full(size, junk).double(), torch.full(size, -junk).double()
    mask = torch.zeros(size, dtype=torch.bool)
    for i, (p, q) in enumerate(zip(policy, reference, strict=True)):
        logprobs[i, : len(p)] = as_doubles(p).log()
        reference_logprobs[i, : len(q)] = as_doubles(q).log()
        mask[i, : len(p)] = True
    reward, advantage = as_doubles(reward), as_doubles(advantage)
    return CompletionBatch(
        logprobs=logprobs.requires_grad_(),
        reference_logprobs=reference_logprobs,
        mask=mask,
        reward=reward,
        value=reward - advantage,
        advantage=advantage,
        group=torch.arange(len(policy)) if group is None else torch.tensor(group),
        extras={name: as_doubles(value) for name, value in extras.items()},
    )


# Two completions of one prompt and two of another, with all that any objective reads.
GENERIC: dict[str, list] = {
    "policy": [*POLICY, [1 / 2], [1 / 4, 1 / 2]],
    "reference": [*REFERENCE, [1 / 8], [1 / 2, 1 / 2]],
    "reward": [*REWARD, 1.0, 4.0],
    "advantage": [*ADVANTAGE, 1.0, 3.0],
    "group": [5, 5, 2, 2],
    "soft_value": [1.0, 1.0, 2.0, 2.0],
    "reward_quantile": [0.75, 0.25, 0.0, 1.0],
    "is_chosen": [math.nan] * 4,
}
CONSTANT = {"advantage_mean": 0.5, "advantage_scale": 2.0, "mismatched_logratio": 1 / 2, "log_normaliser": 1.0}


def generic_batch(rows: Any = (0, 1, 2, 3), **options: Any) -> CompletionBatch:
    """The rows of `GENERIC` at these places, in this order."""
    taken = {name: [values[i] for i in rows] for name, values in GENERIC.items()}
    return make_batch(**(taken | CONSTANT | options))


def loss_and_gradient(
    objective: str | Objective, batch: CompletionBatch, settings: Any = None
) -> tuple[Tensor, Tensor]:
    """The losses [B] or [G], and the gradient of their sum [B, T]."""
    entry = OBJECTIVES[objective] if isinstance(objective, str) else objective
    losses = entry.loss(batch, settings or entry.settings())
    (gradient,) = torch.autograd.grad(losses.sum(), batch.logprobs)
    return losses.detach(), gradient


def check(
    objective: str | Objective, settings: Any, losses: Any, gradients: Any, batch: CompletionBatch | None = None
) -> None:
    """Compare with numbers; `gradients` has one number a token, and every other entry must be 0."""
    actual, gradient = loss_and_gradient(objective, batch or make_batch(), settings)
    expected = torch.zeros_like(gradient)
    for i, row in enumerate(gradients):
        expected[i, : len(row)] = as_doubles(row)
    torch.testing.assert_close(actual, as_doubles(losses), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def same(name: str, settings: Any, other: str, other_settings: Any, batch: CompletionBatch) -> None:
    """Two objectives agree in losses and gradient."""
    assert_all_close(loss_and_gradient(name, batch, settings), loss_and_gradient(other, batch, other_settings))


def assert_all_close(actual: Any, expected: Any) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
