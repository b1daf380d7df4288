"""How far the memory that `--dry-run` prints is from a real peak, on a CPU, each case in a process of its own.

python -m benchmarks.dry_run_memory                 training steps of small models
python -m benchmarks.dry_run_memory --real FOLDER   whole runs: of the demonstration's model, and of the one at FOLDER

Of a training step, the peak over what a process with all libraries holds: where freed memory goes back to the system at
once, which is that of the tensors, and with the settings of a run. Of a whole run (training, generation, evaluation)
the process's own peak, libraries included.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROWS = 8
VOCABULARY = 32_000
# Kind of model, adapter, gradient checkpointing, bfloat16, prompt and completion tokens, accumulation.
CASES = [
    (kind, adapter, checkpointing, False, 192, 64, 1)
    for kind in ("llama", "gpt2")
    for adapter in (False, True)
    for checkpointing in (False, True)
] + [("llama", False, False, True, 192, 64, 1), ("llama", True, True, True, 192, 64, 1),
     ("llama", False, False, False, 384, 128, 2), ("llama", True, True, False, 384, 128, 2)]  # fmt: skip
_HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


# Model, adapter, bf16 autocast.
WHOLE = [("demo", False, False), ("demo", False, True)]
WHOLE += [("real", adapter, bf16) for adapter in (True, False) for bf16 in (True, False)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dry_run_memory", description=__doc__)
    parser.add_argument("--real", metavar="FOLDER", help="whole runs, also of the language model at FOLDER")
    folder = parser.parse_args().real
    if folder is None:
        steps()
        return
    print("model  adapter bf16   planned  measured (MiB)")
    for case in WHOLE:
        model = folder if case[0] == "real" else "demo"
        planned, measured = (_run((model, *case[1:]), what) for what in ("planned_run", "measured_run"))
        print(
            f"{case[0]:6} {case[1]!s:7} {case[2]!s:5} {planned:8.0f} {measured:9.0f} ({planned / measured - 1:+.0%})",
            flush=True,
        )


def steps() -> None:
    print("model  adapter checkpointing bf16 tokens accumulation  planned  tensors  process  (MiB)")
    for case in CASES:
        planned, tensors, process = (_run(case, what) for what in ("planned", "tensors", "process"))
        kind, adapter, checkpointing, bf16, prompt, completion, accumulation = case
        print(
            f"{kind:6} {adapter!s:7} {checkpointing!s:13} {bf16!s:5} {prompt + completion:5} {accumulation:12}"
            f" {planned:8.0f} {tensors:8.0f} ({planned / tensors - 1:+.1%}) {process:8.0f} ({process / planned:.1f} x)",
            flush=True,
        )


def _run(case: tuple, what: str) -> float:
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (_HANDED_BACK if what == "tensors" else {})
    )
    command = [sys.executable, "-m", "benchmarks.dry_run_memory", what, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.splitlines()[-1]) / 2**20


def _config(kind: str) -> Any:
    from transformers import AutoConfig

    if kind == "gpt2":
        return AutoConfig.for_model("gpt2", n_embd=288, n_layer=6, n_head=6)
    return AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        tie_word_embeddings=True,
    )


def _settings(case: tuple, folder: str, rows: int, steps: int) -> Any:
    from leftover import LoLConfig

    _, _, checkpointing, bf16, _, _, accumulation = case
    return LoLConfig(
        output_dir=folder,
        objective="nll",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
        bf16=bf16,
        use_cpu=True,
        max_steps=steps,
        save_strategy="no",
        disable_tqdm=True,
    )


def planned_bytes(case: tuple, folder: str) -> int:
    import torch

    from leftover.commands.dry_run import memory
    from leftover.commands.dry_run.checks import Settings
    from leftover.commands.dry_run.shape import measure
    from leftover.commands.dry_run.trace import Traced, skeleton
    from leftover.recipe.sections import LoraSection

    kind, adapter, _, bf16, prompt, completion, _ = case
    config = _config(kind)
    model = skeleton(config, LoraSection() if adapter else None, torch.float32)
    shape, tokens = measure(model, config, quantised=False), (prompt + completion - 1, completion)
    settings = Settings(_settings(case, folder, ROWS, 3), "bfloat16" if bf16 else None, "adamw_torch")
    passing = memory.training_bytes(Traced(model), shape, settings, tokens)
    return shape.weight_bytes + memory.optimizer_bytes(shape, settings.optimizer) + passing


def measured_bytes(case: tuple, folder: str) -> int:
    """The peak of resident memory over what a process with all libraries at work holds."""
    _train(case, folder, 1, 1)
    gc.collect()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    _train(case, folder, ROWS, 3)
    return _status("VmHWM") - before


def recipe_of(case: tuple, folder: str) -> Any:
    """A whole run of few and long rows: 8 x 256 tokens a step; the demonstration's model takes 128 tokens."""
    from leftover.demo.grammar import make_rows
    from leftover.demo.run import demo_recipe
    from leftover.recipe.files import make_recipe

    model, adapter, bf16 = case
    scorer = {"type": "python", "function": "leftover.demo.grammar:score_answers"}
    rows = make_rows(120, seed=0)
    if model == "demo":
        section: dict[str, Any] = demo_recipe(Path(folder), 0).model.model_dump()
        limits, repeats = {"max_prompt_tokens": 64, "max_completion_tokens": 64}, 1
    else:
        section = {"path": model}
        limits, repeats = {"max_prompt_tokens": 192, "max_completion_tokens": 64}, 24
    path = Path(folder) / "long.jsonl"
    long = [row | {"prompt": row["prompt"] * repeats} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in long), encoding="utf-8")
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, "bf16": bf16, "use_cpu": True}
    return make_recipe({
        "name": "memory",
        "output_dir": str(Path(folder) / "run"),
        "model": section | ({"lora": {"r": 16}} if adapter else {}),
        "data": {"path": str(path), "on_bad_row": "skip"} | limits,
        "reward": {"functions": [scorer]},
        "reference": {"train": settings},
        "policies": {"nll": {"objective": "nll"}},
        "train": settings | {"eval_steps": 0.9},
        "evaluate": {"max_prompts": 64, "max_selection_prompts": 64},
    })  # fmt: skip


def planned_run(case: tuple, folder: str) -> int:
    """The highest line of the dry run's memory table, of the rows that there are."""
    from leftover.commands.dry_run.estimate import estimate_run

    lines = estimate_run(recipe_of(case, folder)).memory
    found = [line for line in lines if "rows at the limits" not in line.stage] or lines
    return max(line.process or 0 for line in found)


def measured_run(case: tuple, folder: str) -> int:
    """The peak of the process over all stages: each of them begins the system's own count of it anew."""
    import torch

    from leftover.pipeline import run

    torch.set_num_threads(1)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _status("VmHWM"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run(recipe_of(case, folder))
    done.set()
    watcher.join()
    return peak


def _train(case: tuple, folder: str, rows: int, steps: int) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    from leftover import LoLTrainer
    from leftover.demo.grammar import make_rows
    from leftover.demo.run import train_tokenizer

    kind, adapter, *_, prompt, completion, accumulation = case
    row = {"prompt_ids": [5] * prompt, "completion_ids": [6] * completion, "reward": 1.0}
    data = datasets.Dataset.from_list([row | {"group": i} for i in range(rows * accumulation * steps)])
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in make_rows(100, seed=0)])
    model = AutoModelForCausalLM.from_config(_config(kind))
    LoLTrainer(model, _settings(case, folder, rows, steps), data, processing_class=tokenizer, peft_config=lora).train()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _worker(what: str, case: tuple) -> None:
    work = {"planned": planned_bytes, "planned_run": planned_run, "measured_run": measured_run}
    with TemporaryDirectory() as folder:
        print(work.get(what, measured_bytes)(case, folder))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] != "--real":
        _worker(sys.argv[1], tuple(json.loads(sys.argv[2])))
    else:
        main()
