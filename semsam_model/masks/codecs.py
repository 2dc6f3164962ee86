"""Masks as Label Studio and COCO write them, both ways: brush RLE, bitmask PNG, COCO RLE. Polygons: `masks.polygons`.

Frame: photo pixels. A mask is bool (H, W), `size` is (H, W), a box is half-open x0, y0, x1, y1. Encoders take the crop
of the mask inside its box, so that a large photo with a small mask costs little. Decoders read what was written
elsewhere: what is malformed raises DataError, and nothing else is raised.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from semsam_model.errors import DataError
from semsam_model.masks.geometry import MAX_PIXELS, BBox, Size, check_crop, checked_size, paste

#: Bits before the first run of a brush RLE: length, word size, four run sizes.
RLE_HEADER_BITS = 32 + 5 + 4 * 4
#: Bits of a run's length field, by class, as the editor and label-studio-sdk write them.
RLE_LENGTH_BITS = (3, 4, 8, 16)
PNG_PREFIX = "data:image/png;base64,"


# ------------------------------------------------------------------------------------------------------------ brush RLE


def encode_brush_rle(crop: np.ndarray, bbox: BBox, size: Size) -> list[int]:
    """Crop of a mask -> Label Studio brush RLE: bytes 0..255 of the run-coded RGBA image, foreground 255 in all four.

    Byte for byte what `label_studio_sdk.converter.brush.mask2rle` gives for the uint8 mask of 0 and 255, which is
    never built here.
    """
    check_crop(crop, bbox, size)
    total = 4 * size[0] * size[1]
    if total >= 1 << 32:
        raise DataError(f"photo of {size[1]} x {size[0]} pixels: brush RLE holds fewer than 2**30")
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


def decode_brush_rle(rle: Sequence[int], size: Size) -> np.ndarray:
    """Label Studio brush RLE -> bool (H, W): alpha >= 128, since the editor's eraser leaves half-transparent borders.

    Reads whatever run sizes the header declares. Raises DataError for anything but a list of bytes, a length other
    than 4 * H * W, a stream that ends early or runs past the image.
    """
    if not isinstance(rle, list | tuple):
        raise DataError(f"rle: expected a list of integers 0..255, got {type(rle).__name__}")
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise DataError("rle: expected a list of integers 0..255, got something else in it") from None
    length_bits = _brush_length_bits(data, checked_size(size))
    total, end = 4 * size[0] * size[1], 8 * len(data)
    mask = np.zeros(size[0] * size[1], bool)
    data += bytes(8)  # so that the window below never reads past the end
    at, done = RLE_HEADER_BITS, 0
    while done < total:
        # A run: 1 bit "one value, repeated", 2 bits class of the length, the length - 1, then the value or values.
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 5], "big") << (at & 7)
        repeated = window >> 39 & 1
        bits = length_bits[window >> 37 & 3]
        count = (window >> (37 - bits) & ((1 << bits) - 1)) + 1
        at += 3 + bits
        upto = done + count
        if upto > total:
            raise DataError(f"rle: expected {total} values, got a run that ends at {upto}")
        if at + (8 if repeated else 8 * count) > end:
            raise DataError(f"rle: expected {total} values, the stream ends after {done}")
        # Alpha is every fourth value, at 3, 7, 11, ...
        if repeated:
            if data[at >> 3] << (at & 7) & 0x80:
                mask[done >> 2 : upto >> 2] = True
            at += 8
        else:
            first, last = at >> 3, (at + 8 * count + 7) >> 3
            shift = -(at + 8 * count) % 8
            chunk = int.from_bytes(data[first:last], "big") >> shift & ((1 << 8 * count) - 1)
            alpha = np.frombuffer(chunk.to_bytes(count, "big"), np.uint8)[(3 - done) % 4 :: 4]
            mask[done >> 2 : upto >> 2] = alpha >= 128
            at += 8 * count
        done = upto
    return mask.reshape(size)


def _brush_length_bits(data: bytes, size: Size) -> list[int]:
    """Bits of the length field of each class of runs, from the header. Raises DataError unless it is of this size."""
    if len(data) * 8 < RLE_HEADER_BITS:
        raise DataError(f"rle: expected at least 7 bytes, got {len(data)}")
    head = int.from_bytes(data[:7], "big") >> (56 - RLE_HEADER_BITS)
    (height, width), total, word = size, head >> 21, (head >> 16 & 31) + 1
    if total != 4 * height * width:
        raise DataError(
            f"rle: expected {4 * height * width} values for {width} x {height} pixels, its header says {total}; "
            "original_width and original_height must be those of the photo it was drawn on"
        )
    if word != 8:
        raise DataError(f"rle: expected words of 8 bits, got {word}")
    return [(head >> shift & 15) + 1 for shift in (12, 8, 4, 0)]


# ---------------------------------------------------------------------------------------------------------- bitmask PNG


def encode_bitmask(crop: np.ndarray, bbox: BBox, size: Size) -> str:
    """Crop of a mask -> PNG data URL of the photo's size: opaque black on transparent, as the editor's own canvas.

    One bit a pixel: a 12-megapixel photo is 1.5 MB before compression instead of 48.
    """
    buffer = io.BytesIO()
    Image.fromarray(~paste(crop, bbox, size)).save(buffer, "PNG", transparency=1)
    return PNG_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_data_url(url: str) -> bytes:
    """The bytes of a data: URL, as a browser reads it: of any type or none, percent-encoded or base64, which may be
    broken into lines or lack its padding. Raises DataError.
    """
    head, comma, body = url.partition(",")
    if head[:5].lower() != "data:" or not comma:
        raise DataError("data URL: expected data:[TYPE][;base64],CONTENT")
    data = unquote_to_bytes(body.partition("#")[0])
    if not re.search(r";\s*base64\s*$", head, re.IGNORECASE):
        return data
    data = data.translate(None, b" \t\n\f\r")
    if len(data) % 4 == 0:
        data = re.sub(rb"={1,2}$", b"", data)
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("data URL: its base64 cannot be read") from None


def decode_bitmask(url: str, size: Size) -> np.ndarray:
    """PNG data URL -> bool (H, W): alpha >= 128. An image without transparency is all foreground, as in the editor.

    Raises DataError for anything but a base64 PNG data URL of exactly the photo's size; the size is checked before
    pixels are decoded.
    """
    height, width = checked_size(size)
    if not isinstance(url, str) or url[:5].lower() != "data:":
        raise DataError(f"imageDataURL: expected text that starts with {PNG_PREFIX!r}")
    try:
        data = decode_data_url(url)
    except DataError as exc:
        raise DataError(f"imageDataURL: {exc}") from None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise DataError(f"imageDataURL: expected width, height {(width, height)}, got {image.size}")
            return np.asarray(image.convert("RGBA").getchannel("A")) >= 128
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"imageDataURL: expected a base64 PNG, it cannot be read: {exc}") from exc


# ------------------------------------------------------------------------------------------------------------- COCO RLE


def encode_coco_rle(crop: np.ndarray, bbox: BBox, size: Size) -> dict[str, Any]:
    """Crop of a mask -> {"size": [H, W], "counts": compressed text}."""
    encoded = coco.encode(paste(crop, bbox, size, order="F").view(np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_coco_rle(rle: dict[str, Any], size: Size | None = None) -> np.ndarray:
    """{"size", "counts"} with compressed text or a list of run lengths -> bool (H, W).

    Not by pycocotools: it returns uninitialised memory when the runs end before the image does.
    Raises DataError for anything malformed, runs that do not fill the image, or a size other than `size` when given.
    """
    if not isinstance(rle, dict) or not isinstance(rle.get("size"), list | tuple):
        raise DataError('COCO RLE: expected {"size": [H, W], "counts": ...}')
    declared, counts = rle["size"], rle.get("counts")
    if len(declared) != 2 or not all(isinstance(n, int) for n in declared):
        raise DataError(f"COCO RLE size: expected [H, W], got {declared!r}"[:200])
    height, width = checked_size((declared[0], declared[1]))
    if size is not None and size != (height, width):
        raise DataError(f"COCO RLE size: expected {list(size)}, got {[height, width]}")
    if isinstance(counts, str):
        runs = _coco_runs(counts)
    elif isinstance(counts, list | tuple) and all(isinstance(n, int) and abs(n) <= MAX_PIXELS for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise DataError("COCO RLE counts: expected text or a list of run lengths")
    if (runs.size and runs.min() < 0) or runs.sum() != height * width:
        raise DataError(f"COCO RLE counts: expected runs that fill {height * width} pixels, they do not")
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return flat.reshape(width, height).T


def _coco_runs(text: str) -> np.ndarray:
    """Run lengths from COCO's text: 5 bits a character, low bits first, the sixth says "more"; from the fourth run on
    the difference to the run two before."""
    bits = np.array(bytearray(text, "utf-8"), np.int64) - 48
    if not bits.size:
        return bits
    if bits.min() < 0 or bits.max() > 63:
        raise DataError("COCO RLE counts: expected COCO's compressed text, got other characters")
    ends = np.flatnonzero(bits < 32)
    if not ends.size or ends[-1] != bits.size - 1:
        raise DataError("COCO RLE counts: expected whole numbers, the text ends inside one")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than the pixels of any photo
        raise DataError("COCO RLE counts: expected COCO's compressed text, got other characters")
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
