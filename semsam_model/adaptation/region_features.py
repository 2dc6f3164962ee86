"""A region as one vector, for learning from few examples while the network stays as it is.

A vector is made of blocks of unit length, each times a weight, so the dot product of two vectors compares the regions
block by block:

    inside    maps of the network pooled inside the mask: memory at stride 8, backbone at strides 16 and 32
    around    the maps at strides 8 and 16 left of, right of, above and below the mask: a door alone does not show
              whether it is the left one, what is beside it does
    shape     place in the photo, size, aspect, how the mask fills its box, its hull and its holes
    place     the same within the enclosing object, the largest of the context masks that holds it

Everything comes from the embedding of the photo, which a click needs anyway. No statistics of other regions are used,
so a vector never changes. Blocks and weights were tuned on the validation split of the data.
Masks are in logit cells (stride 4 of the unpadded model frame), as shares 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.masks.geometry import tight_bbox
from semsam_model.network.frame import LOGIT_STRIDE
from semsam_model.network.model import ImageEmbedding
from semsam_model.network.pixel_decoder import MEMORY_LEVELS

SHAPE_WEIGHT = PLACE_WEIGHT = 0.7  #: the blocks of pooled maps have 1
HOLDS = 0.85  #: share of a mask inside the one that encloses it
LARGER = 1.5  #: times its area that the enclosing one has at least
#: Where the values of `_shape` and `_place` usually lie and how far they spread, so that each counts alike.
_SHAPE_MIDDLE = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -4, 0, 0.7, 0, 0, 0, 1, 0.9])
_SHAPE_SPREAD = np.array([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 1.5, 0.8, 0.2, 0.5, 0.1, 0.1, 0.2, 0.15])
_PLACE_MIDDLE = np.array([0.4, 0.6, 0.4, 0.6, -3, -1.5, -1.5, 0])
_PLACE_SPREAD = np.array([0.3, 0.3, 0.3, 0.3, 1.5, 0.8, 0.8, 0.5])
_FARTHEST = 3.0  #: spreads


@torch.inference_mode()
def region_features(embedding: ImageEmbedding, cells: np.ndarray, context_masks: Sequence[np.ndarray]) -> np.ndarray:
    """Masks of one photo -> float32 (n, F), F being the same for every photo of a model.

    cells: float or bool (n, h, w), share of each logit cell that the mask covers. context_masks: bool (h, w) masks
    proposed for the same prompt, one of which may be the enclosing object. An empty mask gives a row of zeros.
    """
    height, width = (side // LOGIT_STRIDE for side in embedding.frame.padded)
    h, w = embedding.frame.logits
    full = np.zeros((len(cells), 5, height, width), np.float32)  # the mask, then its four sides
    blocks: list[list[np.ndarray]] = []
    for masks, share in zip(full, np.asarray(cells, np.float32), strict=True):
        masks[0, :h, :w] = share
        inside = _inside(share)
        masks[1:, :h, :w] = _sides(inside)
        blocks.append([_shape(share, inside), _place(share, inside, context_masks)])
    pooled = [(_pooled(level, torch.from_numpy(full).to(level.device)), around) for level, around in _maps(embedding)]
    rows = []
    for i, (shape, place) in enumerate(blocks):
        row = [_unit(np.sqrt(np.abs(p[i, 0])) * np.sign(p[i, 0])) for p, _ in pooled]
        row += [_unit(np.sqrt(np.abs(p[i, 1:])) * np.sign(p[i, 1:])).ravel() for p, around in pooled if around]
        rows.append(np.concatenate([*row, SHAPE_WEIGHT * _unit(shape), PLACE_WEIGHT * _unit(place)]))
    return np.array([row * full[i, 0].any() for i, row in enumerate(rows)], np.float32)


def _maps(embedding: ImageEmbedding) -> list[tuple[Tensor, bool]]:
    """Maps (C, h, w) at strides 8, 16, 32, and whether they are also read around the mask.

    A model without name features keeps no backbone maps: there the memory at strides 16 and 32 takes their place.
    """
    features = embedding.features
    coarse = [m[0] for m in features.maps[-2:]] or [features.level(MEMORY_LEVELS - back)[0] for back in (2, 3)]
    return [(features.level(MEMORY_LEVELS - 1)[0], True), (coarse[0], True), (coarse[1], False)]


def _pooled(level: Tensor, masks: Tensor) -> np.ndarray:
    """(C, h, w) and (n, 5, H, W) -> (n, 5, C), mean of the map inside each mask; zero for an empty one."""
    share = F.adaptive_avg_pool2d(masks, (level.shape[1], level.shape[2])).flatten(2)
    share = share / share.sum(2, keepdim=True).clamp(min=1e-6)
    mean: np.ndarray = (share @ level.float().flatten(1).T).cpu().numpy()
    return mean


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _inside(share: np.ndarray) -> np.ndarray:
    """bool (h, w): the cells that the mask covers by half; where there are none, those that it covers most."""
    inside: np.ndarray = share >= min(0.5, 0.5 * float(share.max()) or 1.0)
    return inside


def _sides(mask: np.ndarray) -> np.ndarray:
    """(h, w) -> float32 (4, h, w): rectangles left of, right of, above and below the mask's box, half its side wide."""
    left, top, right, bottom = tight_bbox(mask)
    reach = max(3, max(bottom - top, right - left) // 2)
    rows = slice(max(0, top - reach // 4), bottom + reach // 4)
    columns = slice(max(0, left - reach // 4), right + reach // 4)
    sides = np.zeros((4, *mask.shape), np.float32)
    sides[0, rows, max(0, left - reach) : left] = 1
    sides[1, rows, right : right + reach] = 1
    sides[2, max(0, top - reach) : top, columns] = 1
    sides[3, bottom : bottom + reach, columns] = 1
    return sides


def _shape(share: np.ndarray, inside: np.ndarray) -> np.ndarray:
    if not inside.any():
        return np.zeros(len(_SHAPE_MIDDLE))
    (h, w), (left, top, right, bottom) = inside.shape, tight_bbox(inside)
    height, width = bottom - top, right - left
    rows, columns = np.nonzero(inside)
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled, hull = np.zeros(inside.shape, np.uint8), np.zeros(inside.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.concatenate(outlines)), 1)
    spread = float(rows.std() * columns.std())
    slant = float(np.mean((rows - rows.mean()) * (columns - columns.mean()))) / spread if spread else 0.0
    values = [
        left / w, top / h, right / w, bottom / h, columns.mean() / w, rows.mean() / h,
        np.log(share.sum() / (h * w)), np.log(width / height), len(rows) / (height * width), slant,
        (columns.mean() - (left + right - 1) / 2) / width, (rows.mean() - (top + bottom - 1) / 2) / height,
        len(rows) / filled.sum(), len(rows) / hull.sum(),
    ]  # fmt: skip
    return np.clip((np.array(values) - _SHAPE_MIDDLE) / _SHAPE_SPREAD, -_FARTHEST, _FARTHEST)


def _place(share: np.ndarray, inside: np.ndarray, context_masks: Sequence[np.ndarray]) -> np.ndarray:
    area = float(share.sum())
    if not area:
        return np.zeros(len(_PLACE_MIDDLE))
    holders = [
        other
        for other in context_masks
        if np.count_nonzero(other) >= LARGER * area and float(share[other].sum()) >= HOLDS * area
    ]
    whole = max(holders, key=np.count_nonzero) if holders else np.ones(share.shape, bool)
    (left, top, right, bottom), (mine_left, mine_top, mine_right, mine_bottom) = map(tight_bbox, (whole, inside))
    height, width = bottom - top, right - left
    values = [
        (mine_left - left) / width, (mine_right - left) / width,
        (mine_top - top) / height, (mine_bottom - top) / height,
        np.log(area / (height * width)),
        np.log((mine_right - mine_left) / width), np.log((mine_bottom - mine_top) / height),
        not holders,
    ]  # fmt: skip
    return np.clip((np.array(values) - _PLACE_MIDDLE) / _PLACE_SPREAD, -_FARTHEST, _FARTHEST)
