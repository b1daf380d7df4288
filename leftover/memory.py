"""How the process treats memory that a CPU run frees and asks for again at every step."""

import contextlib
import ctypes
from collections.abc import Iterator

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
