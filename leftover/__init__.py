"""Leftover: offline policy-gradient fine-tuning of language models from scored text (A-LoL, arXiv 2305.14718)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported on first use, so that `import leftover` and `leftover --help` answer at once.
_EXPORTS = {
    "LoLConfig": "leftover.trainer",
    "LoLTrainer": "leftover.trainer",
    "PPOConfig": "leftover.ppo.trainer",
    "PPOTrainer": "leftover.ppo.trainer",
    "load_recipe": "leftover.recipe_files",
    "run": "leftover.pipeline",
}

__all__ = ["LoLConfig", "LoLTrainer", "PPOConfig", "PPOTrainer", "__version__", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'leftover' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
