"""The lines of the memory and disk tables: what each stage holds at once, in bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from leftover.commands.dry_run.checks import Settings
from leftover.commands.dry_run.scorers import Fitting
from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.sources import Source
from leftover.commands.dry_run.trace import Traced, try_to_trace
from leftover.commands.dry_run.work import Sizes
from leftover.models.load import torch_dtype
from leftover.models.logprobs import CHUNK_ELEMENTS
from leftover.models.reference import pass_tokens
from leftover.recipe.lol_config import LoLConfig
from leftover.recipe.optional_packages import trains_on_cpu
from leftover.recipe.ppo_config import PPOConfig
from leftover.runs.names import logprob_columns
from leftover.training.trainer import part_size

# Bytes of optimizer states a trained parameter, unless they are two numbers of the parameter's own size. Those of
# bitsandbytes: 32 or 8 bits a number. Adafactor keeps sums of rows and columns, which hardly count.
_STATES = {
    "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "paged_adamw_32bit": 8, "adafactor": 0, "sgd": 0,
    "rmsprop": 4, "lion_8bit": 1, "lion_32bit": 4, "paged_lion_8bit": 1, "paged_lion_32bit": 4,
}  # fmt: skip


# What a process on a CPU holds beside tensors: Python, PyTorch, transformers, and what they allocate.
LIBRARIES = 650 * 2**20


@dataclass(frozen=True)
class Memory:
    """What is held at once in a stage, in bytes. `passing`: activations, gradients, logits or a generation's cache."""

    stage: str
    weights: int
    optimizer: int
    passing: int | None  # None: the model's forward pass cannot be traced
    rewards: int

    @property
    def total(self) -> int | None:
        return None if self.passing is None else self.weights + self.optimizer + self.passing + self.rewards

    @property
    def process(self) -> int | None:
        """Of the whole process, if the device is a CPU."""
        return None if self.total is None else self.total + LIBRARIES


def fitting_memory(scorer: Fitting) -> Memory:
    """Of fine-tuning a scorer by AdamW."""
    return Memory(f"fit {scorer.name}", scorer.weight_bytes, 2 * scorer.weight_bytes, scorer.passing, 0)


def optimizer_bytes(shape: Shape, optimizer: str) -> int:
    """Of the states that an optimizer keeps of the trained parameters (AdamW: two numbers each)."""
    per_parameter = _STATES.get(optimizer)
    return 2 * shape.trainable_bytes if per_parameter is None else per_parameter * shape.trainable


def training_bytes(traced: Traced, shape: Shape, settings: Settings, tokens: tuple[int, int]) -> int:
    """The peak of a training step beside weights and optimizer; `tokens`: fed and with logits, of every row."""
    args = settings.args
    rows = at_once = args.per_device_train_batch_size
    if max_tokens := getattr(args, "max_tokens_per_batch", None):
        rows = at_once = max(1, max_tokens // (tokens[0] + 1))
    if isinstance(args, LoLConfig):
        at_once = part_size(args, rows, tokens[0] + 1, shape.layers, shape.hidden)
    peak = traced.training_step(
        at_once,
        *tokens,
        checkpointing=bool(args.gradient_checkpointing) and (args.gradient_checkpointing_kwargs or True),
        compute_dtype=settings.dtype,
        accumulated=args.gradient_accumulation_steps > 1 or at_once < rows,
    )
    return peak + shape.unpacked_bytes


def _pass_bytes(traced: Traced, shape: Shape, tokens: tuple[int, int], compute_dtype: str | None) -> int:
    """The peak of a pass without gradients over a whole batch of the device at hand."""
    device = "cpu" if trains_on_cpu(False) else "cuda"
    rows = max(1, pass_tokens(torch.device(device)) // (tokens[0] + 1))
    chunk = 4 * min(CHUNK_ELEMENTS[device], rows * tokens[1] * shape.vocabulary)  # float32 probabilities at a time
    return traced.forward(rows, *tokens, compute_dtype=compute_dtype) + chunk + shape.unpacked_bytes


def writing_bytes(
    traced: Traced, shape: Shape, dtype: str, compute_dtype: str | None, rows: int, prompt: int, new: int
) -> int:
    """The peak of writing `rows` completions of `new` tokens: of reading the prompts, or of the last token.

    Keys keep the dtype of the weights, values that of the products. While a layer's are lengthened by a token, the old
    ones stand beside the new, and each head gets its own. A token is chosen in float32 and float64.
    """
    width = (torch_dtype(dtype).itemsize + torch_dtype(compute_dtype or dtype).itemsize) / 2
    token = rows * shape.key_values * width  # keys and values of a layer
    cast = 0 if compute_dtype in (None, dtype) else torch_dtype(compute_dtype).itemsize * (shape.trunk + shape.head)
    chosen = rows * shape.vocabulary * 24
    reading = traced.forward(rows, prompt, 1, compute_dtype=compute_dtype) + prompt * shape.layers * token
    last = (prompt + new) * token * (shape.layers + 1 + 2 * shape.heads_per_key) + cast
    return round(max(reading, last) + chosen + shape.unpacked_bytes)


class Holding:
    """What the stages of one run hold at once."""

    def __init__(
        self,
        shape: Shape,
        sources: list[Source],
        sizes: Sizes,
        settings: dict[str, Settings],
        saves: dict[str, int | None],
    ):
        """`saves`: how often every training writes a checkpoint; None: unknown."""
        self.recipe, self.shape, self.sources = sizes.recipe, shape, sources
        self.sizes, self.settings, self.saves = sizes, settings, saves

    def memory(self, traced: Traced, generates: bool, evaluates: bool) -> Iterator[Memory]:
        """One line a stage; trainings that hold the same share one. `generates`: validation writes completions."""
        recipe, shape, weights = self.recipe, self.shape, self.shape.weight_bytes
        for names in self._alike():
            settings, fitted = self.settings[names[0]], names == ["reference"]
            args, states = settings.args, optimizer_bytes(shape, settings.optimizer)
            rewards = 0 if fitted else self._rewards("reward")
            # The reference is a copy of the weights that train: online, and for the KL of sampled completions.
            copied = isinstance(args, PPOConfig) or (generates and not fitted and args.eval_decoding == "sample")
            held = weights + (shape.trainable_bytes if copied else 0)
            who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} alike"
            for label, tokens in self._row_sizes().items():
                passing = try_to_trace(training_bytes, traced, shape, settings, tokens)
                yield Memory(f"training step, {label}: {who}", held, states, passing, rewards)
            if generates and not fitted:
                writing = self._writing(traced, args.per_device_eval_batch_size, settings.dtype)
                yield Memory(f"validation while training: {who}", held, states, writing, rewards)
        tokens = next(iter(self._row_sizes().values()))
        passing = try_to_trace(_pass_bytes, traced, shape, tokens, recipe.compute_dtype)
        yield Memory("reference log-probabilities", weights, 0, passing, self._rewards("reward"))
        if evaluates:
            writing = self._writing(traced, recipe.evaluate.batch_size, recipe.compute_dtype)
            models = len(logprob_columns(recipe))
            yield Memory("evaluation", models * weights, 0, writing, self._rewards("reward", "judge"))

    def disk(self, trains: bool) -> Iterator[tuple[str, float | None]]:
        yield "table of the run", self._table()
        shape, number = self.shape, len(self.recipe.policies) * len(self.recipe.seeds)
        model = shape.trainable_bytes if shape.adapter else shape.weight_bytes  # of an adapter, it alone is saved
        if "reference" in self.settings:
            yield "reference", model
        if trains:
            yield f"{number} policies", number * model
        if self.settings:
            states = max(optimizer_bytes(shape, settings.optimizer) for settings in self.settings.values())
            counts = [self._kept(name) for name in self.settings]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                yield "checkpoints, while training (all are kept: save_total_limit)", None
            else:
                yield f"checkpoints, while training (at most {max(known)})", max(known) * (model + states)

    def _kept(self, name: str) -> int | None:
        """How many checkpoints of a training are on the disk at once; None: unknown."""
        limit = self.settings[name].args.save_total_limit
        if limit is None:  # all
            return self.saves[name]
        return 1 + max(2, limit)  # the best and the last, or as many as asked for, and a new one before the oldest goes

    def _table(self) -> float | None:
        """The table on disk: texts, ids (4 bytes), reference log-probabilities, prompt features, scores, row facts."""
        rows, amount = self.sizes.rows, self.sizes.amount(None)
        if rows is None or amount is None:
            return None
        ids = amount.tokens + amount.rows  # the last token of a row is not fed
        # Reward, value, advantage; group, family, split, place.
        facts = amount.rows * (8 * (len(self.recipe.reward.functions) + 3) + 100)
        features = len(np.unique(rows.group)) * 4 * self.shape.hidden  # two vectors a prompt, in 16 bits
        return round(rows.text_bytes + 4 * ids + 4 * amount.completion_tokens + facts + features)

    def _alike(self) -> list[list[str]]:
        """Names of the trainings, those whose memory depends on the same together."""
        found: dict[tuple[object, ...], list[str]] = {}
        for name, settings in self.settings.items():
            args, rewards = settings.args, 0 if name == "reference" else self._rewards("reward")
            max_tokens = getattr(args, "max_tokens_per_batch", None)
            batch = (args.per_device_train_batch_size, max_tokens, args.gradient_accumulation_steps > 1)
            key = (settings.dtype, settings.optimizer, rewards, *batch, type(args), args.gradient_checkpointing)
            found.setdefault(key, []).append(name)
        return list(found.values())

    def _row_sizes(self) -> dict[str, tuple[int, int]]:
        """Tokens fed and with logits, of the rows of a batch: rows of similar length share one, so the longest do."""
        data, known = self.recipe.data, self.sizes.tokens
        limits = (data.max_prompt_tokens + data.max_completion_tokens - 1, data.max_completion_tokens)
        if known is None:
            return {"rows at the limits": limits}
        longest = int(np.where(known.kept, known.prompts + known.completions, 0).max()) - 1
        sizes = (longest, int(known.completions[known.kept].max()))
        return ({"longest rows found": sizes} if sizes != limits else {}) | {"rows at the limits": limits}

    def _writing(self, traced: Traced, rows: int, compute_dtype: str | None) -> int | None:
        """The peak of writing completions in batches of `rows`, of the longest prompts there are."""
        recipe, known = self.recipe, self.sizes.tokens
        longest = recipe.data.max_prompt_tokens if known is None else int(known.prompts[known.kept].max())
        rows = max(1, min(rows, recipe.evaluate.max_batch_tokens // (longest + recipe.max_new_tokens)))
        sizes = rows, longest, recipe.max_new_tokens
        return try_to_trace(writing_bytes, traced, self.shape, recipe.model.dtype, compute_dtype, *sizes)

    def _rewards(self, *purposes: str) -> int:
        """Weights of the reward models whose size is known; each is loaded once, and stays."""
        models = [source for source in self.sources if source.purpose in purposes]
        return sum(getattr(torch, s.dtype, torch.float32).itemsize * (s.parameters or 0) for s in models)
