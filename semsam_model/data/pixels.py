"""An opened photo file -> RGB pixels as the annotator sees them: so clicks and training see a photo alike.

What the annotator sees is what a browser shows, so that is what is decoded here: turned by the EXIF orientation,
transparent parts over white, the first image of several, and a JPEG or PNG that is cut short or damaged as far as it
goes (browsers show no such WebP or AVIF). Data deeper than 8 bits is scaled by the bits really used: 0 stays 0, and the
top is the smallest of 255, 511, 1023, ... 65535 that holds the brightest value. A 12-bit scan in a 16-bit file is then
not black, and a photo that uses its full range keeps its tones. Numbers with a fraction or a sign have no such top and
are stretched from their smallest to their largest.
"""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
from PIL import ExifTags, Image

from semsam_model.data.torn_png import mend_png
from semsam_model.errors import ImageError

#: Markers of JPEG.
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def decode_rgb(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 RGB (H, W, 3), contiguous and EXIF-oriented, of the file `data` that was opened as `image`.

    Raises ImageError when it is damaged.
    """
    orientation, (height, width) = orientation_of(image), oriented_size(image)  # Pillow forgets them in decoding
    try:
        pixels = _decode(image, data)
    except ImageError:
        if image.format != "PNG" or (mended := mend_png(data)) is None:
            raise
        with Image.open(io.BytesIO(mended.data), formats=["PNG"]) as whole:
            pixels = np.array(_decode(whole, mended.data))
        pixels[mended.rows :] = 255  # not there: the page behind it
    # Pillow and OpenCV turn TIFF by themselves
    if image.format != "TIFF":
        pixels = _orient(pixels, orientation)
    if pixels.shape != (height, width, 3):
        raise ImageError(
            f"photo: its header says {width}x{height} pixels, its data {pixels.shape[1]}x{pixels.shape[0]}; damaged?"
        )
    return np.ascontiguousarray(pixels)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8, from where browsers take it: not from XMP, not from text chunks."""
    found = 1
    # A broken EXIF block raises anything at all, and does not make the photo unusable: browsers ignore it too.
    with contextlib.suppress(Exception):
        if image.format == "TIFF":
            found = image.tag_v2.get(ExifTags.Base.Orientation, 1)  # type: ignore[attr-defined]
        elif block := image.info.get("exif"):
            exif = Image.Exif()
            exif.load(block)
            found = exif.get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of the photo as it is seen, from its header."""
    width, height = image.size
    # For TIFF, Pillow's size is turned already
    return (width, height) if orientation_of(image) >= 5 and image.format != "TIFF" else (height, width)


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, C) -> as they are to be seen."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) of the first frame; turned only if the format is TIFF."""
    deep_colour = _has_deep_colour(image, data)
    try:
        if deep_colour and (pixels := cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)) is not None:
            return _from_deep_colour(pixels)
        if image.mode.startswith(("I", "F")):
            return _grey(_to_8_bit(np.asarray(image)))
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            return _over_white(rgba[..., :3], rgba[..., 3:])
        return _rgb(image, data)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they stumble over, and all of it means the same
        raise ImageError(f"photo: {image.format} cannot be decoded ({error}); damaged or cut short?") from error


def _rgb(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 (H, W, 3) of a photo without transparency."""
    try:
        return np.asarray(image.convert("RGB"))
    except OSError:
        if image.format not in ("JPEG", "MPO") or _START_OF_SCAN not in data:
            raise
        # with an end of its own, what is there is decoded; the decoder fills the rest
        with Image.open(io.BytesIO(data + _END_OF_IMAGE), formats=["JPEG"]) as ended:
            return np.asarray(ended.convert("RGB"))


def _has_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether this is 16-bit colour, of which Pillow would keep the upper 8 bits only."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if image.format == "PNG":
        return data[24] == 16  # bit depth in the header chunk, which Pillow has checked
    return image.format == "TIFF" and 16 in image.tag_v2.get(258, ())  # type: ignore[attr-defined]


def _from_deep_colour(pixels: np.ndarray) -> np.ndarray:
    """OpenCV's uint16 (H, W), (H, W, 3) BGR or (H, W, 4) BGRA -> uint8 (H, W, 3) RGB."""
    if pixels.ndim == 2:
        return _grey(_to_8_bit(pixels))
    rgb = _to_8_bit(pixels[..., 2::-1])
    return _over_white(rgb, (pixels[..., 3:] >> 8).astype(np.uint8)) if pixels.shape[2] == 4 else rgb


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Any numbers -> uint8 of the same shape, scaled as the module's first lines say. Not-a-number becomes 0."""
    if values.dtype.kind in "iu" and values.min() >= 0:
        low, high = 0.0, float(2 ** max(8, int(values.max()).bit_length()) - 1)
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) * scale
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) and alpha (H, W, 1) -> uint8 (H, W, 3).

    White, as a page is: the colours hidden under transparent parts are leftovers that the annotator never sees.
    """
    weight = alpha.astype(np.uint16)
    return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
