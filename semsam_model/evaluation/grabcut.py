"""What needs no network: GrabCut from one click."""

from __future__ import annotations

import cv2
import numpy as np

from semsam_model.types import Click

LONG_SIDE = 256  #: GrabCut works on the photo at this size: at full size it takes seconds a click
SURE, LIKELY, REACH = 0.02, 0.15, 0.35  #: radii around the click, shares of the long side
ROUNDS = 5


def grabcut(rgb: np.ndarray, click: Click) -> np.ndarray:
    """uint8 RGB (H, W, 3) and a click in its pixels -> bool (H, W): the region under the click.

    A small disc is foreground for sure, a larger one probably, nothing beyond a third reach is.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    at = min(int(click.x * scale), size[0] - 1), min(int(click.y * scale), size[1] - 1)
    seeds = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    for share, value in ((REACH, cv2.GC_PR_BGD), (LIKELY, cv2.GC_PR_FGD), (SURE, cv2.GC_FGD)):
        cv2.circle(seeds, at, round(share * max(size)), int(value), -1)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    no_rect = (0, 0, 0, 0)
    cv2.grabCut(np.ascontiguousarray(small[..., ::-1]), seeds, no_rect, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(seeds, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, labels = cv2.connectedComponents(found, connectivity=4)
    region = (labels == labels[at[1], at[0]]) & (found > 0)
    return cv2.resize(region.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
