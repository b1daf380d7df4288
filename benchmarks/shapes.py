"""Rows of odd shapes through a whole run with a tiny model: `python -m benchmarks.shapes [--rows 100000]`.

Each in a process of its own: nine rows in ten of one prompt; prompts that differ in one word of twenty; a Parquet file
of 200 row groups; completions of 4,000 words (of these a thousandth as many rows).
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.others import AnonymousPeak, seconds
from benchmarks.process import result_of

LONG_WORDS, ROW_GROUPS = 4_000, 200
_WORDS = [f"w{i}" for i in range(2_000)]
_SHAPES = ("one prompt", "near repeats", "row groups", "long completions")


def rows(shape: str, number: int) -> Iterator[dict[str, Any]]:
    """Rows of a shape, from random words, with random rewards."""
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(rng.choice(_WORDS, length))

    asked = text(20).split()
    prompts: dict[str, Callable[[int], str]] = {
        "one prompt": lambda i: "Say something." if i % 10 else f"Say {i}",
        "near repeats": lambda i: " ".join([*asked[: i % 20], str(rng.choice(_WORDS)), *asked[i % 20 + 1 :]]),
    }
    prompt, length = prompts.get(shape, lambda _: text(6)), LONG_WORDS if shape == "long completions" else 8
    for i in range(number):
        yield {"prompt": prompt(i), "completion": " " + text(length), "reward": float(rng.normal())}


def write(shape: str, number: int, folder: Path) -> Path:
    if shape == "row groups":
        import pyarrow as pa
        from pyarrow import parquet

        path = folder / "rows.parquet"
        parquet.write_table(
            pa.Table.from_pylist(list(rows(shape, number))), path, row_group_size=-(-number // ROW_GROUPS)
        )
        return path
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(shape, number))
    return path


def whole_run(shape: str, number: int, folder: Path) -> dict[str, float]:
    """Seconds of a run up to its test and of `inspect`, and the peak of own memory, in this process."""
    from leftover.commands.inspect import inspect
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe

    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 20_000}
    steps = {"max_steps": 4, "per_device_train_batch_size": 2}
    limit = 4 * LONG_WORDS if shape == "long completions" else 128
    recipe = make_recipe(
        {
            "name": "shape",
            "output_dir": str(folder / "run"),
            "model": {"config": config, "tokenizer": {"vocab_size": 2_500}},
            "data": {
                "path": str(write(shape, number, folder)),
                "max_prompt_tokens": 64,
                "max_completion_tokens": limit,
            },
            "reward": {"functions": [{"type": "column"}]},
            "reference": {"train": steps},
            "value": {"candidates": ["constant", "ridge"]},
            "train": steps,
            "evaluate": {"max_prompts": 4, "max_selection_prompts": 64, "max_new_tokens": 8},
        }
    )
    with AnonymousPeak() as peak:
        ran = seconds(lambda: run(recipe, until="evaluate"))
        inspected = seconds(lambda: inspect(str(folder / "run"), output=str(folder / "page.html")))
    return {"run_s": ran, "inspect_s": inspected, "mib": peak.mib}


def apart(shape: str, number: int) -> dict[str, float]:
    """`whole_run` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        call = f"whole_run({shape!r}, {number}, Path({folder!r}))"
        return result_of("-c", f"from benchmarks.shapes import *; print(json.dumps({call}))")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    number = parser.parse_args().rows
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print("| shape | rows | run, s | run, ms a row | inspect, s | own memory at the peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for shape in _SHAPES:
        size = max(40, number // 1_000) if shape == "long completions" else number
        found = apart(shape, size)
        ran, inspected = found["run_s"], found["inspect_s"]
        print(
            f"| {shape} | {size:,} | {ran:.1f} | {1e3 * ran / size:.2f} | {inspected:.1f} | {found['mib']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
