"""The same small run by every way to start it: `python -m benchmarks.gpu --check`, in about five minutes.

Reference and policy of each launch must have the weights of one process with as many rows a step. (What vLLM writes is
compared with the model's own log-probabilities wherever it writes.)
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import write_tiny
from benchmarks.others import write_rows
from benchmarks.process import ROOT

WITHIN = 1e-4  # of a weight; kernels of a GPU add up in other orders
FOLDERS = ("reference", "policies/a_lol_seq/seed-0")


def check(device: str) -> bool:
    """Print a line for every way; whether none of them failed."""
    number = torch.cuda.device_count() if device == "cuda" else 2
    print(f"{number} processes on {device}, torch {torch.__version__}\n")
    print("| launch | result | seconds |\n| --- | --- | --- |")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_tiny(folder / "model")
        for name, launcher, missing, settings in ways(device, number):
            start = time.monotonic()
            try:
                said = missing or outcome(name, launcher, settings, folder, model, number, device)
            except RuntimeError as error:
                said, failed = f"FAILED: {error}", True
            print(f"| {name} | {said} | {time.monotonic() - start:.0f} |", flush=True)
    return not failed


def ways(device: str, number: int) -> Iterator[tuple[str, list[str], str | None, dict[str, Any]]]:
    """Name, launcher, what is missing for it, and settings of the recipe."""

    def accelerate(name: str) -> list[str]:
        path = str(ROOT / f"recipes/accelerate/{name}.yaml")
        return ["-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", str(number)]

    def package(name: str) -> str | None:
        return None if importlib.util.find_spec(name) else f"{name} is not installed"

    gpu = None if device == "cuda" else "needs a GPU"
    yield "one process", [], None, {}
    yield "torchrun", ["-m", "torch.distributed.run", "--nproc_per_node", str(number)], None, {}
    yield "DDP", accelerate("ddp"), gpu, {}
    yield "FSDP2", accelerate("fsdp2"), gpu, {}
    yield "ZeRO-2", accelerate("zero2"), package("deepspeed"), {}
    yield "ZeRO-3", accelerate("zero3"), package("deepspeed"), {}
    yield "vLLM", [], gpu or package("vllm"), {"evaluate": {"engine": "vllm"}}
    yield "QLoRA", [], gpu or package("bitsandbytes"), {"model": {"quantization": "nf4", "lora": {}}}


def outcome(
    name: str, launcher: list[str], settings: dict[str, Any], folder: Path, model: str, number: int, device: str
) -> str:
    """Run it; how far its weights are from those of one process. RuntimeError if it fails or they are far."""
    path = write_recipe(folder / name, model, settings, 1 if launcher else number)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "leftover", "run", str(path)],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-300:])
    if settings.get("model"):  # other weights
        return "ran"
    far = max(distance(folder / "one process" / "run" / of, folder / name / "run" / of) for of in FOLDERS)
    if far > WITHIN:
        raise RuntimeError(f"weights are {far:.1e} away from those of one process")
    return f"weights within {far:.1e} of one process"


def distance(one: Path, other: Path) -> float:
    """The largest difference of a weight of two models, as `from_pretrained` reads them."""
    from leftover.models.load import load_model

    weights = [load_model(str(path)).state_dict() for path in (one, other)]
    return max(float((weights[1][name] - value).abs().max()) for name, value in weights[0].items())


def write_recipe(folder: Path, model: str, settings: dict[str, Any], accumulation: int) -> Path:
    folder.mkdir()
    rows, path = folder / "rows.jsonl", folder / "recipe.yaml"
    write_rows(rows, 200, recorded=False)
    steps = {"max_steps": 4, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    steps |= {"gradient_accumulation_steps": accumulation}
    content: dict[str, Any] = {
        "name": "launch",
        "output_dir": str(folder / "run"),
        "model": {"path": model},
        "data": {"path": str(rows)},
        "reward": {"functions": [{"type": "python", "function": "leftover.demo.grammar:score_answers"}]},
        "reference": {"train": steps},
        "value": {"num_prompts": 16, "candidates": ["constant"], "targets": "recorded"},
        "policies": {"a_lol_seq": {"objective": "a_lol_seq"}},
        "train": steps,
        "evaluate": {"max_prompts": 8, "max_selection_prompts": 4, "max_new_tokens": 8},
    }
    for section, values in settings.items():
        content[section] |= values
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
