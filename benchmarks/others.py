"""Everything but the training step: the reference pass, the value head, generation, tables of many rows, imports."""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import build_llama
from benchmarks.process import peak_mib, result_of, status_mib
from benchmarks.rows import SHARED, load_tokenizer
from benchmarks.setting import scored_rows

NUM_ROWS = 192  # of the reference pass
HEAD_PROMPTS, HEAD_EPOCHS = 192, 30  # 30 epochs: the default of value.head_epochs


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], turns: int) -> tuple[list[float], list[float]]:
    """Seconds of both, taking turns after one unmeasured turn each."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(turns)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def compared(what: str, ours: list[float], theirs: list[float], unit: float, bar: str) -> dict[str, Any]:
    """One line of the table: medians as rates, and the ratio of the medians of seconds."""
    a, b = statistics.median(ours), statistics.median(theirs)
    spread = [y / x for x, y in zip(ours, theirs, strict=True)]
    return {"what": what, "ours": unit / a, "theirs": unit / b, "ratio": b / a, "spread": spread, "bar": bar}


def reference_pass_rate(turns: int = 5) -> dict[str, Any]:
    """Rows a second of `reference_pass`, features and all, against a bare forward of the same tokens.

    The bare forward runs the stock model on the same length-sorted batches, with logits at as many positions as a
    completion has on average, and does nothing with them.
    """
    from leftover.data.collate import pad
    from leftover.models.reference import length_sorted_batches, pass_tokens, reference_pass

    rows, model, tokenizer = scored_rows("small")[:NUM_ROWS], build_llama(50_257).eval(), load_tokenizer()
    whole = [row["prompt_ids"] + row["completion_ids"] for row in rows]
    keep = round(float(np.mean([len(row["completion_ids"]) for row in rows])))

    @torch.inference_mode()
    def bare() -> None:
        for chosen in length_sorted_batches([len(ids) for ids in whole], pass_tokens(model.device)):
            ids, mask = pad([whole[i] for i in chosen], tokenizer.pad_token_id)
            model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=keep, use_cache=False)

    ours, theirs = alternate(lambda: reference_pass(model, tokenizer, rows), bare, turns)
    return compared("reference pass against a bare forward, rows/s", ours, theirs, len(rows), ">= 0.9 x")


def value_head_rate(turns: int = 1) -> dict[str, Any]:
    """Fitting the attention head on cached states against running the base again in every epoch.

    Both take HEAD_EPOCHS epochs (the patience of the early stop is not reached); the second is measured for three
    epochs and multiplied, since all of its epochs cost the same.
    """
    from leftover.models.reference import prompt_hidden
    from leftover.prepare.value import head as module

    prompts = [row["prompt_ids"] for row in scored_rows("small")[:HEAD_PROMPTS]]
    model, tokenizer = build_llama(50_257).eval(), load_tokenizer()
    targets = np.random.default_rng(0).normal(size=len(prompts))
    held_out = np.arange(len(prompts)) % 5 == 0

    def states() -> list[Any]:
        found = dict(prompt_hidden(model, tokenizer, prompts))
        return [found[i] for i in range(len(prompts))]

    def fit(hidden: list[Any], epochs: int) -> None:
        # A rate of 0 keeps the held-out error level, so that no epoch is skipped.
        module.fit_head(hidden, targets, held_out, epochs=epochs, learning_rate=0.0, seed=0, patience=epochs)

    def again() -> None:
        for _ in range(3):
            fit(states(), 1)

    ours, theirs = alternate(lambda: fit(states(), HEAD_EPOCHS), again, turns)
    theirs = [t * HEAD_EPOCHS / 3 for t in theirs]
    what = f"value head, {HEAD_EPOCHS} epochs on cached states against the base in every epoch, fits/s"
    return compared(what, ours, theirs, 1, ">= 8 x")


def generation_rate(turns: int = 3) -> dict[str, Any] | None:
    """Completions a second of `leftover.models.generate` against `model.generate` on batches in the order of the rows.

    The real small model with real prompts; a completion ends with its sentence. None where the files are absent.
    """
    from leftover.data.collate import pad
    from leftover.data.formats import read_rows
    from leftover.data.tokenizer import load_tokenizer
    from leftover.models.generate import generate
    from leftover.models.load import align_generation_config, load_model
    from leftover.recipe.data_section import DataSection

    folder, stories = SHARED / "models/stories260k", SHARED / "data/stories/v2_train_head.txt.gz"
    if not (folder.is_dir() and stories.is_file()):
        return None
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    align_generation_config(model, tokenizer)
    full_stop = tokenizer(" the end.", add_special_tokens=False)["input_ids"][-1]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, full_stop]
    rows = itertools.islice(read_rows(DataSection(path=str(stories), format="documents")), 384)
    prompts = [tokenizer(row["prompt"])["input_ids"][-256:] for _, row in rows]
    size, longest = 64, 96

    def ours() -> None:
        generate(model, tokenizer, prompts, max_new_tokens=longest, sample=True, batch_size=size)

    @torch.inference_mode()
    def plain() -> None:
        torch.manual_seed(0)
        for start in range(0, len(prompts), size):
            ids, mask = pad(prompts[start : start + size], tokenizer.pad_token_id, left=True)
            model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                max_new_tokens=longest,
                do_sample=True,
                top_k=0,
                pad_token_id=tokenizer.pad_token_id,
            )

    mine, theirs = alternate(ours, plain, turns)
    return compared(
        "generation against model.generate on unsorted batches, completions/s", mine, theirs, 384, ">= 1.5 x"
    )


def import_times(runs: int = 7) -> list[dict[str, Any]]:
    """Median seconds of `leftover --help` and of `import leftover`, each beyond nothing: the whole process."""
    commands = {
        "leftover --help": ([sys.executable, "-m", "leftover.cli", "--help"], "< 0.4 s"),
        "import leftover": ([sys.executable, "-c", "import leftover"], "< 0.2 s"),
    }
    out = []
    for name, (command, bar) in commands.items():
        times = [seconds(lambda c=command: subprocess.run(c, capture_output=True, check=True)) for _ in range(runs)]  # type: ignore[misc]
        out.append({"what": name, "seconds": statistics.median(times), "spread": times, "bar": bar})
    return out


def many_rows(num_rows: int, folder: Path, recorded: bool = False) -> dict[str, Any]:
    """`prepare` and 20 steps of `train` on generated rows with a tiny model, in this process.

    recorded: the scores are those of the rows, which the value is fitted on; `inspect` is measured too.
    """
    from leftover.commands.inspect import inspect
    from leftover.demo.run import train_tokenizer
    from leftover.pipeline import run
    from leftover.recipe.files import make_recipe
    from leftover.runs.claim import open_run

    torch.set_num_threads(1)
    path = folder / "rows.jsonl"
    sample = write_rows(path, num_rows, recorded)
    train_tokenizer([row["prompt"] + row["completion"] for row in sample]).save_pretrained(folder / "tokens")
    scorer = {"type": "column"} if recorded else {"type": "python", "function": "leftover.demo.grammar:score_answers"}
    content = {
        "name": "many",
        "output_dir": str(folder / "run"),
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
            },
            "tokenizer": str(folder / "tokens"),
        },
        "data": {"path": str(path), "max_prompt_tokens": 64, "max_completion_tokens": 64},
        "reward": {"functions": [scorer]},
        "reference": {"train": {"max_steps": 20}},
        "value": {"targets": "recorded", "candidates": ["constant", "ridge"]} if recorded else {"num_prompts": 300},
        "train": {"max_steps": 20},
        "evaluate": {"max_selection_prompts": 16, "max_new_tokens": 16},
    }
    with AnonymousPeak() as peak:
        prepared = seconds(lambda: run(make_recipe(content), until="prepare"))
        after_prepare, resident_after_prepare = peak.mib, peak_mib()
        trained = seconds(lambda: run(make_recipe(content), until="train"))
    blocks = ("rows", "split", "tokens", "reward", "reference", "value")
    opened = seconds(lambda: open_run(make_recipe(content)).table.open(*blocks)[num_rows // 2])
    inspected = seconds(lambda: inspect(str(path), output=str(folder / "page.html"))) if recorded else None
    return {
        "rows": num_rows,
        "prepare_s": prepared,
        "train_s": trained,
        "open_s": opened,
        "inspect_s": inspected,
        "prepare_mib": after_prepare,
        "train_mib": peak.mib,
        "prepare_resident_mib": resident_after_prepare,
        "train_resident_mib": peak_mib(),
    }


def write_rows(path: Path, num_rows: int, recorded: bool) -> list[dict[str, Any]]:
    """Rows of the demonstration, a thousand in memory at a time, with scores if `recorded`; returns some of them."""
    from leftover.demo.grammar import make_rows, score_answers

    with path.open("w") as file:
        for start in range(0, num_rows, 1000):
            rows = make_rows(min(1000, num_rows - start), seed=start)
            scores = score_answers([row["prompt"] for row in rows], [row["completion"] for row in rows])
            for row, score in zip(rows, scores, strict=True):
                file.write(json.dumps(row | ({"reward": score} if recorded else {})) + "\n")
    return make_rows(500, 0)


class AnonymousPeak:
    """The peak of this process's own memory in MiB, read every 10 ms.

    Pages of the table that are mapped from its files count as resident too, but the system drops them when it needs
    the room; what cannot be dropped is anonymous memory.
    """

    def __enter__(self) -> "AnonymousPeak":
        self.mib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.mib = max(self.mib, status_mib("RssAnon"))


def many_rows_apart(num_rows: int, recorded: bool = False) -> dict[str, Any]:
    """`many_rows` in a process of its own, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        call = f"many_rows({num_rows}, Path({folder!r}), {recorded})"
        code = f"from benchmarks.others import *; print(json.dumps({call}))"
        return result_of("-c", code)
