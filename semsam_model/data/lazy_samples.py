"""Long sequences of samples that are made when they are asked for; workers may get them by pickle."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import overload

import numpy as np

from semsam_model.data.samples import Sample


class LazySamples(Sequence[Sample]):
    """`count` samples, each made by `make(index)` when it is asked for, and not kept. Workers get `make` by pickle."""

    def __init__(self, count: int, make: Callable[[int], Sample]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> LazySamples: ...
    def __getitem__(self, index: int | slice) -> Sample | LazySamples:
        chosen = range(self._count)[index]
        if isinstance(chosen, range):
            return LazySamples(len(chosen), partial(_chosen, self._make, chosen))
        return self._make(chosen)


def _chosen(make: Callable[[int], Sample], places: range, index: int) -> Sample:
    return make(places[index])


def pack(samples: Iterable[Sample]) -> LazySamples:
    """The same samples, serialised: in one block of memory that worker processes share.

    Polygons as Python numbers take several times the bytes, and looking at them in a worker copies their pages.
    """
    block, ends = bytearray(), array("q", [0])
    for sample in samples:
        block += pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL)
        ends.append(len(block))
    return LazySamples(len(ends) - 1, partial(_unpacked, np.frombuffer(block, np.uint8), np.frombuffer(ends, np.int64)))


def _unpacked(block: np.ndarray, ends: np.ndarray, index: int) -> Sample:
    return pickle.loads(block[ends[index] : ends[index + 1]].data)


def chain(parts: Sequence[Sequence[Sample]]) -> LazySamples:
    """The parts one after another."""
    ends = np.cumsum([0, *map(len, parts)])
    return LazySamples(int(ends[-1]), partial(_linked, tuple(parts), ends))


def _linked(parts: tuple[Sequence[Sample], ...], ends: np.ndarray, index: int) -> Sample:
    part = int(np.searchsorted(ends, index, side="right")) - 1
    return parts[part][index - int(ends[part])]
