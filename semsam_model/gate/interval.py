"""A mean over masks of photos, and the interval that the gate judges it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from semsam_model.gate.config import GateConfig


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
