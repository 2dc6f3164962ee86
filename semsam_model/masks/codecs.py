"""Masks as Label Studio and COCO write them -> bool arrays: brush RLE, bitmask PNG, COCO RLE, polygons.

Frame: photo pixels. A mask is bool (H, W), `size` is (H, W). Everything here was written elsewhere: what is malformed
raises DataError, and nothing else is raised.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from semsam_model.errors import DataError

Size = tuple[int, int]

#: Bits before the first run of a brush RLE: length, word size, four run sizes.
RLE_HEADER_BITS = 32 + 5 + 4 * 4
PNG_PREFIX = "data:image/png;base64,"
#: Largest mask that is built, so that a few bytes cannot ask for gigabytes.
MAX_PIXELS = 1 << 28


def checked_size(size: Size) -> Size:
    """The (H, W) itself; DataError when it is no photo's, or larger than a decoder builds."""
    height, width = size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(f"size: expected a photo of 1 to {MAX_PIXELS} pixels, got {width} x {height}")
    return height, width


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
    if len(data) * 8 < RLE_HEADER_BITS:
        raise DataError(f"rle: expected at least 7 bytes, got {len(data)}")
    head = int.from_bytes(data[:7], "big") >> (56 - RLE_HEADER_BITS)
    total, word = head >> 21, (head >> 16 & 31) + 1
    size_bits = [(head >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    height, width = checked_size(size)
    if total != 4 * height * width:
        raise DataError(
            f"rle: expected {4 * height * width} values for {width} x {height} pixels, its header says {total}; "
            "original_width and original_height must be those of the photo it was drawn on"
        )
    if word != 8:
        raise DataError(f"rle: expected words of 8 bits, got {word}")

    mask = np.zeros(height * width, bool)
    end = 8 * len(data)
    data += bytes(8)  # so that the window below never reads past the end
    at, done = RLE_HEADER_BITS, 0
    while done < total:
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 5], "big") << (at & 7)
        repeated = window >> 39 & 1
        bits = size_bits[window >> 37 & 3]
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
    return mask.reshape(height, width)


def decode_bitmask(url: str, size: Size) -> np.ndarray:
    """PNG data URL -> bool (H, W): alpha >= 128. A picture without transparency is all foreground, as in the editor.

    Raises DataError for anything but a base64 PNG data URL of exactly the photo's size; the size is checked before
    pixels are decoded.
    """
    height, width = checked_size(size)
    if not isinstance(url, str) or not url.startswith(PNG_PREFIX):
        raise DataError(f"imageDataURL: expected text that starts with {PNG_PREFIX!r}")
    try:
        data = base64.b64decode(url[len(PNG_PREFIX) :], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise DataError(f"imageDataURL: expected width, height {(width, height)}, got {image.size}")
            return np.asarray(image.convert("RGBA").getchannel("A")) >= 128
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"imageDataURL: expected a base64 PNG, it cannot be read: {exc}") from exc


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
