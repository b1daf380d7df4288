"""The machine that a recipe is written for: its device, the memory that a run may take, its cores."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from leftover.monitoring.terminal import size_text
from leftover.recipe.optional_packages import trains_on_cpu

# Of the memory: the rest is for what the estimate leaves out, and for other processes.
_OF_GPU, _OF_CPU = 0.85, 0.7
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Machine:
    name: str
    on_gpu: bool
    room: int  # bytes
    bfloat16: bool  # whether it computes in it as fast as it can

    def __str__(self) -> str:
        return f"{self.name}, of whose memory a run may take {size_text(self.room)}"


def this_machine() -> Machine:
    if not trains_on_cpu(False) and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Machine(torch.cuda.get_device_name(), True, round(_OF_GPU * free), torch.cuda.is_bf16_supported(False))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(f"a CPU of {cores} cores", False, round(_OF_CPU * _memory()), False)


def _memory() -> int:
    """Bytes of the machine, or of the container that this process is in."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is the word max
            found = min(found, int(limit.read_text()))
    return found
