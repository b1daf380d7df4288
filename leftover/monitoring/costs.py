"""What a stage took and on which machine: kept in its manifest entry, part of no key."""

import contextlib
import os
import platform
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from leftover.monitoring.memory import MemoryMeter

_PACKAGES = (
    "leftover", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "scikit-learn",
)  # fmt: skip


class Machine(TypedDict, total=False):
    """Hardware and versions of a process, without a name that identifies its owner."""

    system: str
    processor: str
    cores: int | None
    gpus: list[str]
    python: str
    packages: dict[str, str]
    memory: int  # bytes


class StageCost(TypedDict, total=False):
    """What a stage took, as the manifest keeps it."""

    seconds: float  # wall time, added up over sessions
    sessions: int  # how many processes worked on it
    peak_memory: int  # bytes of the process, the most of any session
    peak_gpu_memory: int  # bytes of tensors on a GPU
    machines: list[Machine]  # equal ones once


class StageMeter:
    """Wall time and peak memory of a stage from now on, on top of its cost in earlier sessions."""

    def __init__(self, earlier: StageCost):
        self.earlier, self.started, self.memory = earlier, time.monotonic(), MemoryMeter()

    def read(self) -> StageCost:
        self.memory.read()
        here, before = machine(), self.earlier
        machines = before.get("machines", [])
        cost: StageCost = {
            "seconds": round(before.get("seconds", 0.0) + time.monotonic() - self.started, 3),
            "sessions": before.get("sessions", 0) + 1,
            "peak_memory": max(before.get("peak_memory", 0), self.memory.process),
            "machines": machines if here in machines else [*machines, here],
        }
        if self.memory.gpu is not None or "peak_gpu_memory" in before:
            cost["peak_gpu_memory"] = max(before.get("peak_gpu_memory", 0), self.memory.gpu or 0)
        return cost


def machine() -> Machine:
    torch = sys.modules.get("torch")  # a stage that did not import it used no GPU
    found: Machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch else [],
        "python": platform.python_version(),
        "packages": _versions(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found


@cache
def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
