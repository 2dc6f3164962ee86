"""How the C library gives memory back: not between the operations of a step."""

from __future__ import annotations

import ctypes
import platform

# of malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEPT = (1 << 31) - 1  #: bytes at the end of the heap that are kept, the most that an int holds
_STEP = 64 << 20  #: bytes by which the heap grows


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones. True where that was done: with glibc.

    As it comes, glibc hands each large tensor back to the system, which clears every page of the next one: a twentieth
    to a half of the processor time of a step, by how short memory is. All threads share one heap then, and the process
    stays as large as it was at its largest.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP), (_ARENA_MAX, 1))
    return min(mallopt(name, value) for name, value in settings) == 1
