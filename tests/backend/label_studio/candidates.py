"""Candidates of a made photo."""

from typing import Any

import numpy as np

from semsam_model.masks.geometry import crop_mask
from semsam_model.types import LEVEL_TOKENS, Candidate
from tests.semsam_model.masks.shapes import disc


def candidate(mask: np.ndarray, rank: int = 1, parent: int | None = None, level: int = 2, **own: Any) -> Candidate:
    crop, bbox = crop_mask(mask)
    token = LEVEL_TOKENS[level - 1]
    shown = {"score": 0.8123456, "predicted_iou": 0.9, "stability": 0.95} | own
    return Candidate(rank, token, level, size=mask.shape, bbox=bbox, crop=crop, parent=parent, **shown)


def nested() -> list[Candidate]:
    """Best first: the middle one; then the whole, then the smallest part."""
    middle, whole, part = (disc(61, 83, 40, 30, radius) for radius in (18, 28, 7))
    return [
        candidate(middle, 1, parent=2, level=3, score=0.9),
        candidate(whole, 2, level=1, score=0.7),
        candidate(part, 3, parent=1, level=6, score=0.5),
    ]
