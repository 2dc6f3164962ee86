"""Masks as the rest of the world reads them: brush RLE, bitmask PNG, COCO RLE. Polygons: `backend.polygons`.

The way back is `semsam_model.masks.codecs`, which training reads with.

Frame: photo pixels. A mask is bool (H, W), `size` is (H, W), a bbox is half-open x0, y0, x1, y1. Encoders take the crop
of the mask inside its bbox, so that a large photo with a small mask costs little.

Called with a crop that does not fit its bbox, or a bbox outside the photo, they raise BackendError.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from backend.errors import BackendError
from semsam_model.masks.codecs import PNG_PREFIX, RLE_HEADER_BITS, Size

BBox = tuple[int, int, int, int]

#: Bits of a run's length field, by class, as the editor and label-studio-sdk write them.
RLE_LENGTH_BITS = (3, 4, 8, 16)


# ---------------------------------------------------------------------------------------------------------------- boxes


def crop_mask(mask: np.ndarray) -> tuple[np.ndarray, BBox]:
    """bool (H, W) -> (crop, tight bbox); an empty mask gives a (0, 0) crop and (0, 0, 0, 0)."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return np.zeros((0, 0), bool), (0, 0, 0, 0)
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    return mask[y0:y1, x0:x1], (x0, y0, x1, y1)


def paste(crop: np.ndarray, bbox: BBox, size: Size, order: str = "C") -> np.ndarray:
    """The whole bool (H, W) mask of a crop. `order` is numpy's memory order, "C" or "F"."""
    _check_crop(crop, bbox, size)
    full = np.zeros(size, bool, order="F" if order == "F" else "C")
    x0, y0, x1, y1 = bbox
    full[y0:y1, x0:x1] = crop
    return full


def _check_crop(crop: np.ndarray, bbox: BBox, size: Size) -> None:
    x0, y0, x1, y1 = bbox
    height, width = size
    if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise BackendError(f"bbox {bbox}: expected x0, y0, x1, y1 inside a photo of {width} x {height} pixels")
    if crop.dtype != bool or crop.shape != (y1 - y0, x1 - x0):
        raise BackendError(
            f"mask crop: expected bool {(y1 - y0, x1 - x0)} for bbox {bbox}, got {crop.dtype} {crop.shape}"
        )


# ------------------------------------------------------------------------------------------------------------ brush RLE


def encode_brush_rle(crop: np.ndarray, bbox: BBox, size: Size) -> list[int]:
    """Crop of a mask -> Label Studio brush RLE: bytes 0..255 of the run-coded RGBA image, foreground 255 in all four.

    Byte for byte what `label_studio_sdk.converter.brush.mask2rle` gives for the uint8 mask of 0 and 255, which is
    never built here.
    """
    _check_crop(crop, bbox, size)
    total = 4 * size[0] * size[1]
    if total >= 1 << 32:
        raise BackendError(f"photo of {size[1]} x {size[0]} pixels: brush RLE holds fewer than 2**30")
    borders = _run_borders(crop, bbox, size[1])
    edges = np.concatenate(([0], 4 * borders, [total]))
    lengths = np.diff(edges)
    values = np.where(np.arange(lengths.size) % 2, 255, 0)
    lengths, values = lengths[lengths > 0], values[lengths > 0]

    # A run over 65536 goes out as full pieces and a rest; the rest keeps the 16-bit form, as the SDK writes it.
    is_long = lengths > 256
    pieces = np.where(is_long, -(-lengths // 65536), 1)
    last = np.cumsum(pieces) - 1
    values, is_long = np.repeat(values, pieces), np.repeat(is_long, pieces)
    piece_lengths = np.full(values.size, 65536)
    piece_lengths[last] = lengths - 65536 * (pieces - 1)

    kind = np.where(is_long, 3, np.digitize(piece_lengths, (9, 17, 257)))
    length_bits = np.array(RLE_LENGTH_BITS)[kind]
    code = (((0b100 | kind) << length_bits | (piece_lengths - 1)) << 8) | values
    code_bits = 3 + length_bits + 8

    # Each code, left-aligned in 32 bits, is opened into a row of bits; the rows' used parts are the stream.
    aligned = (code.astype(np.uint64) << (32 - code_bits).astype(np.uint64)).astype(">u4")
    opened = np.unpackbits(aligned.view(np.uint8).reshape(-1, 4), axis=1)
    header = np.unpackbits(np.frombuffer(_rle_header(total), np.uint8))[:RLE_HEADER_BITS]
    bits = np.concatenate((header, opened[np.arange(32) < code_bits[:, None]]))
    packed = np.packbits(bits).tolist()
    return packed if bits.size % 8 else [*packed, 0]  # the SDK pads an aligned stream by a whole byte


def _run_borders(crop: np.ndarray, bbox: BBox, width: int) -> np.ndarray:
    """Where a row-major scan of the photo changes value: foreground start, end, start, end, ... (even count)."""
    x0, y0, x1, _ = bbox
    padded = np.zeros((crop.shape[0], crop.shape[1] + 2), bool)
    padded[:, 1:-1] = crop
    row, column = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), crop.shape[1] + 1)
    borders = (row + y0) * width + column + x0
    if x1 - x0 == width:
        # A run that reaches the right edge and goes on at the left edge of the next row is one run.
        same = np.flatnonzero(borders[1:-1:2] == borders[2::2])
        borders = np.delete(borders, np.concatenate((2 * same + 1, 2 * same + 2)))
    return borders


def _rle_header(total: int) -> bytes:
    bits = f"{total:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in RLE_LENGTH_BITS)
    return int(bits.ljust(56, "0"), 2).to_bytes(7, "big")


# ---------------------------------------------------------------------------------------------------------- bitmask PNG


def encode_bitmask(crop: np.ndarray, bbox: BBox, size: Size) -> str:
    """Crop of a mask -> PNG data URL of the photo's size: opaque black on transparent, as the editor's own canvas.

    One bit a pixel: a 12-megapixel photo is 1.5 MB before compression instead of 48.
    """
    buffer = io.BytesIO()
    Image.fromarray(~paste(crop, bbox, size)).save(buffer, "PNG", transparency=1)
    return PNG_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")


# ------------------------------------------------------------------------------------------------------------- COCO RLE


def encode_coco_rle(crop: np.ndarray, bbox: BBox, size: Size) -> dict[str, Any]:
    """Crop of a mask -> {"size": [H, W], "counts": compressed text}."""
    encoded = coco.encode(paste(crop, bbox, size, order="F").view(np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
