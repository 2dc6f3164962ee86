"""Scores of sets of masks: text-prompted IoU, counting and borders of leaf-like instances. NumPy and OpenCV.

gIoU, cIoU   mean of the IoU of each question, and all intersections over all unions (reasoning segmentation,
             LISA, Lai et al. 2023)
SBD, DiC     symmetric best Dice and difference in count (leaf segmentation challenge, Scharr et al. 2016,
             equations 2 to 4)
boundary F   precision and recall of border pixels within a tolerance (DAVIS, Perazzi et al. 2016)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from semsam_model.masks.geometry import mask_rows

TOLERANCE = 0.008  #: of the photo's diagonal, as DAVIS sets it


@dataclass
class TextIou:
    """One entry a question (a photo and a word): union of what was answered against union of what was annotated."""

    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def add(self, predicted: np.ndarray, wanted: np.ndarray) -> None:
        """bool (H, W) twice."""
        self.intersections.append(int(np.count_nonzero(predicted & wanted)))
        self.unions.append(int(np.count_nonzero(predicted | wanted)))

    def percent(self) -> dict[str, float | int | None]:
        """gIoU and cIoU, None without a question; one about nothing that is answered with nothing is right."""
        inner, union = np.array(self.intersections), np.array(self.unions)
        if not union.size:
            return {"giou": None, "ciou": None, "n": 0}
        each = np.where(union > 0, inner / np.maximum(union, 1), 1.0)
        total = float(inner.sum() / union.sum()) if union.sum() else 1.0
        return {"giou": round(100 * float(each.mean()), 2), "ciou": round(100 * total, 2), "n": len(union)}


def best_dice(masks: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean over `masks` of the best Dice with one of `others`, 0..1; 0 when one side is empty, 1 when both are.

    bool (H, W) each.
    """
    if not masks or not others:
        return float(not masks and not others)
    a, b = mask_rows(masks), mask_rows(others)
    dice = 2 * (a @ b.T) / np.maximum(a.sum(1)[:, None] + b.sum(1), 1)
    return float(dice.max(1).mean())


def symmetric_best_dice(predicted: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """SBD, 0..1: the lower of both directions."""
    return min(best_dice(predicted, wanted), best_dice(wanted, predicted))


def boundary_f(predicted: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """F measure of the border pixels of two bool (H, W) masks, 0..1; 1 when both are empty.

    tolerance: share of the photo's diagonal within which border pixels count as met, at least one pixel.
    """
    return _borders_f(border(predicted), border(wanted), tolerance)


def _borders_f(one: np.ndarray, other: np.ndarray, tolerance: float) -> float:
    if not one.any() or not other.any():
        return float(not one.any() and not other.any())
    reach = max(1.0, tolerance * float(np.hypot(*one.shape)))
    precision = float((_distance_to(other)[one] <= reach).mean())
    recall = float((_distance_to(one)[other] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def border(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour (of four) outside it; beyond the photo is outside."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    return (padded - inner)[1:-1, 1:-1].astype(bool)


def _distance_to(border: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


@dataclass
class InstanceSets:
    """Sets of instances, a photo at a time."""

    sbd: list[float] = field(default_factory=list)
    boundary: list[float] = field(default_factory=list)
    difference: list[int] = field(default_factory=list)  #: predicted minus annotated

    def add(self, predicted: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
        """bool (H, W) each; `wanted` is not empty."""
        self.sbd.append(symmetric_best_dice(predicted, wanted))
        self.difference.append(len(predicted) - len(wanted))
        size = wanted[0].shape
        self.boundary.append(_borders_f(_outlines(predicted, size), _outlines(wanted, size), TOLERANCE))

    def figures(self) -> dict[str, float | int]:
        """SBD and boundary F in percent; DiC and its absolute value in instances, means over photos."""
        if not self.sbd:
            return {"sbd": 0.0, "boundary_f": 0.0, "dic": 0.0, "abs_dic": 0.0, "photos": 0}
        return {
            "sbd": round(100 * float(np.mean(self.sbd)), 2),
            "boundary_f": round(100 * float(np.mean(self.boundary)), 2),
            "dic": round(float(np.mean(self.difference)), 2),
            "abs_dic": round(float(np.mean(np.abs(self.difference))), 2),
            "photos": len(self.sbd),
        }


def _outlines(masks: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """The borders of all masks in one, so that borders between touching instances count."""
    every = np.zeros(size, bool)
    for mask in masks:
        every |= border(mask)
    return every
