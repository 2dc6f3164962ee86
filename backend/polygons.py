"""Masks -> polygons, along the borders of pixels; the way back is `semsam_model.mask_codecs.decode_polygons`.

Frame: photo pixels, points (x, y). Pixel (column j, row i) covers [j, j+1) x [i, i+1), so a polygon around one pixel
has side 1, a mask that touches the photo's edge reaches 0, W or H exactly, and nothing is shifted by half a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from backend.formats import BBox

DEFAULT_MAX_VERTICES = 200


class Ring(NamedTuple):
    """One closed outline, without the first point repeated. Outer rings run clockwise as seen, holes the other way."""

    points: np.ndarray  #: float64 (n, 2), x, y in photo pixels
    hole: bool


def mask_to_rings(crop: np.ndarray, bbox: BBox, max_vertices: int = DEFAULT_MAX_VERTICES) -> list[Ring]:
    """Outlines of a mask along its pixel borders, largest first, at most `max_vertices` points in all (at least 8).

    Exact while the budget allows. Then vertices are dropped by Douglas-Peucker with a growing tolerance, and rings by
    area when there are too many. Pieces that touch at a corner only are separate rings. Empty mask: empty list.
    What `join_rings` adds is counted, so the joined ring keeps the budget too.
    """
    max_vertices = max(max_vertices, 8)
    traced = sorted(_trace(crop), key=lambda ring: -_area(ring.points))
    # A ring costs at least three points, and two more to be joined to the others.
    traced = traced[: max(1, (max_vertices + 2) // 5)]
    tolerance = 0.0
    while True:
        rings = [Ring(_simplify(ring.points, tolerance), ring.hole) for ring in traced]
        kept = [ring for ring in rings if _area(ring.points)]
        if traced and not kept:
            # A thin line can lose its whole area at once; its enclosing rectangle still shows where it is.
            corners = cv2.boxPoints(cv2.minAreaRect(traced[0].points.astype(np.int32)))
            kept = [Ring(np.clip(corners, 0, crop.shape[::-1]), False)]
        if sum(len(ring.points) for ring in kept) + 2 * (len(kept) - 1) <= max_vertices:
            break
        tolerance = tolerance * 1.2 or 0.4
    offset = np.array(bbox[:2], np.float64)
    return [Ring(points.astype(np.float64) + offset, hole) for points, hole in kept]


def _area(points: np.ndarray) -> float:
    """Absolute area inside a ring, by the shoelace formula."""
    x, y = points.astype(np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    if not tolerance:
        return points
    return cv2.approxPolyDP(points.astype(np.int32)[:, None], tolerance, True)[:, 0]


def _trace(crop: np.ndarray) -> list[Ring]:
    """Outlines along pixel borders, points int (n, 2) at corners of the border only.

    Every corner ends one horizontal and one vertical piece of border. In a row of the grid corners pair up, left to
    right, into horizontal pieces; in a column, top to bottom, into vertical ones. Walking them in turn closes rings.
    """
    # Neighbours of grid point (y, x): 1 upper left, 2 upper right, 4 lower left, 8 lower right.
    padded = np.pad(crop, 1).astype(np.uint8)
    code = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    is_corner = ~np.isin(code, (0, 3, 5, 10, 12, 15))
    y, x = np.nonzero(is_corner)
    # Where two pixels touch diagonally the point is two corners, one for each pixel, so that the pixels stay separate.
    crossing = np.isin(code[y, x], (6, 9))
    repeat = 1 + crossing
    y, x, kind = np.repeat(y, repeat), np.repeat(x, repeat), np.repeat(code[y, x], repeat)
    second = np.zeros(y.size, bool)
    second[np.cumsum(repeat)[crossing] - 1] = True

    # Of two corners at one point, the first ends the piece from the left. With code 6 that is the lower left pixel's,
    # whose vertical piece goes down, so in the column it comes after the other.
    column_order = np.lexsort((second ^ (kind == 6), y, x))
    across = (np.arange(y.size) ^ 1).tolist()
    down = np.empty(y.size, np.int64)
    down[column_order] = column_order[np.arange(y.size) ^ 1]
    below = down.tolist()

    points = np.stack((x, y), axis=1)
    kinds = kind.tolist()
    seen = bytearray(y.size)
    rings = []
    for start in range(y.size):
        if seen[start]:
            continue
        walk: list[int] = []
        corner = start
        while not seen[corner]:
            other = across[corner]
            seen[corner] = seen[other] = True
            walk += (corner, other)
            corner = below[other]
        # The first corner in reading order is an upper left one: of foreground, or, with code 7, of a hole.
        hole = kinds[start] == 7
        ring = points[walk]
        rings.append(Ring(ring[::-1] if hole else ring, hole))
    return rings


def join_rings(rings: Sequence[Ring]) -> np.ndarray:
    """Rings -> one ring float64 (n, 2), since a Label Studio polygon has neither holes nor parts.

    Holes and further parts are reached over a bridge of zero width, there and back between the nearest vertices. Both
    ways cancel, so the fill is the same under the even-odd and the non-zero rule, wherever the bridge runs.
    """
    if not rings:
        return np.zeros((0, 2))
    joined = rings[0].points
    waiting = [ring.points for ring in rings[1:]]
    while waiting:
        gaps = [_nearest(joined, points) for points in waiting]
        chosen = min(range(len(gaps)), key=lambda k: gaps[k][0])
        _, here, there = gaps[chosen]
        other = np.roll(waiting.pop(chosen), -there, axis=0)
        joined = np.concatenate((joined[: here + 1], other, other[:1], joined[here:]))
    return joined


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[float, int, int]:
    """Squared distance and the two indices of the nearest pair of vertices."""
    squared = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    here, there = np.unravel_index(int(squared.argmin()), squared.shape)
    return float(squared[here, there]), int(here), int(there)


def encode_polygon(crop: np.ndarray, bbox: BBox, max_vertices: int = DEFAULT_MAX_VERTICES) -> np.ndarray:
    """Crop of a mask -> one ring float64 (n, 2), x, y in photo pixels; (0, 2) for an empty mask."""
    return join_rings(mask_to_rings(crop, bbox, max_vertices))
