"""Leftover: offline policy-gradient fine-tuning of language models from scored text (A-LoL, arXiv 2305.14718)."""

import os
from importlib import import_module
from typing import Any

# On a CPU, gradients and logits of a large vocabulary are freed and allocated anew at every step. On huge pages that
# takes a fifth of the time; PyTorch reads this once, when it allocates its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# oneDNN, and PyTorch's own layer around it, keep a kernel with its buffers for each of the last 1,024 shapes of a bf16
# product. Rows have many lengths: that grew to .6 GB for a model of 135 million parameters, and saved no time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

__version__ = "0.1.0"

# Imported on first use, so that `import leftover` and `leftover --help` answer at once.
_EXPORTS = {
    "OBJECTIVES": "leftover.objectives",
    "CompletionBatch": "leftover.objectives",
    "DrawOrder": "leftover.training.draws",
    "LoLConfig": "leftover.recipe.lol_config",
    "LoLTrainer": "leftover.training.trainer",
    "PPOConfig": "leftover.recipe.ppo_config",
    "PPOTrainer": "leftover.training.ppo.trainer",
    "ValueHead": "leftover.prepare.value",
    "advantage": "leftover.objectives.advantage",
    "bootstrap_interval": "leftover.metrics",
    "compare": "leftover.api",
    "completion_logprobs": "leftover.models.logprobs",
    "distinct_n": "leftover.metrics",
    "draw_batches": "leftover.training.draws",
    "generate": "leftover.api",
    "inspect": "leftover.api",
    "judge": "leftover.api",
    "leftover_mask": "leftover.objectives.advantage",
    "load_recipe": "leftover.recipe.files",
    "load_reward": "leftover.rewards",
    "run": "leftover.api",
    "select": "leftover.api",
    "win_rate": "leftover.metrics",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'leftover' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
