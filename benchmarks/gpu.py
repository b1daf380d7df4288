"""Training steps of a 1B Llama in bf16 on one GPU: `python -m benchmarks.gpu`, in under eight minutes.

Random weights, HH lengths. Prints one table: completion tokens and all tokens a second, the share of the measured
bf16 matrix rate that the unavoidable products are done at, and peak memory.

`--real FOLDER_OR_HUB_ID` runs the recipe hha_135m on that model instead (`benchmarks.reproduction`), `--check` the same
small run by every launcher (`benchmarks.launches`). `--tiny --device cpu` tries any of them out without a GPU.
"""

import argparse
import os
import sys
import warnings
from dataclasses import replace
from typing import Any

import torch

from benchmarks import launches, reproduction
from benchmarks.models import SHAPES, matrix_rate, training_flops
from benchmarks.setting import Setting
from benchmarks.steps import Entry, completion_rate, run_worker

VOCABULARY, WARMUP = 128_256, 10


def entries(setting: Setting, warmup: int) -> dict[str, Entry]:
    return {
        "ours": Entry("ours", setting, warmup),
        "ours, LoRA": Entry("ours", replace(setting, lora=True), warmup),
        "released method": Entry("released", setting, warmup),
        "TRL SFT": Entry("trl_sft", setting, warmup),
    }


def flops(setting: Setting, lengths: list[tuple[int, int]]) -> float:
    shape = SHAPES[setting.model]
    total = training_flops(
        lengths,
        setting.vocabulary,
        hidden=shape["hidden"],
        layers=shape["layers"],
        feed_forward=shape["feed_forward"],
        key_value=shape["hidden"] * shape["key_value_heads"] // shape["heads"],
    )
    return total * 2 / 3 if setting.lora else total  # a frozen weight has no gradient of its own


def steps_table(setting: Setting, warmup: int) -> None:
    rate = matrix_rate(torch.bfloat16, setting.device, 8192 if setting.device == "cuda" else 512)
    print(
        f"{reproduction.device_name(setting.device)}, torch {torch.__version__}, matrix rate {rate / 1e12:.3g} TFLOP/s "
        f"in bf16, batches of {setting.batch}\n\n"
        "| contestant | completion tokens/s | tokens/s | share of the matrix rate | peak GiB |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name, entry in entries(setting, warmup).items():
        try:
            result = run_worker(entry, seed=0)
        except RuntimeError as error:
            print(f"| {name} | failed: {str(error).splitlines()[-1][:200]} | | | |", flush=True)
            continue
        lengths, seconds = [row for step in result["lengths"] for row in step], sum(result["seconds"])
        print(
            f"| {name} | {completion_rate(result):.0f} | {sum(map(sum, lengths)) / seconds:.0f} "
            f"| {flops(entry.setting, lengths) / seconds / rate:.1%} | {result['peak_mib'] / 1024:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps, to try it out")
    parser.add_argument("--batch", type=int, help="rows a step (32)")
    parser.add_argument("--check", action="store_true", help="a small run by DDP, FSDP2, DeepSpeed, vLLM and QLoRA")
    reproduction.add_arguments(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here; --tiny --device cpu tries the script out")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.check:
        sys.exit(0 if launches.check(args.device) else 1)
    if args.real is not None:
        reproduction.reproduce(args)
        return
    size: dict[str, Any] = {"model": "tiny", "batch": 4, "steps": 3} if args.tiny else {"model": "1b", "batch": 32}
    size = {"steps": 40} | size | ({"batch": args.batch} if args.batch else {})
    setting = Setting(vocabulary=VOCABULARY, precision="bf16", device=args.device, **size)
    steps_table(setting, warmup=1 if args.tiny else WARMUP)


if __name__ == "__main__":
    main()
