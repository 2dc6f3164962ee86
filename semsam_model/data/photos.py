"""Where a sample's pixels come from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from semsam_model.data.pixels import decode_rgb
from semsam_model.errors import DataError, ImageError


class Photo(Protocol):
    """Where pixels come from."""

    @property
    def path(self) -> Path:
        """The file they lie in, or a name in the form of one."""

    @property
    def name(self) -> str:
        """The photo's own file name."""

    def pixels(self) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises DataError naming the file."""


def decode_photo(data: bytes, where: str) -> np.ndarray:
    """The bytes of an image file -> uint8 RGB (H, W, 3), as clicks see it. Raises DataError naming `where`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode_rgb(image, data)
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{where}: expected a readable image: {exc}") from exc


@dataclass(frozen=True)
class PhotoFile:
    """A photo in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def content(self) -> bytes:
        """The file as it is. Raises OSError."""
        return self.path.read_bytes()

    def pixels(self) -> np.ndarray:
        try:
            data = self.content()
        except OSError as exc:
            raise DataError(f"{self.path}: expected a readable image: {exc}") from exc
        return decode_photo(data, str(self.path))
