"""The C library's heap: keep what a forward frees for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters (malloc.h)
_KEPT = 1 << 30  # bytes at the top of the heap that are kept
_LARGEST = 32 << 20  # bytes of one allocation that may come from the heap, the most that glibc accepts


def keep_freed() -> None:
    """Let glibc keep up to 1 GiB of freed memory instead of giving it back to the system at once.

    By default the activations of a layer are given back as soon as they are freed, and the kernel zeroes the same pages
    again for the next layer: a quarter of the time of a forward of the shipped model. Concerns the whole process. Does
    nothing where there is no ``mallopt`` (other systems, other allocators).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
