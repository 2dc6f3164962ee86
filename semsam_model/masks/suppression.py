"""Greedy non-maximum suppression. What makes one answer a repetition of another is the caller's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def suppress(
    ordered: Iterable[int], count: int, repeats: Callable[[int], np.ndarray], most: int | None = None
) -> list[int]:
    """Of places 0..count-1, best first: those that repeat none that was kept before; at most `most`.

    repeats: a place that is kept -> bool (count,), which others repeat it.
    """
    kept: list[int] = []
    free = np.ones(count, bool)
    for at in ordered:
        if most is not None and len(kept) >= most:
            break
        if free[at]:
            kept.append(int(at))
            free &= ~repeats(at)
    return kept
