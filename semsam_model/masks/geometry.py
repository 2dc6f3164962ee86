"""Masks, their boxes and crops, and how far two masks agree. NumPy and OpenCV, no torch.

Frame: photo pixels, or cells of a logit map where a caller says so. A mask is bool (H, W), `size` is (H, W). A box is
half-open x0, y0, x1, y1: pixel (column j, row i) covers [j, j+1) x [i, i+1). A crop is the part of a mask inside its
box, so that a small mask of a large photo costs little. An empty mask is a (0, 0) crop with box 0, 0, 0, 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import cv2
import numpy as np

from semsam_model.errors import DataError

Size = tuple[int, int]
BBox = tuple[int, int, int, int]

#: Largest mask that is built, so that a few bytes cannot ask for gigabytes.
MAX_PIXELS = 1 << 28
EMPTY_BBOX: BBox = (0, 0, 0, 0)


def checked_size(size: Size) -> Size:
    """The (H, W) itself; DataError when it is no photo's, or larger than a decoder builds."""
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(f"size: expected a photo of 1 to {MAX_PIXELS} pixels, got {width} x {height}")
    return height, width


# ------------------------------------------------------------------------------------------------------ boxes and crops


def tight_bbox(mask: np.ndarray) -> BBox:
    """The smallest box that holds a bool (H, W) mask; EMPTY_BBOX for an empty one."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return EMPTY_BBOX
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def crop_mask(mask: np.ndarray, origin: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, BBox]:
    """bool (h, w) -> its tight crop, a view, and that crop's box.

    `mask` may itself be a crop of a photo's mask, whose upper left pixel is at `origin` (x, y) of the photo: the box is
    in the photo's pixels then.
    """
    x0, y0, x1, y1 = tight_bbox(mask)
    if x0 == x1:
        return np.zeros((0, 0), bool), EMPTY_BBOX
    left, top = origin
    return mask[y0:y1, x0:x1], (left + x0, top + y0, left + x1, top + y1)


def check_crop(crop: np.ndarray, bbox: BBox, size: Size) -> None:
    """Raises DataError unless the crop is bool and fills its box, and the box lies inside the photo."""
    x0, y0, x1, y1 = bbox
    height, width = size
    if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise DataError(f"bbox {bbox}: expected x0, y0, x1, y1 inside a photo of {width} x {height} pixels")
    if crop.dtype != bool or crop.shape != (y1 - y0, x1 - x0):
        raise DataError(f"mask crop: expected bool {(y1 - y0, x1 - x0)} for bbox {bbox}, got {crop.dtype} {crop.shape}")


def paste(crop: np.ndarray, bbox: BBox, size: Size, order: Literal["C", "F"] = "C") -> np.ndarray:
    """The whole bool (H, W) mask of a crop, in numpy's memory order `order`. Raises DataError as `check_crop`."""
    check_crop(crop, bbox, size)
    full = np.zeros(size, bool, order=order)
    x0, y0, x1, y1 = bbox
    full[y0:y1, x0:x1] = crop
    return full


def clean_pixels(crop: np.ndarray, bbox: BBox, min_pixels: float) -> tuple[np.ndarray, BBox]:
    """The mask without specks and pinholes below `min_pixels`, with its tight box. The largest region always stays.

    Pixels that touch at a corner are one region. What `candidates.clean` joins on the cells of a logit map may be apart
    in the photo: a neck that runs between pixel centres, a cell whose centre lies beyond the border. Sizes follow from
    the outlines by Pick's theorem, so that a 12-megapixel mask is scanned once.
    """
    if not crop.any():
        return crop, bbox
    out = crop.astype(np.uint8)
    for sign in (-1, 1):  # pinholes first, as published, then specks
        outlines, tree = cv2.findContours(out, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        found = [
            (c, cv2.contourArea(c) + sign * len(c) / 2 + 1)
            for c, t in zip(outlines, tree[0], strict=True)
            if (t[3] < 0) == (sign > 0)
        ]
        small = [c for c, pixels in found if pixels < min_pixels]
        if sign > 0 and len(small) == len(found):
            largest = max(range(len(found)), key=lambda i: found[i][1])
            small = [c for i, (c, _) in enumerate(found) if i != largest]
        if small:
            cv2.drawContours(out, small, -1, 0 if sign > 0 else 1, cv2.FILLED)
    return crop_mask(out.view(bool), bbox[:2])


def fill_ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float, size: Size) -> np.ndarray:
    """bool (H, W): pixels whose centre lies inside an ellipse. centre: x, y; radii: across, down; turned clockwise."""
    height, width = checked_size(size)
    mask = np.zeros(size, bool)
    (x, y), (across, down) = centre, map(abs, radii)
    if not across or not down:
        return mask
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    reach = math.hypot(across * cos, down * sin), math.hypot(across * sin, down * cos)
    x0, x1 = (int(min(max(x + side * reach[0], 0), width)) for side in (-1, 1))
    y0, y1 = (int(min(max(y + side * reach[1], 0), height)) for side in (-1, 1))
    columns = np.arange(x0, min(x1 + 1, width))[None] + 0.5 - x
    rows = np.arange(y0, min(y1 + 1, height))[:, None] + 0.5 - y
    along, aside = (columns * cos + rows * sin) / across, (rows * cos - columns * sin) / down
    mask[y0 : y1 + 1, x0 : x1 + 1] = along**2 + aside**2 <= 1
    return mask


# ------------------------------------------------------------------------------------------------------------ agreement


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape. Two empty masks are the same mask: 1."""
    return crop_iou(a, _whole(a), b)


def crop_iou(crop: np.ndarray, bbox: BBox, mask: np.ndarray) -> float:
    """`iou` of a mask given as its crop and box with a whole bool (H, W) mask."""
    return crops_iou(crop, bbox, mask, _whole(mask))


def crops_iou(crop: np.ndarray, bbox: BBox, other: np.ndarray, other_bbox: BBox) -> float:
    """`iou` of two masks of one photo, both given as crops and boxes."""
    shared = shared_pixels(crop, bbox, other, other_bbox)
    union = int(np.count_nonzero(crop)) + int(np.count_nonzero(other)) - shared
    return shared / union if union else 1.0


def shared_pixels(crop: np.ndarray, bbox: BBox, other: np.ndarray, other_bbox: BBox) -> int:
    """Pixels that lie in both of two masks of one photo, given as crops and boxes."""
    x0, y0 = max(bbox[0], other_bbox[0]), max(bbox[1], other_bbox[1])
    x1, y1 = min(bbox[2], other_bbox[2]), min(bbox[3], other_bbox[3])
    if x0 >= x1 or y0 >= y1:
        return 0
    both = [m[y0 - top : y1 - top, x0 - left : x1 - left] for m, (left, top, *_) in ((crop, bbox), (other, other_bbox))]
    return int(np.count_nonzero(both[0] & both[1]))


def _whole(mask: np.ndarray) -> BBox:
    return 0, 0, mask.shape[1], mask.shape[0]


def mask_rows(masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """bool masks of one shape, (n, h, w) -> float32 (n, h * w): the product of two rows counts the pixels they share.

    A sequence holds at least one mask; an array may hold none.
    """
    stacked = np.asarray(masks)
    return stacked.reshape(len(stacked), stacked.shape[1] * stacked.shape[2]).astype(np.float32)


def greedy_nms(
    ordered: Iterable[int], count: int, repeats: Callable[[int], np.ndarray], most: int | None = None
) -> list[int]:
    """Non-maximum suppression: of places 0..count-1, best first, those that repeat none kept before; at most `most`.

    repeats: a place that is kept -> bool (count,), which others repeat it.
    """
    kept: list[int] = []
    free = np.ones(count, bool)
    for at in ordered:
        if most is not None and len(kept) >= most:
            break
        if free[at]:
            kept.append(int(at))
            free &= ~repeats(at)
    return kept
