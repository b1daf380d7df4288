"""Which prompts a PPO step completes, how its completions are cut into batches, and when it is saved."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from leftover.prepare.evaluation_rows import prepare_evaluation
from leftover.prepare.own_rows import Rows
from leftover.recipe.ppo_config import PPOConfig
from leftover.training.ppo.rollouts import Rollouts, collate

log = logging.getLogger(__name__)


def unique_prompts(
    tokenizer: PreTrainedTokenizerBase, args: PPOConfig, rows: Rows | None, *, two_texts: bool = False
) -> list[dict[str, Any]]:
    """The first row of every prompt, with `prompt_ids`; `two_texts`: for an encoder-decoder."""
    if rows is None:
        return []
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in prepare_evaluation(None, tokenizer, args, rows, "train_dataset", prompts_only=True, two_texts=two_texts):
        kept = {name: row[name] for name in ("prompt", "conversational", "prompt_ids", "where") if name in row}
        found.setdefault(tuple(row["prompt_ids"]), kept)
    return list(found.values())


def prompt_order(args: PPOConfig, num_prompts: int) -> np.ndarray:
    """[PPO steps, rollouts a step] indices of prompts: every prompt once, in random order, then all again."""
    rng = np.random.default_rng(args.data_seed if args.data_seed is not None else args.seed)
    shape = (args.num_ppo_steps(num_prompts), args.rollouts_per_step)
    passes = math.ceil(shape[0] * shape[1] / num_prompts)
    return np.concatenate([rng.permutation(num_prompts) for _ in range(passes)])[: shape[0] * shape[1]].reshape(shape)


def align_cadence(args: PPOConfig, num_prompts: int) -> None:
    """Set `max_steps`, and make logging, evaluation and saving fall on the ends of PPO steps.

    A checkpoint from the middle of one could not be resumed: it does not hold the completions. Every PPO step is
    logged.
    """
    updates = args.updates_per_step
    max_steps = args.num_ppo_steps(num_prompts) * updates
    if 0 < args.max_steps < max_steps:
        log.warning(
            "ppo: max_steps=%d is no multiple of the %d optimizer steps of a PPO step: it takes %d",
            args.max_steps, updates, max_steps,
        )  # fmt: skip

    def whole(steps: float, unit: int) -> int:
        return max(1, round((max_steps * steps if steps < 1 else steps) / unit)) * unit

    every = updates
    if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps:
        args.eval_steps = evaluated = whole(args.eval_steps, updates)
        every = evaluated if args.load_best_model_at_end else updates
    args.save_steps = whole(args.save_steps, every)  # the best checkpoint has to be one that was evaluated
    args.max_steps, args.logging_steps, args.logging_strategy = max_steps, updates, IntervalStrategy.STEPS


class RolloutLoader:
    """A data loader whose every pass is one PPO step: completions first, then their mini-batches, `ppo_epochs` times.

    Args:
        rollout: makes the rollouts of this process in a PPO step, by its number, and the columns that it trains on.
    """

    def __init__(
        self, rollout: Callable[[int], tuple[Rollouts, dict[str, Tensor]]], args: PPOConfig, pad_token_id: int
    ):
        self.rollout, self.args, self.pad_token_id, self.number = rollout, args, pad_token_id, 0

    def __len__(self) -> int:
        return self.args.updates_per_step * self.args.gradient_accumulation_steps

    def set_epoch(self, epoch: int) -> None:
        """The Trainer's epoch is the number of the PPO step, on resume too."""
        self.number = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rollouts, columns = self.rollout(self.number)
        rng = np.random.default_rng([self.args.seed, self.number, self.args.process_index])
        size = self.args.per_device_train_batch_size
        for _ in range(self.args.ppo_epochs):
            order = rng.permutation(len(rollouts.completion_ids))
            for start in range(0, len(order), size):
                yield collate(rollouts, columns, order[start : start + size].tolist(), self.pad_token_id)
