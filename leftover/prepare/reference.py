"""The frozen reference while row constants are computed: what it says of rows, and how its own completions score."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from leftover.data.rows import as_prompt
from leftover.models.generate import generate
from leftover.models.reference import prompt_hidden, reference_pass
from leftover.recipe.sections import ValueSection
from leftover.runs.run import Run


@dataclass
class Reference:
    """A model and its tokenizer, which `load` gives when they are first needed, and how it reads and samples."""

    load: Callable[[], tuple[Any, Any]]
    compute_dtype: str | None
    max_new_tokens: int
    seed: int
    batch_size: int = 64  # of sampling

    @classmethod
    def of_run(cls, run: Run) -> "Reference":
        recipe = run.recipe
        return cls(
            lambda: (run.models.reference(), run.models.tokenizer),
            recipe.compute_dtype,
            recipe.max_new_tokens,
            recipe.seed,
            recipe.evaluate.batch_size,
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self.load()

    def read(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        features: bool = False,
        description: str | None = None,
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """log pi_ref of every completion token, [T_i] a row, and the pooled features of every prompt, [N, 2 H]."""
        rows = [{"prompt_ids": p, "completion_ids": c} for p, c in zip(prompt_ids, completion_ids, strict=True)]
        return reference_pass(
            *self._loaded, rows, features=features, compute_dtype=self.compute_dtype, description=description
        )

    def hidden(self, prompt_ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """(i, last hidden states [L_i, H]) of every prompt, in any order."""
        return prompt_hidden(*self._loaded, prompt_ids, compute_dtype=self.compute_dtype)

    def sampled_rewards(
        self,
        rows: Dataset | dict[str, Any],
        chosen: np.ndarray,
        reward_func: Callable,
        settings: ValueSection,
        seed: int | None = None,
    ) -> np.ndarray:
        """Rewards of the reference's own completions of the chosen rows' prompts, [n, samples a prompt].

        rows: columns `prompt`, `conversational` and `prompt_ids`.
        """
        prompt_ids = [rows["prompt_ids"][int(i)] for i in chosen]
        prompts = [as_prompt(rows["prompt"][int(i)], rows["conversational"][int(i)]) for i in chosen]
        repeats = settings.num_samples
        rewards = np.empty((len(chosen), repeats))
        for repeat in range(repeats):
            _, texts = generate(
                *self._loaded,
                prompt_ids,
                max_new_tokens=self.max_new_tokens,
                sample=settings.decoding == "sample",
                batch_size=self.batch_size,
                seed=(self.seed if seed is None else seed) + repeat,
                description=f"reference samples {repeat + 1}/{repeats}",
            )
            rewards[:, repeat] = reward_func(prompts, texts)
        return rewards
