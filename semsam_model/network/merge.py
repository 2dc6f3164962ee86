"""What of a corrected mask is taken over: what changed at the newest click; and every click is obeyed. NumPy, OpenCV.

FocalClick calls it progressive merge: what the annotator had already accepted elsewhere stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from semsam_model.network.refiner_frame import DISK
from semsam_model.types import Click

NEAR = 4.0  #: a changed region this near to the newest click is taken over, pixels of the crop
MARGIN = 2  #: pixels around it that are taken over too, so that its border lies where the network put it
OBEYED = 1  #: pixels on each side of a click that are changed where the mask does not obey it
SURE = 1.0  #: least logit there


def merge(before: np.ndarray, after: np.ndarray, clicks: Sequence[Click], near: float = NEAR) -> np.ndarray:
    """Logits (SIDE, SIDE) before and after a correction -> merged logits, which obey every click.

    clicks: in pixels of the crop, the newest last. Away from the newest, from what changed there and from clicks that
    were not obeyed, the result is `before`, bit for bit.
    """
    merged = np.where(_changed_near(before, after, clicks[-1], near), after, before)
    return obeying(merged, clicks)


def _changed_near(before: np.ndarray, after: np.ndarray, newest: Click, near: float) -> np.ndarray:
    """bool: the connected regions that changed sides near the newest click, with a margin; and the disk at it."""
    changed = ((before > 0) != (after > 0)).astype(np.uint8)
    reach = np.zeros_like(changed)
    cv2.circle(reach, _pixel(newest), round(min(near, 2 * max(changed.shape))), 1, cv2.FILLED)
    _, labels = cv2.connectedComponents(changed, connectivity=8)
    taken = np.isin(labels, np.setdiff1d(labels[reach > 0], 0)).astype(np.uint8)
    cv2.circle(taken, _pixel(newest), DISK, 1, cv2.FILLED)
    return cv2.dilate(taken, np.ones((2 * MARGIN + 1,) * 2, np.uint8)) > 0


def obeying(logits: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """Logits (h, w), changed closely around each click that they do not obey; clicks in their pixels.

    Of clicks that contradict each other the newer one, which comes later, is obeyed.
    """
    out = logits
    for click in clicks:
        column, row = _pixel(click)
        if not (0 <= row < out.shape[0] and 0 <= column < out.shape[1]) or (out[row, column] > 0) == click.positive:
            continue
        out = out.copy()
        near = np.s_[max(0, row - OBEYED) : row + OBEYED + 1, max(0, column - OBEYED) : column + OBEYED + 1]
        out[near] = np.maximum(out[near], SURE) if click.positive else np.minimum(out[near], -SURE)
    return out


def _pixel(click: Click) -> tuple[int, int]:
    return int(np.floor(click.x)), int(np.floor(click.y))
