"""Training steps side by side: contestants take turns, each turn in a process of its own, and medians are compared."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.process import result_of
from benchmarks.setting import Setting


@dataclass
class Measured:
    """The turns of one contestant: completion tokens a second, and peak memory in MiB."""

    rates: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return float(np.median(self.rates))

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.rates), max(self.rates)

    @property
    def peak(self) -> float:
        return float(np.median(self.peaks))


@dataclass(frozen=True)
class Entry:
    """A contestant under one setting; its first steps, in which kernels are built and memory grows, do not count."""

    contestant: str
    setting: Setting
    warmup: int = 1


# Ours steps through length buckets of very unequal cost, and the others through batches of which one in ten has a row
# of several hundred tokens: too few steps of either kind tell little.
ENTRIES = [
    Entry("released", Setting(steps=13)),
    Entry("trl_sft", Setting(steps=9)),
    Entry("trl_dpo", Setting(steps=6)),
    Entry("ours", Setting(steps=56), warmup=16),
    Entry("ours", Setting(lora=True, steps=32), warmup=12),
    Entry("ceiling", Setting(steps=14), warmup=4),
    Entry("released", Setting(precision="bf16 autocast", steps=13)),
    Entry("trl_sft", Setting(precision="bf16 autocast", steps=9)),
    Entry("trl_dpo", Setting(precision="bf16 autocast", steps=6)),
    Entry("ours", Setting(precision="bf16 autocast", steps=56), warmup=16),
    Entry("ceiling", Setting(precision="bf16 autocast", steps=14), warmup=4),
    Entry("released", Setting(vocabulary=128_000, steps=8)),
    Entry("ours", Setting(vocabulary=128_000, steps=36), warmup=12),
    Entry("trl_sft_no_checkpointing", Setting(steps=5)),
]

PRECISIONS: tuple[Literal["float32", "bf16 autocast"], ...] = ("float32", "bf16 autocast")


def real_entries(folder: str) -> list[Entry]:
    """Every contestant on a real model; a pair of DPO is two completions, so that all take as many a step."""
    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    found = []
    for precision, lora in product(PRECISIONS, (False, True)):
        setting = Setting(folder, vocabulary, precision, lora)
        found += [
            Entry("released", replace(setting, steps=3)),
            Entry("trl_sft", replace(setting, steps=3)),
            Entry("trl_dpo", replace(setting, steps=3, batch=4)),
            Entry("ours", replace(setting, steps=9)),
        ]
        if precision != "float32":  # the faster of the two, and a turn has to end
            found.append(Entry("trl_sft_no_checkpointing", replace(setting, steps=3)))
    return found


def take_turns(entries: list[Entry], turns: int) -> Iterator[dict[Entry, Measured]]:
    """Every entry once, then again, `turns` times over; turn k of all uses the same rows. Yields after every turn."""
    measured = {entry: Measured() for entry in entries}
    for turn in range(turns):
        for entry in entries:
            result, setting = run_worker(entry, seed=turn), entry.setting
            measured[entry].rates.append(completion_rate(result))
            measured[entry].peaks.append(result["peak_mib"])
            print(
                f"turn {turn + 1}/{turns}  {entry.contestant:26} {setting.precision:14} {'LoRA' * setting.lora:5}"
                f"vocabulary {setting.vocabulary:7,}  {completion_rate(result):8.1f} tokens/s  "
                f"{result['peak_mib']:7.0f} MiB",
                flush=True,
            )
        yield measured


def run_worker(entry: Entry, seed: int) -> dict[str, Any]:
    """`seconds` and `lengths` of the measured steps, and `peak_mib`."""
    setting = json.dumps(asdict(replace(entry.setting, seed=seed)))
    found = result_of("-m", "benchmarks.worker", entry.contestant, setting)
    return found | {name: found[name][entry.warmup - 1 :] for name in ("seconds", "lengths")}


def completion_rate(result: dict[str, Any]) -> float:
    """Completion tokens a second."""
    return sum(completion for step in result["lengths"] for _, completion in step) / sum(result["seconds"])
