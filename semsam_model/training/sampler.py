"""Which photo comes when: shares of sources hold in every round, in the same little memory for any number of photos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_WORD = (1 << 64) - 1
_FEISTEL = 6  #: rounds of the network


class PhotoSampler:
    """Place in the stream of training photos -> index of a photo, the same for the same seed.

    Photos come in rounds; a round is as long as all sources together and shuffled. In a round, a photo of a source with
    a large share may come several times, and a photo of a source with a small share may be left out.
    """

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int) -> None:
        """Photos of each source, at least 1; how much of what is shown is of each, any scale, one of them above 0."""
        self.total = sum(counts)
        self._starts = np.cumsum([0, *counts])
        self._cumulative = np.cumsum([0.0, *shares]) / sum(shares)
        self._seed = seed

    def __call__(self, place: int) -> int:
        number, position = divmod(place, self.total)
        *keys, last = _keys(self._seed, number)
        tick = permuted(position, self.total, keys)
        return self.at((tick + _splitmix64(tick + last) / 2**64) / self.total)

    def at(self, share: float) -> int:
        """Index of the photo that lies at a share, 0..1, of all sources laid out by their shares."""
        source = min(int(np.searchsorted(self._cumulative, share, side="right")), len(self._cumulative) - 1)
        low, high = self._cumulative[source - 1], self._cumulative[source]
        first, end = int(self._starts[source - 1]), int(self._starts[source])
        return min(first + int((share - low) / (high - low) * (end - first)), end - 1)


def permuted(position: int, count: int, keys: Sequence[int]) -> int:
    """Where a permutation of range(count), one for each choice of keys, puts `position`.

    A Feistel network on the next power of four, applied again until it lands below `count` (Black and Rogaway 2002).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for key in keys:
            left, right = right, left ^ (_splitmix64(right + key) & mask)
        position = left << half | right
        if position < count:
            return position


@lru_cache(maxsize=4)
def _keys(seed: int, number: int) -> tuple[int, ...]:
    return tuple(map(int, np.random.SeedSequence([seed, 1, number]).generate_state(_FEISTEL + 1, np.uint64)))


def _splitmix64(value: int) -> int:
    """64 bits well stirred (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _WORD
    return value ^ value >> 31
