"""Masks <-> polygons, along the borders of pixels.

Frame: photo pixels, points (x, y). Pixel (column j, row i) covers [j, j+1) x [i, i+1), so a polygon around one pixel
has side 1, a mask that touches the photo's edge reaches 0, W or H exactly, and nothing is shifted by half a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from semsam_model.errors import DataError
from semsam_model.masks.geometry import BBox, Size, checked_size

DEFAULT_MAX_VERTICES = 100


class Ring(NamedTuple):
    """One closed outline, without the first point repeated. Outer rings run clockwise as seen, holes the other way."""

    points: np.ndarray  #: float64 (n, 2), x, y in photo pixels
    hole: bool


def encode_polygon(crop: np.ndarray, bbox: BBox, max_vertices: int = DEFAULT_MAX_VERTICES) -> np.ndarray:
    """Crop of a mask -> one ring float64 (n, 2), x, y in photo pixels; (0, 2) for an empty mask."""
    return join_rings(mask_to_rings(crop, bbox, max_vertices))


def mask_to_rings(
    crop: np.ndarray, bbox: BBox, max_vertices: int = DEFAULT_MAX_VERTICES, stride: int = 5
) -> list[Ring]:
    """Outlines of a mask along its pixel borders, largest first, at most `max_vertices` points in all (at least 8).

    Exact while the budget allows. Then vertices are dropped by Douglas-Peucker with a growing tolerance, and rings by
    area when there are too many. Pieces that touch at a corner only are separate rings. Empty mask: empty list.
    What `join_rings` adds is counted, so the joined ring keeps the budget too. `stride` changes the time only.
    """
    max_vertices = max(max_vertices, 8)
    traced = sorted(_trace(crop), key=lambda ring: -_area(ring.points))
    # A ring costs at least three points, and two more to be joined to the others.
    traced = traced[: max(1, (max_vertices + 2) // 5)]
    # Strides of so many steps to a tolerance that is enough, then the single steps of the last stride: outlines of
    # large photos are long.
    step = 0
    while _cost(kept := _simplified(traced, step, crop.shape)) > max_vertices:
        step += stride
    for smaller in range(max(1, step - stride + 1), step):
        finer = _simplified(traced, smaller, crop.shape)
        if _cost(finer) <= max_vertices:
            kept = finer
            break
    offset = np.array(bbox[:2], np.float64)
    return [Ring(points.astype(np.float64) + offset, hole) for points, hole in kept]


def _cost(rings: Sequence[Ring]) -> int:
    """Vertices of the rings once joined."""
    return sum(len(ring.points) for ring in rings) + 2 * (len(rings) - 1)


def _simplified(traced: Sequence[Ring], step: int, shape: tuple[int, ...]) -> list[Ring]:
    """The rings at a tolerance of 0 for step 0, then 0.4 pixels and a fifth more each step; those of no area go."""
    tolerance = 0.4 * 1.2 ** (step - 1) if step else 0.0
    rings = [Ring(_simplify(ring.points, tolerance), ring.hole) for ring in traced]
    kept = [ring for ring in rings if _area(ring.points)]
    if traced and not kept:
        # A thin line can lose its whole area at once; its enclosing rectangle still shows where it is.
        corners = cv2.boxPoints(cv2.minAreaRect(traced[0].points.astype(np.int32)))
        kept = [Ring(np.clip(corners, 0, shape[::-1]), False)]
    return kept


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
    padded = np.pad(crop, 1)
    is_corner = _corners(padded)
    y, x = np.divmod(np.flatnonzero(is_corner), is_corner.shape[1])
    code = padded[y, x] | padded[y, x + 1] << 1 | padded[y + 1, x] << 2 | padded[y + 1, x + 1] << 3
    # Such a point is two corners, one for each pixel, so that the pixels stay separate.
    crossing = np.isin(code, (6, 9))
    repeat = 1 + crossing
    y, x, kind = np.repeat(y, repeat), np.repeat(x, repeat), np.repeat(code, repeat)
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


def _corners(padded: np.ndarray) -> np.ndarray:
    """bool (H + 1, W + 1): grid points where the border of a mask, padded by one pixel, turns."""
    changes = padded[:, :-1] ^ padded[:, 1:]  # along a row
    upper, lower = changes[:-1], changes[1:]
    # Where two pixels touch diagonally, both rows change, and change differently.
    return (upper ^ lower) | (upper & lower & (padded[:-1, :-1] ^ padded[1:, :-1]))


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


# ------------------------------------------------------------------------------------------------------------- decoding


def decode_polygons(rings: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """Rings (n, 2) in photo pixels -> bool (H, W): pixels whose centre is inside under the non-zero rule.

    That is how the browser fills a region. What lies outside the photo is cut off. Raises DataError for a ring of
    another shape or points that are not finite.
    """
    height, width = checked_size(size)
    outlines = []
    for ring in rings:
        try:
            points = np.asarray(ring, np.float64)
        except (TypeError, ValueError):
            raise DataError("polygon: expected finite points (n, 2), got something else") from None
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise DataError(f"polygon: expected finite points (n, 2), got an array of shape {points.shape}")
        # Far outside the photo exactness is idle, and products of such numbers overflow.
        outlines.append(np.clip(points, -1e7, 1e7))
    mask = np.zeros((height, width), bool)
    corners = np.concatenate([np.zeros((0, 2)), *outlines])
    if corners.size:
        x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
        x1, y1 = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
        turns = np.zeros((y1 - y0, x1 - x0 + 1), np.int32)
        for points in outlines:
            _add_turns(turns, points - (x0, y0))
        mask[y0:y1, x0:x1] = np.cumsum(turns, axis=1, out=turns)[:, :-1] != 0
    return mask


def _add_turns(turns: np.ndarray, points: np.ndarray) -> None:
    """For every row's centre line, add +1 or -1 at the first column whose centre lies right of each edge crossing."""
    height, width = turns.shape[0], turns.shape[1] - 1
    following = np.roll(points, -1, axis=0)
    falls = following[:, 1] > points[:, 1]
    # Upper end first, whichever way the edge runs: the two ways over a bridge must cross at the very same place.
    top = np.where(falls[:, None], points, following)
    low = np.where(falls[:, None], following, points)
    first = np.clip(np.ceil(top[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(low[:, 1] - 0.5), 0, height).astype(np.int64)
    for k in np.flatnonzero(last > first):
        rows = np.arange(first[k], last[k])
        share = (rows + 0.5 - top[k, 1]) / (low[k, 1] - top[k, 1])
        crossing = top[k, 0] + share * (low[k, 0] - top[k, 0])
        columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
        turns[rows, columns] += 1 if falls[k] else -1
