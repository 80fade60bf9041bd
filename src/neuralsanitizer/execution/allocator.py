"""Keeping freed memory at hand.

Every operation on images gives back the memory of its results and asks for new. The GNU C library takes large pieces
from the system each time, which clears them page by page. Measured on one core: a seventh of the time on ``mnist-cnn``,
and three tenths on ``deepid`` (``python benchmarks/allocator.py``).
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> bool:
    """Have the C library keep large pieces of memory that are freed, for the next operation, in all of this process.

    The program and its workers do so. It is for each process to decide, so a scan by the library does not: call it
    once, before the first one. Results stay the same, to the last bit, and so does the peak of memory; what the
    process had at its peak it keeps to its end.

    Returns:
        Whether there was something to set: other C libraries have no such setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; on Windows there is no library without a name
        return False
    mapped = set_option(_MMAP_THRESHOLD, _LARGE) or set_option(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    return bool(mapped) and bool(set_option(_TRIM_THRESHOLD, _LARGE))


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
_LARGE = 1 << 30  # bytes; networks' results are smaller
_LARGEST_OF_OLD = 1 << 25  # older GNU C libraries refuse more than half of a thread's heap
