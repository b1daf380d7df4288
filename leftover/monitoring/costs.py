"""What a stage took and on which machine: measured while it runs, kept in its manifest entry, part of no key."""

import contextlib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leftover.monitoring.memory import MemoryMeter

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerState

_PACKAGES = (
    "leftover", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy", "scikit-learn",
)  # fmt: skip


class StageMeter:
    """Wall time and peak memory of a stage from now on, on top of what its earlier sessions took.

    Args:
        earlier: the cost of the stage so far, where it is resumed.
    """

    def __init__(self, earlier: dict[str, Any] | None = None):
        self.earlier = earlier or {}
        self.started, self.memory = time.monotonic(), MemoryMeter()

    def read(self) -> dict[str, Any]:
        """The cost of the stage as the manifest keeps it.

        seconds: wall time, added up over sessions; sessions: how many processes worked on it; peak_memory: bytes of
        the process, and peak_gpu_memory of tensors on a GPU, the most of any session; machines: `machine` of each,
        equal ones once.
        """
        self.memory.read()
        here, before = machine(), self.earlier
        machines = before.get("machines", [])
        gpu = [bytes_ for bytes_ in (before.get("peak_gpu_memory"), self.memory.gpu) if bytes_ is not None]
        return {
            "seconds": round(before.get("seconds", 0.0) + time.monotonic() - self.started, 3),
            "sessions": before.get("sessions", 0) + 1,
            "peak_memory": max(before.get("peak_memory", 0), self.memory.process),
            **({"peak_gpu_memory": max(gpu)} if gpu else {}),
            "machines": machines if here in machines else [*machines, here],
        }


def machine() -> dict[str, Any]:
    """Hardware and versions of this process, without a name that identifies its owner."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": _versions(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found


def cost_callback(manifest: Any) -> "TrainerCallback":
    """A callback that writes down at every checkpoint what the stage took so far, in case the run is killed."""
    from transformers import TrainerCallback

    class CostSoFar(TrainerCallback):
        def on_save(self, args: object, state: "TrainerState", control: object, **kwargs: object) -> None:
            if state.is_world_process_zero:
                manifest.note_costs()

    return CostSoFar()


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, "") or platform.processor()
    except OSError:
        return platform.processor()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a stage that did not import it used no GPU
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
