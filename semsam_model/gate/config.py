"""What the gate asks for: section `gate` of configs/finetune.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from semsam_model.config import STRICT, Count, NonNegative, NonNegativeInt


@dataclass(frozen=True, config=STRICT)
class GateConfig:
    """How much better, and how much worse elsewhere. Figures are points of percent."""

    margin: float = 1.0
    """Least mean gain on the held-out corrections. Below zero: a loss that is put up with, also by the interval"""
    tolerance: NonNegative = 1.0
    """Largest loss on the guard set"""
    name_tolerance: NonNegative = 3.0
    """Largest loss of label top-1"""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of the bootstrap interval of the gain, and of the test that names follow the labels"""
    pictures: float = 0.99
    """Of the interval of what masks agree better with their own photos than with others; 0: not asked"""
    resamples: Count = 2000
    min_photos: Count = 3
    """Held-out photos without which nothing is promoted"""
    min_masks: Count = 8
    """Held-out masks without which nothing is promoted"""
    photos: Count = 40
    """Held-out photos looked at, at most, evenly spaced"""
    scenes: NonNegativeInt = 16
    """Synthetic scenes of the guard set"""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.pictures != 0 and not 0.5 <= self.pictures < 1:
            raise ValueError(f"pictures {self.pictures}: expected 0, or 0.5 <= pictures < 1")
