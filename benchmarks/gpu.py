"""Training steps of a 1B Llama in bf16 on one GPU: `python -m benchmarks.gpu`, in under eight minutes.

Random weights, HH lengths. Prints one table: completion tokens and all tokens a second, the share of the measured
bf16 matrix rate that the unavoidable products are done at, and peak memory. `--tiny --device cpu
--batch 4` tries it out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import make_clock, prepared_table, random_batches, scored_rows
from benchmarks.models import PAD, TINY, build_llama, matrix_rate, training_flops

LEARNING_RATE, BATCH = 2e-5, 32
LLAMA_1B = {"hidden": 2048, "layers": 16, "feed_forward": 8192, "heads": 32, "key_value_heads": 8}
VOCABULARY = 128_256
CONTESTANTS = ("ours", "ours_lora", "released", "trl_sft")


def build(shape: dict[str, int], device: str) -> Any:
    with torch.device(device):
        return build_llama(VOCABULARY, positions=2048, **shape).to(torch.bfloat16)


def flops(rows: list[dict[str, Any]], shape: dict[str, int], lora: bool) -> float:
    lengths = [(len(row["prompt_ids"]), len(row["completion_ids"])) for row in rows]
    key_value = shape["hidden"] * shape["key_value_heads"] // shape["heads"]
    total = training_flops(
        lengths,
        VOCABULARY,
        hidden=shape["hidden"],
        layers=shape["layers"],
        feed_forward=shape["feed_forward"],
        key_value=key_value,
    )
    return total * 2 / 3 if lora else total  # a frozen weight has no gradient of its own


def released(
    shape: dict[str, int], device: str, steps: int, batch_size: int
) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    from benchmarks.released import step_loss
    from leftover.prepare.value import ValueHead

    policy, reference = build(shape, device), build(shape, device).eval()
    head = ValueHead(shape["hidden"]).to(device).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, fused=device != "cpu")
    for batch in random_batches(scored_rows(shape is TINY), steps, batch_size):
        start = time.perf_counter()
        loss, _ = step_loss(policy, reference, head, batch, PAD)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        yield time.perf_counter() - start, batch


def ours(
    shape: dict[str, int], device: str, steps: int, batch_size: int, lora: bool
) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    import datasets

    from benchmarks.rows import load_tokenizer
    from leftover import LoLConfig, LoLTrainer

    clock = make_clock(steps, lambda: wait(device))
    datasets.disable_progress_bars()
    model, rows = build(shape, device), scored_rows(shape is TINY)
    with tempfile.TemporaryDirectory() as folder:
        args = LoLConfig(
            output_dir=folder,
            objective="a_lol_seq",
            per_device_train_batch_size=batch_size,
            max_steps=256,
            learning_rate=LEARNING_RATE,
            use_cpu=device == "cpu",
            disable_tqdm=True,
            save_strategy="no",
        )
        peft_config = None
        if lora:
            from peft import LoraConfig

            peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        table = prepared_table(rows, args, model, steps)
        trainer = LoLTrainer(
            model, args, table, processing_class=load_tokenizer(), peft_config=peft_config, callbacks=[clock]
        )
        trainer.train()
    for number in range(1, len(clock.ends)):
        yield clock.ends[number] - clock.ends[number - 1], [rows[i] for i in trainer.draw_order.batch(number)]


def trl_sft(
    shape: dict[str, int], device: str, steps: int, batch_size: int
) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    import datasets
    from trl import SFTConfig, SFTTrainer

    from benchmarks.rows import load_tokenizer

    clock = make_clock(steps, lambda: wait(device))
    tokenizer = load_tokenizer()
    batches = random_batches(scored_rows(shape is TINY), steps, batch_size)
    data = [
        {"prompt": tokenizer.decode(row["prompt_ids"]), "completion": tokenizer.decode(row["completion_ids"][:-1])}
        for batch in batches
        for row in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
        )
        trainer = SFTTrainer(
            build(shape, device),
            args,
            train_dataset=datasets.Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    # Its sampler shuffles: the mean batch stands for each.
    rows = [row for batch in batches for row in batch]
    for number in range(1, len(clock.ends)):
        yield clock.ends[number] - clock.ends[number - 1], rows[number * batch_size : (number + 1) * batch_size]


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def contest(
    name: str, shape: dict[str, int], device: str, steps: int, warmup: int, batch_size: int
) -> dict[str, float]:
    """Run one contestant in this process; the first `warmup` timed steps do not count."""
    runs: dict[str, Any] = {
        "ours": lambda: ours(shape, device, steps, batch_size, lora=False),
        "ours_lora": lambda: ours(shape, device, steps, batch_size, lora=True),
        "released": lambda: released(shape, device, steps, batch_size),
        "trl_sft": lambda: trl_sft(shape, device, steps, batch_size),
    }
    measured = list(runs[name]())[warmup:]
    seconds = sum(s for s, _ in measured)
    rows = [row for _, batch in measured for row in batch]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
    return {
        "completion_tokens_s": sum(len(row["completion_ids"]) for row in rows) / seconds,
        "tokens_s": sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows) / seconds,
        "flops_s": flops(rows, shape, lora=name == "ours_lora") / seconds,
        "peak_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", choices=CONTESTANTS, help="one alone, as a line of JSON")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=10)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    shape = TINY if args.tiny else LLAMA_1B
    if args.contestant:
        print(json.dumps(contest(args.contestant, shape, args.device, args.steps, args.warmup, args.batch)))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here; --device cpu --tiny --batch 4 --steps 4 --warmup 1 tries the script out")
    rate = matrix_rate(torch.bfloat16, args.device, 512 if args.tiny else 8192)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, matrix rate {rate / 1e12:.3g} TFLOP/s in bf16, batches of {args.batch}\n"
    )
    print("| contestant | completion tokens/s | tokens/s | share of the matrix rate | peak GiB |")
    print("| --- | --- | --- | --- | --- |")
    for contestant in CONTESTANTS:
        command = [sys.executable, "-m", "benchmarks.gpu", "--contestant", contestant, "--device", args.device]
        command += ["--steps", str(args.steps), "--warmup", str(args.warmup), "--batch", str(args.batch)] + [
            "--tiny"
        ] * args.tiny
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
            print(f"| {contestant} | failed: {reason[:200]} | | | |", flush=True)
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"| {contestant} | {found['completion_tokens_s']:.0f} | {found['tokens_s']:.0f} "
            f"| {found['flops_s'] / rate:.1%} | {np.round(found['peak_gib'], 2)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
