"""Shapes of annotation tools as masks: outlines, ellipses, runs, PNGs. Frame: photo pixels, (x, y)."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size, fill_ellipse
from semsam_model.masks.polygons import decode_polygons


@dataclass(frozen=True, eq=False)
class Outline:
    """The inside of one outline, x, y, x, y, ...; with `relative`, in shares of the photo's sides."""

    points: tuple[float, ...]
    relative: bool = False

    def decode(self, size: Size) -> np.ndarray:
        ring = np.array(self.points, np.float64).reshape(-1, 2)
        return decode_polygons([ring * size[::-1] if self.relative else ring], size)


@dataclass(frozen=True, eq=False)
class Oval:
    """An ellipse, turned clockwise."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    degrees: float = 0.0

    def decode(self, size: Size) -> np.ndarray:
        return fill_ellipse(self.centre, self.radii, self.degrees, size)


@dataclass(frozen=True, eq=False)
class Runs:
    """Row by row inside a box, x0, y0, x1, y1: so many pixels that are none of the mask's, then some that are, ..."""

    box: tuple[int, int, int, int]
    runs: tuple[int, ...]

    def decode(self, size: Size) -> np.ndarray:
        x0, y0, x1, y1 = self.box
        inside = (y1 - y0) * (x1 - x0)
        if min(self.runs, default=0) < 0 or sum(self.runs) != inside:
            raise DataError(f"expected runs that fill {inside} pixels, got {sum(self.runs)}")
        crop = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(y1 - y0, x1 - x0)
        return _placed(crop, (x0, y0), size)


@dataclass(frozen=True, eq=False)
class PngCrop:
    """A PNG in base64, whose first pixel lies at `corner` of the photo."""

    corner: tuple[int, int]
    png: str

    def decode(self, size: Size) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.png)), formats=["PNG"]) as image:
                crop = np.asarray(image.convert("L")) > 0
        except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
            raise DataError(f"expected a PNG in base64: {exc}") from exc
        return _placed(crop, self.corner, size)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Several shapes that are one thing."""

    shapes: tuple[Outline | Oval | Runs | PngCrop, ...]

    def decode(self, size: Size) -> np.ndarray:
        return np.logical_or.reduce([shape.decode(size) for shape in self.shapes])


def _placed(crop: np.ndarray, corner: tuple[int, int], size: Size) -> np.ndarray:
    """The crop in the photo; what lies outside is cut off."""
    mask = np.zeros(size, bool)
    x, y = corner
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + crop.shape[1], size[1]), min(y + crop.shape[0], size[0])
    if x0 < x1 and y0 < y1:
        mask[y0:y1, x0:x1] = crop[y0 - y : y1 - y, x0 - x : x1 - x]
    return mask


def numbers(attributes: Mapping[str, str], *names: str) -> tuple[float, ...]:
    """Finite numbers out of a file's texts. Raises KeyError, ValueError."""
    found = tuple(float(attributes[name]) for name in names)
    if not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers, got {found}")
    return found
