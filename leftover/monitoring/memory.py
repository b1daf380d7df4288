"""How the process treats memory that a CPU run frees and asks for again at every step; how much a run takes."""

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
# Where glibc's own adaptive thresholds end up in a process that frees large blocks; 65,536 is its default.
_AFTERWARDS = ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Inside, glibc keeps what tensors free, in place of handing it back to the system and faulting it in again.

    Gradients and logits of a large vocabulary are tens of megabytes, freed and allocated at every step. By default
    each is mapped anew, and the first touch of every page is a page fault; PyTorch has a cache for this on a GPU
    and none on a CPU. At the end what is free goes back to the system.

    Yields whether the system's C library knows the settings (glibc; elsewhere nothing is done).
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        known = bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _LARGEST))
    except (OSError, AttributeError):
        known = False
    try:
        yield known
    finally:
        if known:
            for setting, value in _AFTERWARDS:
                library.mallopt(setting, value)
            library.malloc_trim(0)


_STATUS, _CLEAR, _STATM = (Path("/proc/self") / name for name in ("status", "clear_refs", "statm"))


class MemoryMeter:
    """The most memory in use since it was made, read by `read`; meters may be made while others run.

    Attributes:
        process: bytes of the process, resident, with its libraries.
        gpu: bytes of tensors on the current GPU (`torch.cuda.max_memory_allocated`); None without one in use.
        counts_anew: False where the system cannot start a new count of `process` (all but Linux), so that earlier
            work of the process may be in it.
    """

    def __init__(self) -> None:
        for other in list(_METERS):  # a new count forgets what they have not read
            other.read()
        self.process, self.gpu = 0, None
        self.counts_anew = _start_resident_count()
        if _gpu_in_use():
            sys.modules["torch"].cuda.reset_peak_memory_stats()
        _METERS.add(self)

    def read(self) -> None:
        """Bring the attributes up to date."""
        self.process = max(self.process, _resident_peak())
        if _gpu_in_use():
            self.gpu = max(self.gpu or 0, sys.modules["torch"].cuda.max_memory_allocated())


_METERS: WeakSet[MemoryMeter] = WeakSet()


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, Any]]:
    """Yields a dictionary that holds, at the end, the most memory that was in use inside.

    On a GPU `peak_memory` is in bytes of tensors (those from before included); on a CPU of the process.
    `peak_memory_of` says which: gpu, process, or process_lifetime where the system cannot start a new count.
    """
    found: dict[str, Any] = {}
    meter = MemoryMeter()
    yield found
    meter.read()
    if meter.gpu is not None:
        found |= {"peak_memory": meter.gpu, "peak_memory_of": "gpu"}
    else:
        of = "process" if meter.counts_anew else "process_lifetime"
        found |= {"peak_memory": meter.process, "peak_memory_of": of}


def _gpu_in_use() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()


def _resident_peak() -> int:
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_in_use() -> int | None:
    """Bytes: on a GPU the peak of its tensors so far, else what the process has resident; None where none tells.

    Read from counters of the host: a GPU is not waited for.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _start_resident_count() -> bool:
    """Set the process's high-water mark of resident memory to what is resident now; False where that cannot be."""
    try:
        _CLEAR.write_text("5")
        return "VmHWM:" in _STATUS.read_text()
    except OSError:
        return False
