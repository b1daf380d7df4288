"""Completions of the current policy with what PPO trains on: rewards a token, advantages, returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leftover.data.collate import Collator
from leftover.objectives.ppo import advantages_and_returns, explained_variance, moments, token_rewards, whiten
from leftover.recipe.ppo_config import PPOConfig

Summed = Callable[[Tensor], Tensor]  # adds a tensor over processes, so that moments are those of all rollouts


@dataclass(frozen=True)
class Rollouts:
    """N completions of this process, with the policy's numbers from when it wrote them.

    Args:
        prompt_ids, completion_ids: N lists of token ids.
        scores: [N] rewards R(x, y); NaN: it has none and is not trained on (`unfinished: drop`).
        ended: [N] bool, whether a completion reached its end of sequence.
        logprobs, reference_logprobs, values, entropies: [N, T] float32, 0 after the end of a completion.
    """

    prompt_ids: Sequence[list[int]]
    completion_ids: Sequence[list[int]]
    scores: Tensor
    ended: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropies: Tensor

    @property
    def mask(self) -> Tensor:
        """[N, T] bool: the tokens of the completions."""
        lengths = torch.tensor([len(ids) for ids in self.completion_ids])
        return torch.arange(self.logprobs.shape[1]) < lengths[:, None]

    @property
    def trained(self) -> Tensor:
        """[N, T] bool: the tokens of completions that have a reward."""
        return self.mask & ~self.scores.isnan()[:, None]


def shaped_rewards(rollouts: Rollouts, args: PPOConfig, kl_coef: float, summed: Summed = lambda total: total) -> Tensor:
    """[N, T] rewards a token: score at the end, penalties for divergence (`kl_coef` a nat) and for a missing end."""
    trained, scores = rollouts.trained, rollouts.scores.nan_to_num(nan=0.0)
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * (~rollouts.ended)
    rewards = token_rewards(scores, rollouts.logprobs, rollouts.reference_logprobs, rollouts.mask, kl_coef)
    rewards = rewards.masked_fill(~trained, 0.0)
    if args.whiten_rewards:
        rewards = whiten(rewards, trained, *moments(rewards, trained, summed), shift_mean=False)
    return rewards


def targets(
    rollouts: Rollouts, rewards: Tensor, args: PPOConfig, summed: Summed = lambda total: total
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The columns [N, T] that a mini-batch trains on, and what is logged of the rollouts of all processes."""
    mask, trained = rollouts.mask, rollouts.trained
    everyone = torch.ones(len(mask), dtype=torch.bool)

    def mean(values: Tensor, chosen: Tensor = everyone) -> float:
        return float(moments(values, chosen, summed)[0])

    raw, returns = advantages_and_returns(rewards, rollouts.values, trained, args.gamma, args.lam)
    columns = {
        "old_logprobs": rollouts.logprobs,
        "old_values": rollouts.values,
        "advantages": whiten(raw, trained, *moments(raw, trained, summed)),
        "returns": returns,
        "trained": trained,
    }
    reward, reward_variance = moments(rollouts.scores, ~rollouts.scores.isnan(), summed)
    _, residual_variance = moments(returns - rollouts.values, trained, summed)
    return_mean, return_variance = moments(returns, trained, summed)
    logratio = (rollouts.logprobs - rollouts.reference_logprobs).masked_fill(~mask, 0.0)
    return columns, {
        "reward/mean": float(reward),
        "reward/std": float(reward_variance.sqrt()),
        "kl": mean(logratio.sum(1)),
        "entropy": mean(rollouts.entropies, mask),
        "completions/mean_length": mean(mask.sum(1)),
        "completions/ended": mean(rollouts.ended),
        "value/mean": mean(rollouts.values, trained),
        "value/returns": float(return_mean),
        "value/explained_variance": float(explained_variance(residual_variance, return_variance)),
    }


def collate(
    rollouts: Rollouts, columns: dict[str, Tensor], chosen: Sequence[int], pad_token_id: int
) -> dict[str, Tensor]:
    """The chosen rollouts as a batch in the aligned layout, as wide as the longest of them."""
    rows = [{"prompt_ids": rollouts.prompt_ids[i], "completion_ids": rollouts.completion_ids[i]} for i in chosen]
    batch = Collator(pad_token_id)(rows)
    width = batch["completion_ids"].shape[1]
    return batch | {name: column[list(chosen), :width] for name, column in columns.items()}
