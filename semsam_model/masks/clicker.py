"""Where an annotator would click: first in the middle of what is wanted, then where the answer is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from semsam_model.types import Click


def innermost(mask: np.ndarray) -> Click:
    """The pixel deepest inside a bool (H, W) mask that is not empty; the photo's border is a border of the mask."""
    return _deepest(_depth(mask), positive=True)


def near_middle(mask: np.ndarray, rng: np.random.Generator) -> Click:
    """A pixel of the mask, drawn from its inner part: the square of half its height and width, or anywhere."""
    rows, cols = np.nonzero(mask)
    middle = innermost(mask)
    near = (abs(rows - middle.y) <= np.ptp(rows) / 4) & (abs(cols - middle.x) <= np.ptp(cols) / 4)
    at = rng.choice(np.flatnonzero(near)) if near.any() else rng.integers(len(rows))
    return Click(float(cols[at]) + 0.5, float(rows[at]) + 0.5)


def next_click(wanted: np.ndarray, answer: np.ndarray, clicks: Sequence[Click]) -> Click | None:
    """The next correction: positive in what is missing or negative in what is too much, whichever reaches deeper.

    Masks are bool (H, W). A pixel that was clicked before is not clicked again; None when nothing is left to correct.
    """
    missing, surplus = _depth(wanted & ~answer), _depth(answer & ~wanted)
    for click in clicks:
        at = min(int(click.y), wanted.shape[0] - 1), min(int(click.x), wanted.shape[1] - 1)
        missing[at] = surplus[at] = 0
    if not missing.any() and not surplus.any():
        return None
    positive = bool(missing.max() >= surplus.max())
    return _deepest(missing if positive else surplus, positive)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to outside the mask, float32."""
    return cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _deepest(depth: np.ndarray, positive: bool) -> Click:
    i, j = np.unravel_index(int(depth.argmax()), depth.shape)
    return Click(float(j) + 0.5, float(i) + 0.5, positive)
