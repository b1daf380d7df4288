"""Other objectives for scored rows, with one loss per completion: the alternatives to A-LoL.

Throughout: lp, lq, R, V and the unclamped advantage A = R - V as in `pointwise`; D = lp - lq is the log-ratio.
Every function returns the loss of each completion, shape [B].
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leftover.objectives.advantage import spread
from leftover.objectives.batch import Columns, CompletionBatch, above, log_ratio, sequence_logprobs
from leftover.objectives.settings import CHECKED, NonNegative, Positive, dataclass


@dataclass(frozen=True, config=CHECKED)
class AWRSettings:
    temperature: Positive = 1.0  # in standard deviations of the training rows' advantages
    max_weight: Positive = 20.0  # the largest weight of a row


@dataclass(frozen=True, config=CHECKED)
class KTOSettings:
    beta: Positive = 0.1  # how strongly the policy is held to the reference
    # Rows with a reward above it are desirable; None: those whose `label` is true, or else those above V.
    threshold: float | None = None
    desirable_weight: NonNegative = 1.0  # of the losses of desirable rows
    undesirable_weight: NonNegative = 1.0  # of the others


@dataclass(frozen=True, config=CHECKED)
class DROSettings:
    tau: Positive = 1.0  # how strongly the policy is held to the reference
    value_learning_rate: NonNegative = 1e-3  # of the value that is trained along


@dataclass(frozen=True, config=CHECKED)
class QRPOSettings:
    beta: Positive = 0.1  # how strongly the policy is held to the reference


@dataclass(frozen=True, config=CHECKED)
class VARSettings:
    temperature: Positive = 1.0  # lambda: a reward that is higher by lambda weighs e times as much


def awr(batch: CompletionBatch, settings: AWRSettings) -> Float[Tensor, " B"]:
    """Advantage-weighted regression: likelihood weighted by the exponential of the advantage, negative ones too.

    loss = -min(exp((A - m) / tau), w_max) lp                               (arXiv 1910.00177, algorithm 1)

    m is the extra `advantage_mean` and tau the temperature times the extra `advantage_scale`: the authors' code
    (github.com/xbpeng/awr, AWRAgent._calc_adv) standardises A. Without the bound m would scale all weights alike.
    """
    return -awr_weight(batch, settings) * sequence_logprobs(batch.logprobs, batch.mask)


def awr_weight(batch: CompletionBatch, settings: AWRSettings) -> Float[Tensor, " B"]:
    """min(exp((A - m) / tau), w_max)."""
    centred = batch.advantage - batch.extras["advantage_mean"]
    log_weight = centred / (settings.temperature * batch.extras["advantage_scale"])
    return log_weight.clamp(max=math.log(settings.max_weight)).exp()


def awr_row_weight(columns: Columns, settings: AWRSettings) -> np.ndarray:
    """`awr_weight` of all training rows, [N]."""
    mean, scale = advantage_moments(columns["advantage"])
    log_weight = (columns["advantage"] - mean) / (settings.temperature * scale)
    return np.exp(np.minimum(log_weight, math.log(settings.max_weight)))


def advantage_moments(advantage: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation of the training rows' advantages [N]; a deviation of 0 is taken as 1."""
    known = advantage[np.isfinite(advantage)]
    return float(known.mean()), spread(known) or 1.0


def kto(batch: CompletionBatch, settings: KTOSettings) -> Float[Tensor, " B"]:
    """Kahneman-Tversky optimisation: gains and losses against a reference point, from one label a completion.

    loss = l_d (1 - sigmoid(beta D - z)) for desirable rows, l_u (1 - sigmoid(z - beta D)) for the others

    z = max(0, beta times the mean D of mismatched prompts and completions), no gradient; that mean is the extra
    `mismatched_logratio`                                                   (arXiv 2402.01306, equation 7)
    """
    point = (settings.beta * batch.extras["mismatched_logratio"]).clamp(min=0).detach()
    gain = settings.beta * log_ratio(batch) - point
    is_good = desirable(batch, settings)
    weight = torch.where(is_good, settings.desirable_weight, settings.undesirable_weight)
    return weight * torch.sigmoid(torch.where(is_good, -gain, gain))


def desirable(batch: CompletionBatch, settings: KTOSettings) -> Bool[Tensor, " B"]:
    """The labels of kto: R above the threshold; without one the row's own `label`, or else R above V."""
    if settings.threshold is not None:
        return above(batch, settings.threshold)
    better = batch.advantage > 0
    label = batch.extras.get("label")
    return better if label is None else torch.where(label.isnan(), better, label > 0)


def dro(batch: CompletionBatch, settings: DROSettings) -> Float[Tensor, " B"]:
    """Direct reward optimisation (DRO-V): policy and value regress the reward together, each holding the other.

    loss = 1/2 (R - sg(V) - tau D)^2 + 1/2 (R - V - tau sg(D))^2           (arXiv 2405.19107, equation 4)

    V is not the column `value` but the extra `soft_value`, which is trained along: at the optimum
    V(x) = tau log E_ref exp(R / tau), which is not a mean.
    """
    logratio, value = log_ratio(batch), batch.extras["soft_value"]
    policy = (batch.reward - value.detach() - settings.tau * logratio).square()
    critic = (batch.reward - value - settings.tau * logratio.detach()).square()
    return (policy + critic) / 2


def qrpo(batch: CompletionBatch, settings: QRPOSettings) -> Float[Tensor, " B"]:
    """Quantile reward policy optimisation: the log-ratio regresses its optimum, whose normaliser is that of quantiles.

    loss = (q - beta log Z - beta D)^2,  Z = beta (exp(1 / beta) - 1)       (arXiv 2507.08068, equation 11)

    q, the extra `reward_quantile`, is the share of the reference's own completions of the prompt whose reward is at
    most R. Z is exact for rewards without ties and many completions, whose q is uniform; of n completions q has n + 1
    values, and of rewards with few values (0 and 1) as few, so that log Z is an approximation.
    """
    beta = settings.beta
    # log Z without exp(1 / beta), which overflows.
    log_normaliser = math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta))
    return (batch.extras["reward_quantile"] - beta * log_normaliser - beta * log_ratio(batch)).square()


def var(batch: CompletionBatch, settings: VARSettings) -> Float[Tensor, " B"]:
    """Variational alignment with re-weighting: likelihood weighted by exp(R / lambda), normalised.

    loss = -exp(R / lambda) / Z lp                                          (arXiv 2502.11026)

    Z is the mean of exp(R / lambda) over the rows of the optimizer step; its logarithm is the extra `log_normaliser`.
    """
    weight = (batch.reward / settings.temperature - batch.extras["log_normaliser"]).exp()
    return -weight * sequence_logprobs(batch.logprobs, batch.mask)


def var_row_weight(columns: Columns, settings: VARSettings) -> np.ndarray:
    """exp(R / lambda) of all training rows up to a factor, [N]."""
    return np.exp((columns["reward"] - np.nanmax(columns["reward"])) / settings.temperature)


def awr_metrics(batch: CompletionBatch, settings: AWRSettings) -> dict[str, Tensor]:
    """The mean weight, and the share of rows at its bound."""
    weight = awr_weight(batch, settings)
    return {"awr/weight": weight, "awr/frac_at_max": (weight >= settings.max_weight * (1 - 1e-6)).float()}


def kto_metrics(batch: CompletionBatch, settings: KTOSettings) -> dict[str, Tensor]:
    """The reference point over beta (a KL divergence, in nats), and the share of desirable rows."""
    divergence = batch.extras["mismatched_logratio"].clamp(min=0)
    return {"kto/kl": divergence.expand(1), "kto/frac_desirable": desirable(batch, settings).float()}


def dro_metrics(batch: CompletionBatch, settings: DROSettings) -> dict[str, Tensor]:
    """The value that is trained along, and its squared error."""
    value = batch.extras["soft_value"].detach()
    error = batch.reward - value - settings.tau * log_ratio(batch).detach()
    return {"dro/value": value, "dro/value_error": error.square()}


def qrpo_metrics(batch: CompletionBatch, settings: QRPOSettings) -> dict[str, Tensor]:
    """The rows' quantiles: 1/2 on average if they are as good as the reference's own completions."""
    return {"qrpo/quantile": batch.extras["reward_quantile"]}
