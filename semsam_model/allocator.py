"""How the C library gives memory back: never while a model is trained, at once where photos come and go."""

from __future__ import annotations

import ctypes
import platform

# of malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEPT = (1 << 31) - 1  #: bytes at the end of the heap that are kept, the most that an int holds
_STEP = 64 << 20  #: bytes by which the heap grows
_LARGE = 4 << 20  #: bytes of a block that goes back to the system by itself


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones. True where that was done: with glibc.

    As it comes, glibc hands each large tensor back to the system, which clears every page of the next one: a twentieth
    to a half of the processor time of a step, by how short memory is. All threads share one heap then, and the process
    stays as large as it was at its largest.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP), (_ARENA_MAX, 1))


def return_freed_memory() -> bool:
    """Let the process give the memory of freed tensors back to the system. True where that was done: with glibc.

    As it comes, glibc keeps a heap for each thread and raises the size from which a block is given back by itself, up
    to 32 MiB: what an embedding leaves behind in one thread's heap is then lost to the next photo in another's.
    """
    return _set((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, 32 * _LARGE), (_ARENA_MAX, 1))


def _set(*settings: tuple[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return min(mallopt(name, value) for name, value in settings) == 1
