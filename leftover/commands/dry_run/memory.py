"""Bytes: of a training step, of passes and generation, of the table and the models on disk."""

from dataclasses import dataclass
from typing import Any

from leftover.commands.dry_run.shape import Shape
from leftover.commands.dry_run.trace import Traced

# Bytes of optimizer states a trained parameter, where they are not two numbers of the parameter's own size. Those of
# bitsandbytes: 32 or 8 bits a number. Adafactor keeps sums of rows and columns, which hardly count.
_STATES = {
    "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "paged_adamw_32bit": 8, "paged_adamw": 8,
    "adafactor": 0, "sgd": 0, "rmsprop": 4, "lion_8bit": 1, "lion_32bit": 4, "paged_lion_8bit": 1,
    "paged_lion_32bit": 4,
}  # fmt: skip

# Logits that a GPU turns into float32 probabilities at a time (`leftover.models.logprobs`).
_GPU_CHUNK = 2**26
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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


def optimizer_bytes(shape: Shape, optimizer: str) -> int:
    """Of the states that an optimizer keeps of the trained parameters (AdamW: two numbers each)."""
    per_parameter = _STATES.get(optimizer)
    return 2 * shape.trainable_bytes if per_parameter is None else per_parameter * shape.trainable


def training_bytes(traced: Traced, shape: Shape, args: Any, tokens: tuple[int, int], compute_dtype: str | None) -> int:
    """The peak of a training step beside weights and optimizer; `tokens`: fed and with logits, of every row."""
    rows = args.per_device_train_batch_size
    if max_tokens := getattr(args, "max_tokens_per_batch", None):
        rows = max(1, max_tokens // (tokens[0] + 1))
    options = args.gradient_checkpointing_kwargs
    peak = traced.training_step(
        rows,
        *tokens,
        checkpointing=args.gradient_checkpointing,
        checkpointing_options=dict(options) if options else None,
        compute_dtype=compute_dtype,
        accumulated=args.gradient_accumulation_steps > 1,
    )
    return peak + unpacked_bytes(shape)


def pass_bytes(traced: Traced, shape: Shape, budget: int, tokens: tuple[int, int], compute_dtype: str | None) -> int:
    """The peak of a pass without gradients over a batch of `budget` tokens, on a GPU."""
    rows = max(1, budget // (tokens[0] + 1))
    chunk = 4 * min(_GPU_CHUNK, rows * tokens[1] * shape.vocabulary)
    return traced.forward(rows, *tokens, compute_dtype=compute_dtype) + chunk + unpacked_bytes(shape)


def generation_bytes(shape: Shape, rows: int, tokens: int, number_bytes: int) -> int:
    """The cache of keys and values of `rows` completions in the making, and the logits of their last positions."""
    return rows * (tokens * shape.layers * shape.key_values * number_bytes + 4 * shape.vocabulary) + unpacked_bytes(
        shape
    )


def unpacked_bytes(shape: Shape) -> int:
    """4-bit weights are unpacked to 16 bits for their product, a layer at a time."""
    return 2 * shape.largest_layer


def saved_bytes(shape: Shape) -> int:
    """A model as a run writes it: the adapter alone where there is one."""
    return shape.trainable_bytes if shape.trainable < shape.parameters else shape.weight_bytes


def table_bytes(num_rows: int, text: int, tokens: float, completion_tokens: float, hidden: int, rewards: int) -> int:
    """The table on disk: texts, ids (4 bytes), reference log-probabilities, prompt features, scores and row facts."""
    facts = 8 * (rewards + 3) + 100  # reward, value, advantage; group, family, split, place
    return round(text + 4 * tokens + 4 * completion_tokens + num_rows * (8 * hidden + facts))
