"""How fast a device works on a recipe's models, and what a stage takes by it.

A training step and a pass over many rows take a rate of operations a second, and what it takes to start them. A
decoding step is bound by the memory that it reads: all weights once, and the cache of every row.
"""

import math
from dataclasses import dataclass

import torch

from leftover.commands.dry_run.shape import Shape
from leftover.errors import UserError, nearest
from leftover.models.reference import pass_tokens

HERE = "here"  # this machine, which is measured

# What PyTorch sustains of the published numbers below: matrix products of a training step and of a pass, and memory.
_TRAINING, _FORWARD, _MEMORY = 0.4, 0.5, 0.6
# Seconds that a layer takes to start on a GPU, whatever its size: forward (in a pass, or of a decoding step), and there
# and back. Transformers starts every kernel from Python; a rule of thumb, not published.
_FORWARD_START, _TRAINING_START = 5e-4, 1.5e-3
# Seconds a byte between machines (400 Gb/s), the slowest part of a gradient's way.
_LINK = 1 / 5e10
_GPU = torch.device("cuda")


@dataclass(frozen=True)
class Pace:
    """What a device sustains on one model."""

    training: float  # operations a second of optimizer steps
    forward: float  # operations a second of passes without gradients
    decode_step: float  # seconds that a decoding step takes beside its rows
    decode_row: float  # seconds that every row of the batch adds
    step_start: float = 0.0  # seconds of an optimizer step beside its rows
    pass_start: float = 0.0  # seconds of a batch of a pass beside its rows

    def steps(self, operations: float, number: int) -> float:
        """Seconds of optimizer steps."""
        return operations / self.training + number * self.step_start

    def passes(self, operations: float, tokens: float) -> float:
        """Seconds of passes without gradients."""
        return operations / self.forward + math.ceil(tokens / pass_tokens(_GPU)) * self.pass_start

    def decoding(self, rows: int, tokens: float, batch_size: int) -> float:
        """Seconds to write `rows` completions of `tokens` tokens, in batches; reading the prompts is a pass."""
        return tokens * (math.ceil(rows / batch_size) * self.decode_step + rows * self.decode_row)

    def decode_waits(self, rows: int, tokens: float, batch_size: int, devices: int) -> float:
        """Seconds of the decoding steps of each of several devices that share the rows, without those rows."""
        return tokens * math.ceil(math.ceil(rows / devices) / batch_size) * self.decode_step


@dataclass(frozen=True)
class Device:
    """Published numbers of an accelerator: dense bfloat16 operations and bytes of memory a second."""

    operations: float
    bandwidth: float

    def pace(self, shape: Shape, tokens: float) -> Pace:
        """On a model of this shape; `tokens`: of a row while its completion is written."""
        forward, memory = _FORWARD * self.operations, _MEMORY * self.bandwidth
        weights = shape.weight_bytes / memory
        cache = tokens * shape.layers * shape.key_values * 2 / memory
        return Pace(
            _TRAINING * self.operations,
            forward,
            max(weights, shape.layers * _FORWARD_START),
            max(cache, 2 * (shape.trunk + shape.head) / forward),
            shape.layers * _TRAINING_START,
            shape.layers * _FORWARD_START,
        )


# NVIDIA's data sheets: without sparsity, SXM or the PCIe card named.
DEVICES = {
    "a100": Device(312e12, 2.039e12),
    "h100": Device(989e12, 3.35e12),
    "h200": Device(989e12, 4.8e12),
    "b200": Device(2250e12, 8.0e12),
    "l4": Device(121e12, 0.3e12),
    "l40s": Device(362e12, 0.864e12),
    "rtx4090": Device(165e12, 1.008e12),
}


def device_name(name: str) -> str:
    """The name of a listed device, however it is written. Raises UserError for one that is not listed."""
    found = name.lower().replace(" ", "").replace("-", "")
    if found not in DEVICES:
        raise UserError(f"--device {name}: known are {', '.join(DEVICES)}{nearest(name, DEVICES)}")
    return found


def exchange(shape: Shape, steps: int) -> float:
    """Seconds in which several devices send one another the gradients of their steps: each twice (a ring)."""
    return steps * 2 * shape.trainable_bytes * _LINK
