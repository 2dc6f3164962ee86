"""Bytes of a photo file -> `Photo`, within the limits of the settings. Knows no network and no Label Studio."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backend.errors import ImageFormatError, ImageTooLarge
from semsam_model.data.pixels import decode_rgb, oriented_size
from semsam_model.errors import ImageError

#: Place and first bytes of formats, and what a message calls them.
_KNOWN = (
    (4, b"ftypheic", "a HEIC file"),
    (4, b"ftypheix", "a HEIC file"),
    (4, b"ftypmif1", "a HEIC file"),
    (4, b"ftypavif", "an AVIF file, cut short or damaged"),
    (8, b"WEBP", "a WebP file, cut short or damaged"),
    (0, b"\x89PNG", "a PNG file, cut short or damaged"),
    (0, b"\xff\xd8\xff", "a JPEG file, cut short or damaged"),
    (0, b"\0\0\1\0", "an icon file"),
    (4, b"jP  ", "a JPEG 2000 file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (4, b"JXL ", "a JPEG XL file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\x1f\x8b", "a gzip file"),
)

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")


@dataclass(frozen=True, eq=False)
class Photo:
    """One decoded photo."""

    rgb: np.ndarray  #: uint8 (H, W, 3), EXIF-oriented, contiguous
    sha256: str  #: hex digest of the file's bytes

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rgb.shape[0], self.rgb.shape[1]


def decode_photo(data: bytes, *, max_bytes: int, max_pixels: int) -> Photo:
    """Decode a PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF file; of several pictures the first.

    Both limits are checked before a pixel is decoded. Raises ImageTooLarge, or ImageFormatError when the bytes are
    another format, damaged or cut short.
    """
    if len(data) > max_bytes:
        raise ImageTooLarge(
            f"photo file: more than {max_bytes} bytes, the setting max_image_bytes (SEMSAM_MAX_IMAGE_BYTES)"
        )
    with _open(data, max_pixels) as image:
        try:
            return Photo(decode_rgb(image, data), hashlib.sha256(data).hexdigest())
        except ImageError as error:
            raise ImageFormatError(str(error)) from error


def probe_size(data: bytes, *, max_pixels: int) -> tuple[int, int]:
    """EXIF-oriented (H, W), read from the header alone. Raises as `decode_photo` does."""
    with _open(data, max_pixels) as image:
        return oriented_size(image)


def load_photo(path: Path, *, max_bytes: int, max_pixels: int) -> Photo:
    """Decode a photo file on disk. Raises ImageFormatError, ImageTooLarge; the message starts with the path."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ImageFormatError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from error
    try:
        return decode_photo(data, max_bytes=max_bytes, max_pixels=max_pixels)
    except (ImageFormatError, ImageTooLarge) as error:
        raise type(error)(f"{path}: {error}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The photo's header, within the limit; its pixels are not decoded yet."""
    limit = f"the limit is {max_pixels}, the setting max_image_pixels (SEMSAM_MAX_IMAGE_PIXELS)"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge(f"photo: more than {Image.MAX_IMAGE_PIXELS} pixels; {limit}") from None
    except Image.UnidentifiedImageError:
        raise ImageFormatError(f"photo: expected {', '.join(FORMATS)}, got {_kind(data)}") from None
    except Exception as error:  # a header made to confuse: plugins raise whatever they stumble over
        raise ImageFormatError(f"photo: {_kind(data)}: it cannot be read ({type(error).__name__})") from error
    if not image.width * image.height:
        raise ImageFormatError(f"photo: {image.width}x{image.height} pixels; expected at least one")
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(f"photo: {image.width}x{image.height} is {image.width * image.height} pixels; {limit}")
    return image


def _kind(data: bytes) -> str:
    """What the bytes seem to be, for a message."""
    start = data[:256].lstrip().lower()
    if not data:
        return "an empty file"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (a login page, perhaps: check the token)"
    if b"<svg" in start or start.startswith(b"<?xml"):
        return "an SVG or XML file"
    for place, mark, name in _KNOWN:
        if data[place : place + len(mark)] == mark:
            return name
    return f"something else ({len(data)} bytes, starting {data[:8].hex(' ')})"
