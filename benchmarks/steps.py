"""Training steps side by side: contestants take turns, each turn in a process of its own, and medians are compared."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Measured:
    """The turns of one contestant: completion tokens a second, and peak resident memory in MiB."""

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
    vocabulary: int = 50_257
    bf16: bool = False
    steps: int = 6
    warmup: int = 1

    @property
    def precision(self) -> str:
        return "bf16 autocast" if self.bf16 else "float32"


# Ours steps through length buckets of very unequal cost, and the others through batches of which one in ten has a row
# of several hundred tokens: too few steps of either kind tell little.
ENTRIES = [
    Entry("released", steps=13),
    Entry("trl_sft", steps=9),
    Entry("trl_dpo", steps=6),
    Entry("ours", steps=56, warmup=16),
    Entry("ours_lora", steps=32, warmup=12),
    Entry("ceiling", steps=14, warmup=4),
    Entry("released", bf16=True, steps=13),
    Entry("trl_sft", bf16=True, steps=9),
    Entry("trl_dpo", bf16=True, steps=6),
    Entry("ours", bf16=True, steps=56, warmup=16),
    Entry("ceiling", bf16=True, steps=14, warmup=4),
    Entry("released", vocabulary=128_000, steps=8),
    Entry("ours", vocabulary=128_000, steps=36, warmup=12),
    Entry("trl_sft_no_checkpointing", steps=5),
]


def take_turns(entries: list[Entry], turns: int) -> Iterator[dict[Entry, Measured]]:
    """Every entry once, then again, `turns` times over; turn k of all uses the same rows. Yields after every turn."""
    measured = {entry: Measured() for entry in entries}
    for turn in range(turns):
        for entry in entries:
            result = run_worker(entry, seed=turn)
            rate = sum(result["tokens"]) / sum(result["seconds"])
            measured[entry].rates.append(rate)
            measured[entry].peaks.append(result["peak_mib"])
            print(
                f"turn {turn + 1}/{turns}  {entry.contestant:26} {entry.precision:14} "
                f"vocabulary {entry.vocabulary:7,}  {rate:8.1f} tokens/s  {result['peak_mib']:7.0f} MiB",
                flush=True,
            )
        yield measured


def run_worker(entry: Entry, seed: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.worker", entry.contestant, "--seed", str(seed)]
    command += ["--steps", str(entry.steps), "--warmup", str(entry.warmup)]
    command += ["--vocabulary", str(entry.vocabulary)] + ["--bf16"] * entry.bf16
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
