"""Objectives with one loss per group: the completions of one prompt, whole, in one batch.

Throughout: lp, lq as in `pointwise`; R is the reward. Every function returns the loss of each group, shape [G], in
the order of the groups' ids.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from leftover.objectives.batch import CompletionBatch, log_ratio, sequence_logprobs
from leftover.objectives.groups import ranked_groups
from leftover.objectives.pointwise import MAX_LOGRATIO
from leftover.objectives.settings import CHECKED, NonNegative, Positive, dataclass

_ENDS = ("amax", "amin")


@dataclass(frozen=True, config=CHECKED)
class DPOSettings:
    beta: Positive = 0.1  # how strongly the policy is held to the reference
    reference_free: bool = False  # the reference taken as uniform: lq = 0


@dataclass(frozen=True, config=CHECKED)
class PROSettings:
    sft_weight: NonNegative = 0.05  # of the best completion's likelihood, times (n - 1)^2


@dataclass(frozen=True, config=CHECKED)
class GRPOSettings:
    clip: NonNegative = 0.2  # epsilon of [1 - epsilon, 1 + epsilon]
    beta: NonNegative = 0.0  # weight of the divergence from the reference, k3 a token


def dpo(batch: CompletionBatch, settings: DPOSettings) -> Float[Tensor, " G"]:
    """Direct preference optimisation on the best (w) and the worst (l) completion of every group.

    loss = -log sigmoid(beta [(lp_w - lq_w) - (lp_l - lq_l)])               (arXiv 2305.18290, equation 7)

    With `reference_free` lq is 0.
    """
    return -F.logsigmoid(dpo_margin(batch, settings))


def dpo_margin(batch: CompletionBatch, settings: DPOSettings) -> Float[Tensor, " G"]:
    """beta [(lp_w - lq_w) - (lp_l - lq_l)]: how much more the policy favours the better completion."""
    index, mask = ranked_groups(batch, by_choice=True)
    score = sequence_logprobs(batch.logprobs, batch.mask) if settings.reference_free else log_ratio(batch)
    worst = index.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    return settings.beta * (score[index[:, 0]] - score[worst])


def pro(batch: CompletionBatch, settings: PROSettings) -> Float[Tensor, " G"]:
    """Preference ranking optimisation: every completion against all that are worse, by their reward.

    With the n completions in order of reward and s_i = lp_i / T_i the mean token log-probability,

    loss = sum_{k<n} [log(exp(t_k s_k) + sum_{i>k} exp(t_i s_i)) - t_k s_k] + w (n - 1)^2 (-lp_1)

    where t_i = R_k - R_i for i > k, t_k = max_i t_i, and w = 0.05          (arXiv 2306.17492)
    """
    index, mask = ranked_groups(batch)
    logprob = sequence_logprobs(batch.logprobs, batch.mask)
    score, reward = (logprob / batch.mask.sum(-1))[index], batch.reward[index]
    low = torch.zeros_like(reward) if batch.reward_low is None else batch.reward_low[index]
    loss = -settings.sft_weight * ((mask.sum(1) - 1) ** 2 * logprob[index[:, 0]])
    for k in range(index.shape[1] - 1):
        difference = reward[:, k : k + 1] - reward[:, k + 1 :]
        difference = torch.where(difference == 0, low[:, k : k + 1] - low[:, k + 1 :], difference)
        loss = loss + _rank_loss(score[:, k:], difference, mask[:, k:])
    return loss


def _rank_loss(
    score: Float[Tensor, "G m"], difference: Float[Tensor, "G l"], mask: Bool[Tensor, "G m"]
) -> Float[Tensor, " G"]:
    """The first completion of each row against the l = m - 1 others; 0 if the row has no others."""
    worse = mask[:, 1:]
    temperature = difference.masked_fill(~worse, 0.0)
    best = temperature.amax(1, keepdim=True) * score[:, :1]
    rest = (temperature * score[:, 1:]).masked_fill(~worse, float("-inf"))
    return torch.where(worse.any(1), torch.cat([best, rest], 1).logsumexp(1) - best.squeeze(1), 0.0)


def grpo_offline(batch: CompletionBatch, settings: GRPOSettings) -> Float[Tensor, " G"]:
    """The clipped surrogate of GRPO on recorded groups, as if the reference had sampled them.

    loss = -mean_i mean_t min(r A_i, clip(r) A_i) + beta k3,  r = pi_theta(y_t) / pi_ref(y_t)

    with A_i = (R_i - mean R) / (sd R + 1e-4) over the group, sd with n - 1 (arXiv 2402.03300, equation 3).
    """
    index, mask = ranked_groups(batch)
    advantage = group_advantage(batch).unsqueeze(-1)
    logratio = (batch.logprobs - batch.reference_logprobs).masked_fill(~batch.mask, 0.0)
    ratio = logratio.clamp(max=MAX_LOGRATIO).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantage)
    divergence = (-logratio).clamp(max=MAX_LOGRATIO).exp() - 1 + logratio
    per_token = settings.beta * divergence - surrogate
    per_completion = sequence_logprobs(per_token, batch.mask) / batch.mask.sum(-1)
    return (per_completion[index] * mask).sum(1) / mask.sum(1)


def group_advantage(batch: CompletionBatch) -> Float[Tensor, " B"]:
    """(R - mean) / (sd + 1e-4) of every completion, mean and sample standard deviation over its group."""
    _, member_of, sizes = batch.group.unique(return_inverse=True, return_counts=True)
    zeros = torch.zeros_like(batch.reward[: len(sizes)])

    def centre(values: Tensor) -> Tensor:
        return values - (zeros.index_add(0, member_of, values) / sizes)[member_of]

    centred = centre(batch.reward)
    if batch.reward_low is not None:  # all that is left of rewards that float32 cannot tell apart
        highest, lowest = (zeros.scatter_reduce(0, member_of, batch.reward, how, include_self=False) for how in _ENDS)
        centred = torch.where((highest == lowest)[member_of], centre(batch.reward_low), centred)
    variance = zeros.index_add(0, member_of, centred.square()) / (sizes - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-4)[member_of]


def dpo_metrics(batch: CompletionBatch, settings: DPOSettings) -> dict[str, Tensor]:
    """Under TRL's names: the margin between the two implicit rewards, and how often the better one leads."""
    margin = dpo_margin(batch, settings)
    return {"rewards/margins": margin, "rewards/accuracies": (margin > 0).float()}
