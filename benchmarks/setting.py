"""What a contestant trains, on which rows, and how."""

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.models import SHAPES, build_llama
from benchmarks.rows import Row, load_rows, load_tokenizer


@dataclass(frozen=True)
class Setting:
    model: str = "small"  # random weights of this shape (`models.SHAPES`), or the folder of a real model
    vocabulary: int = 50_257  # of random weights
    precision: Literal["float32", "bf16 autocast", "bf16"] = "float32"  # bf16: the weights themselves
    lora: bool = False
    device: str = "cpu"
    batch: int = 8  # rows a step; of DPO, pairs
    steps: int = 6  # the first cannot be timed
    seed: int = 0

    def build(self) -> Any:
        dtype = "bfloat16" if self.precision == "bf16" else "float32"
        if self.model in SHAPES:
            with torch.device(self.device):
                return build_llama(self.vocabulary, **SHAPES[self.model]).to(getattr(torch, dtype))
        from leftover.models.load import load_model

        return load_model(self.model, dtype=dtype).to(self.device).train()

    def tokenizer(self) -> Any:
        return load_tokenizer(self.model)

    def rows(self) -> list[Row]:
        return scored_rows(self.model)

    def peft_config(self) -> Any:
        return lora_config() if self.lora else None

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16 autocast")

    def trainer_settings(self) -> dict[str, Any]:
        """What the configurations of all trainers have in common."""
        return {
            "per_device_train_batch_size": self.batch,
            "learning_rate": 2e-5,
            "bf16": self.precision == "bf16 autocast",
            "use_cpu": self.device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


@cache
def scored_rows(model: str) -> list[Row]:
    """The rows with a constant value, the mean reward: about half of them are left over."""
    rows = load_rows(model)[0]
    mean = float(np.mean([row["reward"] for row in rows]))
    return [row | {"value": mean, "advantage": max(row["reward"] - mean, 0.0)} for row in rows]
