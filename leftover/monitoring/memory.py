"""Memory: how much a run takes, and keeping on a CPU what every step frees and allocates again."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

# Numbers of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1
# Where glibc's adaptive thresholds end up in a process that frees large blocks; 65,536 is its default.
_AFTERWARDS = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Inside, glibc keeps the memory that tensors free; at the end the system gets it back.

    Gradients and logits of a large vocabulary are tens of megabytes, freed and allocated at every step. By default each
    is mapped again, with a page fault at the first touch of every page; PyTorch has a cache for this on GPUs only.

    Yields whether the C library has these settings; only glibc does.
    """
    known = False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        known = bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _LARGEST))
    try:
        yield known
    finally:
        if known:
            for setting, value in _AFTERWARDS:
                library.mallopt(setting, value)
            library.malloc_trim(0)


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
