"""What the gate asks for, and the interval that it judges means by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from semsam_model.config import check_fields
from semsam_model.errors import ConfigError


@dataclass(frozen=True)
class GateConfig:
    """How much better, and how much worse elsewhere. Figures are points of percent."""

    margin: float = 1.0
    """Least mean gain on the held-out corrections. Below zero: a loss that is put up with, also by the interval"""
    tolerance: float = 1.0
    """Largest loss on the guard set"""
    name_tolerance: float = 3.0
    """Largest loss of label top-1"""
    confidence: float = 0.95
    """Of the bootstrap interval of the gain, and of the test that names follow the labels"""
    pictures: float = 0.99
    """Of the interval of what masks agree better with their own photos than with others; 0: not asked"""
    resamples: int = 2000
    min_photos: int = 3
    """Held-out photos without which nothing is promoted"""
    min_masks: int = 8
    """Held-out masks without which nothing is promoted"""
    photos: int = 40
    """Held-out photos looked at, at most, evenly spaced"""
    scenes: int = 16
    """Made scenes of the guard set"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1 or min(self.resamples, self.min_photos, self.min_masks, self.photos) < 1:
            raise ConfigError(
                "gate: expected 0.5 <= confidence < 1 and resamples, min_photos, min_masks, photos of at least 1"
            )
        if self.pictures != 0 and not 0.5 <= self.pictures < 1:
            raise ConfigError(f"gate: pictures {self.pictures}: expected 0, or 0.5 <= pictures < 1")
        if min(self.tolerance, self.name_tolerance, self.scenes, self.seed) < 0:
            raise ConfigError("gate: tolerance, name_tolerance, scenes, seed: expected at least 0")

    @classmethod
    def from_dict(cls, values: object, where: str = "gate") -> GateConfig:
        """Checked construction from plain values. Raises ConfigError naming the key."""
        return cls(**check_fields(cls, values, where))


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, points of percent."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} points, interval {self.low:+.1f} to {self.high:+.1f}"


def widened(interval: Interval, gains: Sequence[float], photos: Sequence[int], config: GateConfig) -> Interval:
    """The wider of a bootstrap interval and Student's, whose unit is the photo too (its mean is a ratio of sums).

    With few photos a percentile interval is far too narrow: where three photos happen to gain, it lies above zero.
    Hesterberg, What Teachers Should Know About the Bootstrap (2015), on small samples; Cochran, Sampling Techniques
    (1977), chapter 6, for the error of a ratio. A single photo says nothing.
    """
    numbers = np.unique(np.asarray(photos), return_inverse=True)[1]
    sums, counts = np.bincount(numbers, gains), np.bincount(numbers)
    n = len(sums)
    if n < 2:
        return Interval(interval.mean, interval.mean - 100, interval.mean + 100)
    error = np.sqrt(n / (n - 1) * np.square(sums - interval.mean * counts).sum()) / counts.sum()
    reach = float(stdtrit(n - 1, 0.5 + config.confidence / 2) * error)
    return Interval(interval.mean, min(interval.low, interval.mean - reach), max(interval.high, interval.mean + reach))


def bootstrap(
    gains: Sequence[float], photos: Sequence[int], config: GateConfig, confidence: float | None = None
) -> Interval:
    """Mean of gains, each of a photo, and its percentile interval when whole photos are drawn again with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Zeros without gains. confidence:
    another than the config's.
    """
    if not gains:
        return Interval(0.0, 0.0, 0.0)
    numbers = np.unique(np.asarray(photos), return_inverse=True)[1]
    sums, counts = np.bincount(numbers, gains), np.bincount(numbers)
    rng = np.random.default_rng(config.seed)
    drawn = rng.integers(len(sums), size=(config.resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = 50 * (1 - (config.confidence if confidence is None else confidence))
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(np.mean(gains)), float(low), float(high))
