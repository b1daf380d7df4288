"""The lines of the memory and disk tables: what each stage holds."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from leftover.commands.dry_run import memory
from leftover.commands.dry_run.memory import DTYPE_BYTES, Memory
from leftover.commands.dry_run.settings import dtype_of, optimizer_of
from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.sources import Source
from leftover.commands.dry_run.trace import Traced
from leftover.commands.dry_run.work import Sizes
from leftover.recipe.online import PPOConfig
from leftover.recipe.sections import Recipe
from leftover.rewards import SumReward

log = logging.getLogger(__name__)

_GPU_PASS_TOKENS = 16_384  # `leftover.models.reference.pass_tokens` on a GPU


class Holding:
    """What the stages of one plan hold at once."""

    def __init__(
        self,
        recipe: Recipe,
        reward: SumReward,
        shape: Shape,
        sources: list[Source],
        sizes: Sizes,
        settings: dict[str, Any],
    ):
        self.recipe, self.reward, self.shape = recipe, reward, shape
        self.sources, self.sizes, self.settings = sources, sizes, settings

    def memory(self, traced: Traced, evaluates: bool) -> Iterator[Memory]:
        """One line a stage; trainings that hold the same are told once."""
        shape = self.shape
        for (dtype, optimizer, rewards, *_), names in self._alike().items():
            args, states = self.settings[names[0]], memory.optimizer_bytes(shape, optimizer)
            # Online, the reference is a copy of the weights that train.
            weights = shape.weight_bytes + (shape.trainable_bytes if isinstance(args, PPOConfig) else 0)
            who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} alike"
            for label, tokens in self._row_sizes().items():
                passing = _traced(memory.training_bytes, traced, shape, args, tokens, dtype)
                yield Memory(f"training step, {label}: {who}", weights, states, passing, rewards)
            if self.reward.scores_new_completions and names != ["reference"]:
                cache = self._cache(args.per_device_eval_batch_size, dtype)
                yield Memory(f"validation while training: {who}", weights, states, cache, rewards)
        weights = shape.weight_bytes
        tokens = next(iter(self._row_sizes().values()))
        passing = _traced(memory.pass_bytes, traced, shape, _GPU_PASS_TOKENS, tokens, self.recipe.compute_dtype)
        yield Memory("reference log-probabilities", weights, 0, passing, self._rewards("reward"))
        if evaluates:
            copies = 3 if self.recipe.model.path is not None else 2  # the policy, the reference, the base
            cache = self._cache(self.recipe.evaluate.batch_size, None)
            yield Memory("evaluation", copies * weights, 0, cache, self._rewards("reward", "judge"))

    def disk(self, trains: bool) -> Iterator[tuple[str, float | None]]:
        recipe, rows, shape = self.recipe, self.sizes.rows, self.shape
        all_rows, table = self.sizes.amount(None), None
        if rows is not None and all_rows is not None:
            ids = all_rows.tokens + all_rows.rows  # the last token of a row is not fed
            components = len(recipe.reward.functions)
            table = memory.table_bytes(
                all_rows.rows, rows.text_bytes, ids, all_rows.completion_tokens, shape.hidden, components
            )
        yield "table of the run", table
        model = memory.saved_bytes(shape)
        if "reference" in self.settings:
            yield "reference", model
        if trains:
            number = len(recipe.policies) * len(recipe.seeds)
            yield f"{number} policies", number * model
        if self.settings:  # the best, the last, and the new one before the last goes
            states = max(memory.optimizer_bytes(shape, optimizer_of(self.recipe, name)) for name in self.settings)
            yield "checkpoints, while training (at most three)", 3 * (model + states)

    def _alike(self) -> dict[tuple[Any, ...], list[str]]:
        """Names of the trainings by what their memory depends on."""
        found: dict[tuple[Any, ...], list[str]] = {}
        for name, args in self.settings.items():
            max_tokens = getattr(args, "max_tokens_per_batch", None)
            batch = (args.per_device_train_batch_size, max_tokens, args.gradient_accumulation_steps > 1, type(args))
            rewards = 0 if name == "reference" else self._rewards("reward")
            key = (
                dtype_of(self.recipe, name),
                optimizer_of(self.recipe, name),
                rewards,
                *batch,
                args.gradient_checkpointing,
            )
            found.setdefault(key, []).append(name)
        return found

    def _row_sizes(self) -> dict[str, tuple[int, int]]:
        """Tokens fed and with logits, of the rows of a batch: rows of like length share one, so the longest do."""
        data, found = self.recipe.data, {}
        limits = (data.max_prompt_tokens + data.max_completion_tokens - 1, data.max_completion_tokens)
        known = self.sizes.rows.lengths if self.sizes.rows is not None else None
        if known is not None:
            longest = int(np.where(known.kept, known.prompts + known.completions, 0).max()) - 1
            sizes = (longest, int(known.completions[known.kept].max()))
            if sizes != limits:
                found["longest rows found"] = sizes
        return found | {"rows at the limits": limits}

    def _cache(self, rows: int, compute_dtype: str | None) -> int:
        number_bytes = DTYPE_BYTES[compute_dtype or self.recipe.model.dtype]
        tokens = self.recipe.data.max_prompt_tokens + self.sizes.max_new_tokens
        return memory.generation_bytes(self.shape, rows, tokens, number_bytes)

    def _rewards(self, *purposes: str) -> int:
        """Weights of the reward models whose size is known; once loaded they stay."""
        models = {s.name: s for s in self.sources if s.purpose in purposes and s.parameters}
        return sum(DTYPE_BYTES.get(s.dtype, 4) * (s.parameters or 0) for s in models.values())


def _traced(measured: Any, *args: Any) -> int | None:
    try:
        return measured(*args)
    except Exception as error:  # a model's own code may look at values, which tensors without data have not
        log.debug("the model's passes cannot be traced", exc_info=error)
        return None
