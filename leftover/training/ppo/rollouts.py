"""Completions of the current policy with what PPO trains on: rewards a token, advantages, returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leftover.data.collate import pad
from leftover.data.rows import as_prompt
from leftover.models.divergence import FrozenStart
from leftover.models.generate import end_ids, generate
from leftover.models.reference import autocast
from leftover.objectives.ppo import advantages_and_returns, explained_variance, moments, token_rewards, whiten
from leftover.training.ppo.policy import score_tokens

Summed = Callable[[Tensor], Tensor]


def _alone(total: Tensor) -> Tensor:
    return total


# Columns of [N, T] that a mini-batch takes along.
TOKEN_COLUMNS = ("old_logprobs", "old_values", "advantages", "returns")


@dataclass(frozen=True)
class Rollouts:
    """N completions of this process, as the policy was when it wrote them.

    Args:
        prompt_ids, completion_ids: N lists of token ids.
        scores: [N] rewards R(x, y).
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


def complete(
    policy: Any,
    reference: FrozenStart,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    reward_func: Callable,
    args: Any,
    seed: int,
) -> Rollouts:
    """The policy's completions of prompts, as the reward functions, the policy and the reference see them.

    Args:
        policy: a language model with a value head.
        reference: the policy's frozen start.
        rows: with `prompt`, `conversational` and `prompt_ids`.
        args: a PPOConfig.
    """
    prompt_ids = [list(row["prompt_ids"]) for row in rows]
    with autocast(next(policy.parameters()).device, args.compute_dtype):
        completion_ids, texts = generate(
            policy,
            tokenizer,
            prompt_ids,
            max_new_tokens=args.max_completion_length,
            sample=True,
            temperature=args.temperature,
            batch_size=args.rollout_batch_size,
            seed=seed,
        )
    scores = reward_func([as_prompt(row["prompt"], row["conversational"]) for row in rows], texts)
    written = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
    options: dict[str, Any] = {"compute_dtype": args.compute_dtype, "temperature": args.temperature}
    now = score_tokens(policy, tokenizer.pad_token_id, written, entropies=True, **options)
    with reference.in_place():
        before = score_tokens(policy, tokenizer.pad_token_id, written, **options)
    assert now.entropies is not None
    ends = end_ids(policy)
    return Rollouts(
        prompt_ids,
        completion_ids,
        scores=torch.tensor(scores, dtype=torch.float32),
        ended=torch.tensor([ids[-1] in ends for ids in completion_ids]),
        logprobs=now.logprobs,
        reference_logprobs=before.logprobs,
        values=now.values,
        entropies=now.entropies,
    )


def shaped_rewards(rollouts: Rollouts, args: Any, kl_coef: float, summed: Summed = _alone) -> Tensor:
    """[N, T] rewards a token: score at the end, penalties for divergence and for a missing end.

    Args:
        args: a PPOConfig.
        kl_coef: the penalty on a nat of divergence.
        summed: adds a tensor over processes, so that moments are those of all rollouts.
    """
    mask, scores = rollouts.mask, rollouts.scores
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * (~rollouts.ended)
    rewards = token_rewards(scores, rollouts.logprobs, rollouts.reference_logprobs, mask, kl_coef)
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, *moments(rewards, mask, summed), shift_mean=False)
    return rewards


def targets(
    rollouts: Rollouts, rewards: Tensor, args: Any, summed: Summed = _alone
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The columns of `TOKEN_COLUMNS`, [N, T], and what is to be told of the rollouts of all processes."""
    mask = rollouts.mask
    raw, returns = advantages_and_returns(rewards, rollouts.values, mask, args.gamma, args.lam)
    columns = {
        "old_logprobs": rollouts.logprobs,
        "old_values": rollouts.values,
        "advantages": whiten(raw, mask, *moments(raw, mask, summed)),
        "returns": returns,
    }
    _, residual = moments(returns - rollouts.values, mask, summed)
    return_mean, return_variance = moments(returns, mask, summed)
    return columns, _told(rollouts, mask, summed) | {
        "value/mean": float(moments(rollouts.values, mask, summed)[0]),
        "value/returns": float(return_mean),
        "value/explained_variance": float(explained_variance(residual, return_variance)),
    }


def _told(rollouts: Rollouts, mask: Tensor, summed: Summed) -> dict[str, float]:
    everyone = torch.ones(len(mask), dtype=torch.bool)
    reward, variance = moments(rollouts.scores, everyone, summed)
    logratio = (rollouts.logprobs - rollouts.reference_logprobs).masked_fill(~mask, 0.0)
    return {
        "reward/mean": float(reward),
        "reward/std": float(variance.sqrt()),
        "kl": float(moments(logratio.sum(1), everyone, summed)[0]),
        "entropy": float(moments(rollouts.entropies, mask, summed)[0]),
        "completions/mean_length": float(moments(mask.sum(1), everyone, summed)[0]),
        "completions/ended": float(moments(rollouts.ended, everyone, summed)[0]),
    }


def collate(
    rollouts: Rollouts, columns: dict[str, Tensor], chosen: Sequence[int], pad_token_id: int
) -> dict[str, Tensor]:
    """The chosen rollouts as a batch in the aligned layout, as wide as the longest of them."""
    prompt_ids, prompt_mask = pad([rollouts.prompt_ids[i] for i in chosen], pad_token_id, left=True)
    completion_ids, completion_mask = pad([rollouts.completion_ids[i] for i in chosen], pad_token_id)
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
    }
    width = completion_ids.shape[1]
    return batch | {name: columns[name][list(chosen), :width] for name in TOKEN_COLUMNS}
