"""Objectives with one loss per completion.

Throughout: lp = sum_t log pi_theta(y_t), lq = sum_t log pi_ref(y_t), A = max(advantage, 0), and sg() stops the
gradient. Every function returns the loss of each completion, shape [B]; a loss negates exactly once.
Equations: A-LoL, arXiv 2305.14718, section 3, its baselines nll, wbc and r_gold section 4; weights and clipping as in
its released runs.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leftover.objectives.batch import CompletionBatch, NoSettings, clipped, positive, sequence_logprobs
from leftover.objectives.settings import CHECKED, NonNegative, dataclass

# exp() of more overflows float32 at 88, and an infinite weight times an advantage of 0 is NaN. Only weights with
# `clip: null` can come near it.
MAX_LOGRATIO = 80.0


@dataclass(frozen=True, config=CHECKED)
class ClipSettings:
    clip: NonNegative | None = 0.9  # epsilon of [1 - epsilon, 1 + epsilon]; None leaves importance weights as they are


@dataclass(frozen=True, config=CHECKED)
class FloorSettings:
    floor: NonNegative = 0.1  # u: the least weight of a token


@dataclass(frozen=True, config=CHECKED)
class KLSettings:
    beta: NonNegative = 0.1  # weight of the divergence from the reference
    kl_estimator: Literal["k1", "k3"] = "k1"  # k1: the log-ratio, as released; k3: never below 0, a token


def sequence_importance(
    batch: CompletionBatch, settings: object = None
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """r = pi_theta(y|x) / pi_ref(y|x), detached: one weight per completion, and a mask that is all true."""
    logprob = sequence_logprobs(batch.logprobs.detach(), batch.mask)
    reference_logprob = sequence_logprobs(batch.reference_logprobs, batch.mask)
    weight = (logprob - reference_logprob).clamp(max=MAX_LOGRATIO).exp()
    return weight, torch.ones_like(weight, dtype=torch.bool)


def token_importance(
    batch: CompletionBatch, settings: object = None
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """r_t = pi_theta(y_t) / pi_ref(y_t), detached: one weight per token, 1 outside the mask; and the mask."""
    logratio = (batch.logprobs.detach() - batch.reference_logprobs).masked_fill(~batch.mask, 0.0)
    return logratio.clamp(max=MAX_LOGRATIO).exp(), batch.mask


def nll(batch: CompletionBatch, settings: NoSettings) -> Float[Tensor, " B"]:
    """Behaviour cloning: the negative log-likelihood of the completion.

    loss = -lp
    """
    return -sequence_logprobs(batch.logprobs, batch.mask)


def wbc(batch: CompletionBatch, settings: NoSettings) -> Float[Tensor, " B"]:
    """Weighted behaviour cloning: likelihood weighted by the reward, R >= 0.

    loss = -R lp
    """
    return -batch.reward * sequence_logprobs(batch.logprobs, batch.mask)


def r_gold(batch: CompletionBatch, settings: FloorSettings) -> Float[Tensor, " B"]:
    """Reward-GOLD: each token weighted by the policy's own probability of it, floored at u; R >= 0.

    loss = -R sum_t sg(max(pi_theta(y_t), u)) log pi_theta(y_t)             (after GOLD, arXiv 2009.07839)
    """
    weight = batch.logprobs.detach().masked_fill(~batch.mask, 0.0).exp().clamp(min=settings.floor)
    return -batch.reward * sequence_logprobs(weight * batch.logprobs, batch.mask)


def r_lol(batch: CompletionBatch, settings: ClipSettings) -> Float[Tensor, " B"]:
    """Reward LoL: the importance-weighted likelihood of a completion taken as one action; R >= 0.

    loss = -R sg(clip(exp(lp - lq))) lp                                     (A-LoL, equation 3)
    """
    importance_weight = clipped(sequence_importance(batch)[0], settings.clip)
    return -batch.reward * importance_weight * sequence_logprobs(batch.logprobs, batch.mask)


def a_lol(batch: CompletionBatch, settings: ClipSettings) -> Float[Tensor, " B"]:
    """Advantage LoL: r_lol with the advantage in place of the reward.

    loss = -A sg(clip(exp(lp - lq))) lp                                     (A-LoL, equation 4)
    """
    importance_weight = clipped(sequence_importance(batch)[0], settings.clip)
    return -positive(batch.advantage) * importance_weight * sequence_logprobs(batch.logprobs, batch.mask)


def a_lol_ref_free(batch: CompletionBatch, settings: NoSettings) -> Float[Tensor, " B"]:
    """A-LoL (ref. free): the importance weight taken as 1.

    loss = -A lp
    """
    return -positive(batch.advantage) * sequence_logprobs(batch.logprobs, batch.mask)


def a_lol_seq(batch: CompletionBatch, settings: ClipSettings) -> Float[Tensor, " B"]:
    """A-LoL sequence: an importance weight per token, clipped token by token.

    loss = -A sum_t sg(clip(pi_theta(y_t) / pi_ref(y_t))) log pi_theta(y_t)
    """
    importance_weight = clipped(token_importance(batch)[0], settings.clip)
    return -positive(batch.advantage) * sequence_logprobs(importance_weight * batch.logprobs, batch.mask)


def a_lol_kl(batch: CompletionBatch, settings: KLSettings) -> Float[Tensor, " B"]:
    """A-LoL KL: the advantage-weighted likelihood with a penalty on the log-ratio, on leftover rows.

    loss = (A > 0) [-A lp + beta (lp - lq)]                                 (`kl_estimator: k1`, as released)

    The completions were not drawn from pi_theta, so the gradient of the k1 term is beta grad(lp): a shift of
    the advantage by beta, under which rows with 0 < A < beta are pushed DOWN. The trainer logs their share as
    `advantage/frac_below_beta`.

    `kl_estimator: k3` puts beta sum_t [exp(-d_t) - 1 + d_t], d_t = log pi_theta(y_t) - log pi_ref(y_t), in its
    place. Each token's term is >= 0 with its least value, 0, at pi_theta = pi_ref, so that it pulls back to the
    reference from either side and never pushes a leftover row below it.
    """
    logprob = sequence_logprobs(batch.logprobs, batch.mask)
    logratio = (batch.logprobs - batch.reference_logprobs).masked_fill(~batch.mask, 0.0)
    divergence = logratio if settings.kl_estimator == "k1" else (-logratio).exp() - 1 + logratio
    loss = -positive(batch.advantage) * logprob + settings.beta * divergence.sum(-1)
    return torch.where(batch.advantage <= 0, torch.zeros_like(loss), loss)


def kl_metrics(batch: CompletionBatch, settings: KLSettings) -> dict[str, Tensor]:
    """The share of rows that the k1 term pushes down."""
    return {"advantage/frac_below_beta": (batch.advantage < settings.beta).float()}
