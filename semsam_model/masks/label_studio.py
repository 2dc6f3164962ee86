"""A region as Label Studio stores it -> its mask. Percent run over the EXIF-oriented photo; pixels are photo pixels."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from semsam_model.errors import DataError
from semsam_model.masks.codecs import decode_bitmask, decode_brush_rle
from semsam_model.masks.geometry import Size
from semsam_model.masks.polygons import decode_polygons

SHAPES = ("brush", "bitmask", "polygon", "rectangle")


def region_shape(row: Mapping[str, Any]) -> str | None:
    """One of SHAPES, with or without labels; None for a row without such a geometry: a note, a choice, a keypoint.

    A brush row may lack its RLE: the editor writes one for a label that was active while a point was set.
    """
    kind, value = row.get("type"), row.get("value")
    if not isinstance(kind, str) or not isinstance(value, dict):
        return None
    shape = kind.removesuffix("labels")
    return shape if shape in SHAPES and (shape != "brush" or "rle" in value) else None


def region_mask(row: Any) -> np.ndarray | None:
    """A region of an annotation, as accepted, corrected or drawn -> bool (H, W); None where `region_shape` is None.

    Raises DataError for a geometry that cannot be read.
    """
    if not isinstance(row, dict):
        raise _wrong("", "an object", row)
    shape = region_shape(row)
    if shape is None:
        return None
    size, value = region_size(row), row["value"]
    if shape == "brush":
        return decode_brush_rle(value["rle"], size)
    if shape == "bitmask":
        return decode_bitmask(value.get("imageDataURL", ""), size)
    if shape == "rectangle":
        x, y, width, height = (
            _number(value.get(key), f".value.{key}", "a percent number") for key in ("x", "y", "width", "height")
        )
        rotation = _number(value.get("rotation") or 0, ".value.rotation", "degrees")
        return decode_polygons([rectangle_corners(x, y, width, height, rotation, size)], size)
    points = value.get("points")
    if not isinstance(points, list):
        raise _wrong(".value.points", "a list", points)
    ring = []
    for k, point in enumerate(points):
        if not isinstance(point, list) or len(point) != 2:
            raise _wrong(f".value.points[{k}]", "x and y in percent", point)
        ring.append([_number(part, f".value.points[{k}]", "x and y in percent") for part in point])
    percent = np.clip(np.array(ring, np.float64).reshape(-1, 2), -1e4, 1e4)
    return decode_polygons([percent / 100 * size[::-1]], size)


def region_size(row: Mapping[str, Any]) -> Size:
    """(H, W) of the photo that a region was drawn on, as the row declares it. Raises DataError."""
    sides = []
    for key in ("original_height", "original_width"):
        side = _number(row.get(key), f".{key}", "a whole number of pixels from 1")
        if side < 1 or side != int(side):
            raise _wrong(f".{key}", "a whole number of pixels from 1", side)
        sides.append(int(side))
    return sides[0], sides[1]


def rectangle_corners(x: float, y: float, width: float, height: float, rotation: float, size: Size) -> np.ndarray:
    """A rectangle in percent, rotation in degrees -> its corners in pixels, float64 (4, 2), not clipped.

    The editor turns a rectangle about its upper left corner, clockwise, in pixels rather than percent.
    """
    x, y, width, height = (max(-1e4, min(1e4, percent)) for percent in (x, y, width, height))
    scale = np.array(size[::-1]) / 100
    turn = math.radians(rotation % 360)
    across = np.array([math.cos(turn), math.sin(turn)]) * width * scale[0]
    down = np.array([-math.sin(turn), math.cos(turn)]) * height * scale[1]
    origin = np.array([x, y]) * scale
    return np.stack([origin, origin + across, origin + across + down, origin + down])


def _number(value: Any, name: str, expected: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise _wrong(name, expected, value)


def _wrong(name: str, expected: str, value: Any) -> DataError:
    # reprlib, because a hostile value may be nested as deep as the JSON reader allows.
    return DataError(f"region{name}: expected {expected}, got {'nothing' if value is None else reprlib.repr(value)}")
