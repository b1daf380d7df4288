"""The arithmetic of PPO on completions. Pure functions of B completions of at most T tokens.

Every token is an action; its state is the prompt and the tokens before it. `mask` is true at the completion's tokens,
which are on the left; entries outside it are ignored and come out as 0.

Sources: PPO, arXiv 1707.06347; generalised advantage estimation, arXiv 1506.02438; both for language models, arXiv
1909.08593, with the details that Huang et al. list ("The N Implementation Details of RLHF with PPO", ICLR blog, 2024).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """r_t = -beta (log pi(y_t) - log pi_ref(y_t)), plus the completion's score R(x, y) at its last token.

    Their sum over a completion is R - beta times a sample of KL(pi || pi_ref)          (1909.08593, equation 2)
    """
    rewards = -kl_coef * (logprobs - reference_logprobs).masked_fill(~mask, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def advantages_and_returns(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation, and the targets of the value head.

    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  G_t = A_t + V_t    (1506.02438, 16)
    with V = 0 and A = 0 after the last token: the completion is over there, whether it ended or was cut.
    """
    values, rewards = values.masked_fill(~mask, 0.0), rewards.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Rewards and values at padding are 0, so nothing follows a completion's last token.
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def moments(
    values: Tensor, mask: Tensor, summed: Callable[[Tensor], Tensor] = lambda total: total
) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the entries inside `mask`, float64; `summed` adds a tensor over processes."""
    chosen = values[mask].double()
    total, count = summed(torch.stack([chosen.sum(), mask.sum().double()]))
    mean = total / count
    return mean, summed((chosen - mean).square().sum()) / count


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sd; without `shift_mean` the mean is put back, so that only the spread changes (for rewards)."""
    whitened = (values - mean) * (variance + 1e-8).rsqrt() + (0.0 if shift_mean else mean)
    return whitened.to(values.dtype).masked_fill(~mask, 0.0)


def policy_loss(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    cliprange: float,
) -> tuple[Float[Tensor, "*tokens"], Bool[Tensor, "*tokens"]]:
    """The clipped surrogate of every token, and where the clipped loss is the larger one, which has no gradient.

    loss_t = -min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t),  r_t = pi(y_t) / pi_old(y_t)           (1707.06347, 7)
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_loss(
    values: Float[Tensor, "*tokens"],
    old_values: Float[Tensor, "*tokens"],
    returns: Float[Tensor, "*tokens"],
    cliprange_value: float | None,
) -> tuple[Float[Tensor, "*tokens"], Bool[Tensor, "*tokens"]]:
    """The clipped squared error of every value, and where the clipped error is the larger one.

    loss_t = max((V_t - G_t)^2, (clip(V_t, V_old - eps, V_old + eps) - G_t)^2) / 2; eps None: not clipped.
    """
    unclipped = (values - returns).square()
    if cliprange_value is None:
        return unclipped / 2, torch.zeros_like(unclipped, dtype=torch.bool)
    near = torch.minimum(torch.maximum(values, old_values - cliprange_value), old_values + cliprange_value)
    clipped = (near - returns).square()
    return torch.maximum(unclipped, clipped) / 2, clipped > unclipped


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_episodes: int, horizon: int) -> float:
    """The next penalty, adapted in proportion to the divergence's distance from its target.

    e = clip(KL / target - 1, -0.2, 0.2),  beta <- beta (1 + e episodes / horizon)                (1909.08593, 2.2)
    `kl` and `target` are nats a completion.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)


def entropy(logits: Float[Tensor, "N V"], chunk: int = 2**24) -> Float[Tensor, " N"]:
    """-sum_v p_v log p_v of softmax(logits) in nats, float32; computed on `chunk` elements at a time."""
    parts = logits.split(max(1, chunk // logits.shape[-1]))
    return torch.cat([torch.special.entr(part.softmax(-1, dtype=torch.float32)).sum(-1) for part in parts])


def explained_variance(residual_variance: Tensor, return_variance: Tensor) -> Tensor:
    """1 - Var(G - V) / Var(G): 1 for exact values, 0 for those no better than a constant, NaN for constant returns."""
    return torch.where(return_variance > 0, 1 - residual_variance / return_variance, torch.nan)
