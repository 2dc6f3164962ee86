"""Label Studio's geometry <-> pixels of the photo: numbers, rectangles, and a region as it is stored -> its mask.

Percent run over the EXIF-oriented photo; pixels are photo pixels. `image_rotation`, the editor's turned view, changes
neither. This is the only module that turns one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, MultipleOf
from pydantic import AllowInfNan, Field, Strict

from semsam_model.errors import DataError
from semsam_model.masks.codecs import decode_bitmask, decode_brush_rle
from semsam_model.masks.geometry import Size, fill_ellipse
from semsam_model.masks.polygons import decode_polygons
from semsam_model.validation import Expected, JsonModel, check, empty_as

SHAPES = ("brush", "bitmask", "polygon", "rectangle", "ellipse")
_FAR = 1e4  #: percent; what lies further outside the photo is moved here, so that no pixel overflows

_Number = Annotated[float, Strict(), AllowInfNan(False)]
Percent = Annotated[_Number, Expected("a percent number")]
Degrees = Annotated[_Number, empty_as(0), Expected("degrees")]
Pixels = Annotated[_Number, Ge(1), Le(1 << 30), MultipleOf(1), Expected("a whole number of pixels from 1")]
_Point = Annotated[tuple[_Number, _Number], Expected("x and y in percent")]


class Rectangle(JsonModel):
    """A rectangle: its upper left corner and sides in percent. It is turned about that corner, clockwise."""

    x: Percent
    y: Percent
    width: Percent
    height: Percent
    rotation: Degrees = 0.0

    def corners(self, size: Size) -> np.ndarray:
        """In pixels of a photo of `size` (H, W), float64 (4, 2), not clipped. The editor turns in pixels."""
        x, y, width, height = (max(-_FAR, min(_FAR, side)) for side in (self.x, self.y, self.width, self.height))
        scale = np.array(size[::-1]) / 100
        turn = math.radians(self.rotation % 360)
        across = np.array([math.cos(turn), math.sin(turn)]) * width * scale[0]
        down = np.array([-math.sin(turn), math.cos(turn)]) * height * scale[1]
        origin = np.array([x, y]) * scale
        return np.stack([origin, origin + across, origin + across + down, origin + down])


class _Ellipse(JsonModel):
    """An ellipse: its centre and radii in percent. It is turned about the centre, clockwise, in pixels."""

    x: Percent
    y: Percent
    radius_x: Percent = Field(alias="radiusX")
    radius_y: Percent = Field(alias="radiusY")
    rotation: Degrees = 0.0

    def mask(self, size: Size) -> np.ndarray:
        """bool (H, W) of a photo of `size` (H, W)."""
        x, y, across, down = (
            max(-_FAR, min(_FAR, part)) / 100 for part in (self.x, self.y, self.radius_x, self.radius_y)
        )
        height, width = size
        return fill_ellipse((x * width, y * height), (across * width, down * height), self.rotation % 360, size)


class _Polygon(JsonModel):
    points: list[_Point]


class _DeclaredSize(JsonModel):
    original_height: Pixels
    original_width: Pixels


def to_pixels(percent: float, side: int) -> float:
    """Percent of a side -> continuous pixels, clipped to the photo: 0..side."""
    return min(max(percent / 100.0 * side, 0.0), float(side))


def to_percent(pixels: float, side: int) -> float:
    """Continuous pixels -> percent of a side."""
    return pixels / side * 100.0


def region_shape(row: Mapping[str, Any]) -> str | None:
    """One of SHAPES, with or without labels; None for a row without such a geometry: a note, a choice, a keypoint.

    A brush row may lack its RLE: the editor writes one for a label that was active while a point was set.
    """
    kind, value = row.get("type"), row.get("value")
    shape = kind.removesuffix("labels") if isinstance(kind, str) else ""
    is_mask = shape in SHAPES and (shape != "brush" or (isinstance(value, dict) and "rle" in value))
    return shape if is_mask else None


def region_mask(row: Any, photo: Size | None = None) -> np.ndarray | None:
    """A region of an annotation, as accepted, corrected or drawn -> bool (H, W); None where `region_shape` is None.

    photo: (H, W) of the photo itself, where it is known. Percent are laid over it as it is, whatever the row says of
    its size; a brush must be of this size. Raises DataError for a geometry that cannot be read.
    """
    shape = region_shape(check(dict, row, "region", DataError))
    if shape is None:
        return None
    if photo is not None:
        check_region_size(row, photo)
    size, value = photo or region_size(row), check(dict, row.get("value"), "region.value", DataError)
    if shape == "brush":
        return decode_brush_rle(value["rle"], size)
    if shape == "bitmask":
        return decode_bitmask(value.get("imageDataURL", ""), size)
    if shape == "rectangle":
        return decode_polygons([check(Rectangle, value, "region.value", DataError).corners(size)], size)
    if shape == "ellipse":
        return check(_Ellipse, value, "region.value", DataError).mask(size)
    points = check(_Polygon, value, "region.value", DataError).points
    percent = np.clip(np.array(points, np.float64).reshape(-1, 2), -_FAR, _FAR)
    return decode_polygons([percent / 100 * size[::-1]], size)


def check_region_size(row: Mapping[str, Any], photo: Size) -> None:
    """Raises DataError for a brush mask that was drawn on a photo of another size than `photo`, (H, W).

    Outlines are in percent, and a bitmask brings a size of its own, which is compared when it is decoded.
    """
    if region_shape(row) == "brush" and declares_size(row) and (drawn := region_size(row)) != photo:
        raise DataError(
            f"drawn on a photo of {drawn[1]}x{drawn[0]} pixels (original_width, original_height), the photo has "
            f"{photo[1]}x{photo[0]}: a brush mask cannot be laid over another size"
        )


def declares_size(row: Mapping[str, Any]) -> bool:
    """Whether a row says the size of the photo that its region was drawn on."""
    return row.get("original_width") is not None or row.get("original_height") is not None


def row_labels(row: Mapping[str, Any]) -> list[str]:
    """The labels that a row gives its region. <Labels> beside a plain <Brush> writes them in a row of its own."""
    kind = row.get("type")
    return listed_texts(row, kind) if isinstance(kind, str) and kind.endswith("labels") else []


def listed_texts(row: Mapping[str, Any], key: str) -> list[str]:
    """The texts that a row's value lists under `key`; whatever else stands there is left out."""
    value = row.get("value")
    texts = value.get(key) if isinstance(value, dict) else None
    return [text for text in texts if isinstance(text, str) and text] if isinstance(texts, list) else []


def region_size(row: Mapping[str, Any]) -> Size:
    """(H, W) of the photo that a region was drawn on, as the row declares it. Raises DataError."""
    declared = check(_DeclaredSize, row, "region", DataError)
    return int(declared.original_height), int(declared.original_width)
