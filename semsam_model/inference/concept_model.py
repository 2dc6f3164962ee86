"""What finds things by words: the seam to SAM 3, OWLv2, Grounding DINO and others.

encode(photo or window) -> look            a value; the model keeps no photo
find(look, queries) -> what is found       boxes, or masks in boxes, with scores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from semsam_model.network.frame import Frame, Window
from semsam_model.types import Box


class Query(NamedTuple):
    """Words, and where in the photo the same thing is known to be."""

    words: str
    examples: tuple[Box, ...] = ()  #: photo pixels; a model that cannot use them leaves them


@dataclass(frozen=True, eq=False)
class Found:
    """One thing that words name: a box, and a mask where the model draws one."""

    box: Box  #: photo pixels, inside the photo
    score: float  #: 0..1, as the model says it
    logits: np.ndarray | None = None  #: float32 (h, w), of `frame`
    frame: Frame | None = None


class Look(Protocol):
    """What a concept model keeps of a photo, or of a window of it."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes in a cache."""


class ConceptModel(Protocol):
    """Finds what words name. Looks are its own kind of `Look`."""

    @property
    def least(self) -> float:
        """Score from which on something counts as found, while nobody knows what scores are worth."""

    @property
    def takes_examples(self) -> bool:
        """Whether the examples of a query change what it finds."""

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> Any:
        """uint8 RGB (H, W, 3), the whole photo -> its look at it, or at a window alone. Raises ImageError."""

    def find(self, look: Any, queries: Sequence[Query], least: float) -> list[list[Found]]:
        """For each query what scores at least `least`, in any order."""
