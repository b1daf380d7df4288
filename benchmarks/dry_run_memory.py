"""How far the memory that `--dry-run` prints is from a real peak: small models on a CPU, each in a process of its own.

python -m benchmarks.dry_run_memory

A process's resident memory is its tensors only where freed memory goes back to the system at once, which is measured
first; then with the settings of a run, which keeps it for the next step.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
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


def main() -> None:
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
    if what == "tensors":
        from leftover.training import policy_trainer

        assert policy_trainer.freed_memory_kept, "what is switched off here is elsewhere now"
        policy_trainer.freed_memory_kept = contextlib.nullcontext  # type: ignore[assignment]
    with TemporaryDirectory() as folder:
        print((planned_bytes if what == "planned" else measured_bytes)(case, folder))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _worker(sys.argv[1], tuple(json.loads(sys.argv[2])))
    else:
        main()
