"""Rewards of the reference's own completions: the targets that define V(x)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leftover.data.rows import as_prompt
from leftover.models.generate import generate
from leftover.recipe.sections import ValueSection


def mean_sampled_rewards(*args: Any, **kwargs: Any) -> np.ndarray:
    """Mean reward, a prompt, of completions that the reference gives for the chosen rows' prompts; [n]."""
    return sampled_rewards(*args, **kwargs).mean(1)


def sampled_rewards(
    model: Any,
    tokenizer: Any,
    rows: Any,
    chosen: np.ndarray,
    reward_func: Callable,
    settings: ValueSection,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Rewards of completions that the reference gives for the chosen rows' prompts, [n, samples a prompt]."""
    prompt_ids = [rows["prompt_ids"][int(i)] for i in chosen]
    prompts = [as_prompt(rows["prompt"][int(i)], rows["conversational"][int(i)]) for i in chosen]
    repeats = settings.num_samples
    rewards = np.empty((len(chosen), repeats))
    for repeat in range(repeats):
        _, texts = generate(
            model,
            tokenizer,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            sample=settings.decoding == "sample",
            batch_size=batch_size,
            seed=seed + repeat,
            description=f"reference samples {repeat + 1}/{repeats}",
        )
        rewards[:, repeat] = reward_func(prompts, texts)
    return rewards
