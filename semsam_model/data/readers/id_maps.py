"""PNGs whose pixels are ids: label maps with one channel, and COCO's panoptic segments with three."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size

#: How a pixel says its id: by its only channel, or as R + 256 G + 65536 B.
Form = Literal["label map", "panoptic"]


@dataclass(frozen=True)
class IdMask:
    """The pixels of one id of a PNG."""

    path: Path
    id: int
    form: Form

    def decode(self, size: Size) -> np.ndarray:
        """bool (H, W). Raises DataError for a PNG of another size than the photo, or without a pixel of this id."""
        ids = read_ids(self.path, self.form)
        if ids.shape != size:
            raise DataError(f"{self.path}: expected {size[1]}x{size[0]} pixels, got {ids.shape[1]}x{ids.shape[0]}")
        mask: np.ndarray = ids == self.id
        if not mask.any():
            raise DataError(f"{self.path}: no pixel of id {self.id}")
        return mask


@lru_cache(maxsize=2)  # a photo's masks are asked for one after another
def read_ids(path: Path, form: Form) -> np.ndarray:
    """int32 (H, W) of ids. Raises DataError."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB") if form == "panoptic" else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path}: expected a readable {form} PNG: {exc}") from exc
    if form == "panoptic":
        return pixels.astype(np.int32) @ np.array((1, 256, 65536), np.int32)
    if pixels.ndim != 2:
        raise DataError(f"{path}: expected a label map with one channel, got one with {pixels.shape[2]}")
    return pixels.astype(np.int32)
