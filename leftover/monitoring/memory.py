"""Memory: how much a run takes, and giving back what it does not need any more."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet


def give_back() -> None:
    """Have the C library give the system what tensors have freed; glibc keeps blocks below 32 MiB for the next ones."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


_STATUS, _CLEAR, _STATM = (Path("/proc/self") / name for name in ("status", "clear_refs", "statm"))


class MemoryMeter:
    """The most memory in use since the meter was made, as of the last `read`; several meters may run at once.

    Attributes:
        process: resident bytes of the process, with its libraries.
        gpu: bytes of tensors on the current GPU (`torch.cuda.max_memory_allocated`); None without one in use.
        counts_anew: whether `process` leaves out earlier work, which only Linux can do.
    """

    def __init__(self) -> None:
        for other in list(_METERS):  # a new count discards what they have not read
            other.read()
        self.process = 0
        self.gpu: int | None = None
        self.counts_anew = _start_resident_count()
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()
        _METERS.add(self)

    def read(self) -> None:
        """Bring the attributes up to date."""
        self.process = max(self.process, _resident_peak())
        if cuda := _cuda():
            self.gpu = max(self.gpu or 0, cuda.max_memory_allocated())


_METERS: WeakSet[MemoryMeter] = WeakSet()


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int | str]]:
    """Yields a dictionary that holds, at the end, the most memory that was in use inside.

    `peak_memory` is in bytes, of tensors on a GPU (earlier ones included), else of the process. `peak_memory_of` is
    gpu, process, or process_lifetime if that includes earlier work.
    """
    found: dict[str, int | str] = {}
    meter = MemoryMeter()
    yield found
    meter.read()
    of = "gpu" if meter.gpu is not None else "process" if meter.counts_anew else "process_lifetime"
    found |= {"peak_memory": meter.process if meter.gpu is None else meter.gpu, "peak_memory_of": of}


def _cuda() -> Any:
    """`torch.cuda`, if this process uses a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def _resident_peak() -> int:
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_in_use() -> int | None:
    """Bytes: the peak of tensors on a GPU, else those of the process; None if unknown. Does not wait for the GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _start_resident_count() -> bool:
    """Reset the peak of the process's resident memory; False if the system cannot."""
    try:
        _CLEAR.write_text("5")
        return "VmHWM:" in _STATUS.read_text()
    except OSError:
        return False
