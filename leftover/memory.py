"""How the process treats memory that a CPU run frees and asks for again at every step."""

import contextlib
import ctypes

# Numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free, in place of handing it back to the system and faulting it in again.

    Gradients and logits of a large vocabulary are tens of megabytes, freed and allocated at every step. By default
    each is mapped anew, and the first touch of every page is a page fault; PyTorch has a cache for this on a GPU
    and none on a CPU. The peak stays what it is, the process only gives less back below it.

    Returns whether the system's C library knows the settings (glibc; elsewhere nothing is done).
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    return False
