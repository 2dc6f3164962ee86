"""A photo in small pieces of even colour, and which of them touch. NumPy, OpenCV and SciPy; no torch.

The pieces are grown from the calmest pixel of each square of a grid, most alike neighbours first (Meyer's watershed as
OpenCV has it, on Lab colour). A grid of squares keeps their number in hand; growing by colour keeps them on borders.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

SQUARE = 10  #: side of the squares that a piece starts in, pixels
_LAB_SCALE, _LAB_SHIFT = (
    np.array([2, 3, 3], np.float32),
    np.array([0, 128, 128], np.float32),
)  #: Lab as bytes: steps of 0.5 and 0.33
_Slices = tuple[slice, slice]
#: Pixels and their neighbours to the right, below.
_SIDES: tuple[tuple[_Slices, _Slices], ...] = (
    (np.s_[:, :-1], np.s_[:, 1:]),
    (np.s_[:-1, :], np.s_[1:, :]),
)
#: A pixel strays that is so often farther from the colour of its piece than from another's; and by how much, Lab.
FARTHER, LEAST = 2.0, 2.0
REPAIRS = 2  #: times that strays are looked for


class Touching(NamedTuple):
    """Pairs of pieces that share a border."""

    pairs: np.ndarray  #: int (E, 2), the smaller number first, in order
    borders: np.ndarray  #: float64 (E, 2): length, in pairs of pixels; sum of the Lab distances of these pairs


def lab_colours(rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> CIE Lab, float32."""
    lab: np.ndarray = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return lab


def superpixels(lab: np.ndarray) -> np.ndarray:
    """Lab (H, W, 3) -> int32 (H, W): the piece that each pixel is in, 0 to n - 1."""
    # OpenCV gives the outermost pixels to no piece
    framed = cv2.copyMakeBorder(_as_bytes(lab), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    pieces = cv2.watershed(framed, np.pad(_starts(_unrest(lab)), 1))[1:-1, 1:-1].copy()
    _give_lines(pieces, lab)
    channels = lab.reshape(-1, 3).T.astype(np.float64)
    for _ in range(REPAIRS):
        _give_strays(pieces, lab, channels)
    used = np.flatnonzero(np.bincount(pieces.ravel()))
    number = np.zeros(used[-1] + 1, np.int32)
    number[used] = np.arange(len(used))
    return number[pieces]


def touching(pieces: np.ndarray, lab: np.ndarray) -> Touching:
    """Which pieces touch, over edges of pixels."""
    pairs, distances = [], []
    for (one, other), steps in zip(_SIDES, _steps(lab), strict=True):
        crossed = pieces[one] != pieces[other]
        pairs.append(np.stack([pieces[one][crossed], pieces[other][crossed]]))
        distances.append(np.sqrt(steps[crossed]))
    low, high = (end(*np.concatenate(pairs, 1)) for end in (np.minimum, np.maximum))
    values = np.ones((len(low), 2))
    values[:, 1] = np.concatenate(distances)
    return Touching(*added_up(np.stack([low, high], 1), values, int(pieces.max()) + 1))


def added_up(pairs: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (E, 2) of numbers below `count` that may repeat -> each pair once, in order, and the sums of its values."""
    keys = pairs[:, 0].astype(np.int64) * count + pairs[:, 1]
    order = keys.argsort(kind="stable")
    keys = keys[order]
    begins = np.ones(len(keys), bool)
    begins[1:] = keys[1:] != keys[:-1]
    of_pair = begins.cumsum() - 1
    once = keys[begins]
    totals = [np.bincount(of_pair, column, len(once)) for column in values[order].T]
    return np.stack(np.divmod(once, count), 1), np.stack(totals, 1)


def _as_bytes(lab: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3). Rows are multiplied whole: NumPy is slow along an axis of three."""
    height, width = lab.shape[:2]
    scaled = lab.reshape(height, -1) * np.tile(_LAB_SCALE, width)
    scaled += np.tile(_LAB_SHIFT, width)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8).reshape(lab.shape)


def _steps(lab: np.ndarray) -> list[np.ndarray]:
    """Squared Lab distances of each pixel to the one to its right (H, W - 1) and the one below it (H - 1, W)."""
    return [_squared(lab[one] - lab[other]) for one, other in _SIDES]


def _unrest(lab: np.ndarray) -> np.ndarray:
    """(H, W): how much the colour changes around a pixel."""
    smooth = cv2.GaussianBlur(lab, (0, 0), 0.8)
    steps = _squared(cv2.Sobel(smooth, cv2.CV_32F, 1, 0)) + _squared(cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    unrest: np.ndarray = cv2.blur(np.sqrt(steps), (3, 3))
    return unrest


def _starts(unrest: np.ndarray) -> np.ndarray:
    """int32 (H, W): 1, 2, ... at the calmest pixel of each square of the grid, 0 elsewhere."""
    height, width = unrest.shape
    rows, columns = -(-height // SQUARE), -(-width // SQUARE)
    beyond = (0, rows * SQUARE - height), (0, columns * SQUARE - width)
    squares = (
        np.pad(unrest, beyond, constant_values=np.inf).reshape(rows, SQUARE, columns, SQUARE).transpose(0, 2, 1, 3)
    )
    calmest = squares.reshape(rows, columns, SQUARE * SQUARE).argmin(2)
    down, right = np.divmod(calmest, SQUARE)
    starts = np.zeros(unrest.shape, np.int32)
    starts[np.arange(rows)[:, None] * SQUARE + down, np.arange(columns) * SQUARE + right] = np.arange(
        1, rows * columns + 1
    ).reshape(rows, columns)
    return starts


def _give_lines(pieces: np.ndarray, lab: np.ndarray) -> None:
    """Give each pixel of the lines between pieces (-1) to the piece of the neighbour that is most like it, in place.

    Where that neighbour is on a line too, the pixel waits until it is not, or until all do.
    """
    flat, width = pieces.reshape(-1), pieces.shape[1]
    lines = np.flatnonzero(flat < 1)
    right, below = (np.full(lab.shape[:2], np.inf, np.float32) for _ in _SIDES)  # infinite beyond the photo
    right[:, :-1], below[:-1] = _steps(lab)
    beside = np.stack([lines + 1, lines + width, lines - 1, lines - width])
    # before the first pixel of a row or column is the last of another, or of all
    to_right, to_below = right.ravel(), below.ravel()
    distances = np.stack([to_right[lines], to_below[lines], to_right[beside[2]], to_below[beside[3]]])
    while len(lines):
        around = flat.take(beside, mode="wrap")
        of_pieces = np.where(around > 0, distances, np.inf)
        nearest = of_pieces.min(0)
        ready = np.isfinite(nearest) & (nearest <= distances.min(0))
        if not ready.any():
            ready = np.isfinite(nearest)
        flat[lines[ready]] = around[of_pieces.argmin(0), np.arange(len(lines))][ready]
        lines, beside, distances = lines[~ready], beside[:, ~ready], distances[:, ~ready]


def _give_strays(pieces: np.ndarray, lab: np.ndarray, channels: np.ndarray) -> None:
    """Give each pixel that is far from the colour of its piece, and near to that of the piece beside it, to the other
    one, in place. Lines keep pieces from pixels of their own colour, and others run over the border there.

    channels: float64 (3, H * W), the same as lab.
    """
    flat, colours = pieces.reshape(-1), lab.reshape(-1, 3)
    places = flat.astype(np.intp)
    area = np.maximum(np.bincount(places), 1)
    mean = np.stack([np.bincount(places, channel) / area for channel in channels], 1).astype(np.float32)
    astray = _squared(colours - mean.take(places, 0)) / FARTHER**2 - LEAST**2
    pixels = np.flatnonzero(astray > 0)
    nearest, taken, own = astray[pixels], places[pixels], colours.take(pixels, 0)
    for beside in _beside(pixels, pieces.shape):
        other = places.take(beside)
        distance = _squared(own - mean.take(other, 0))
        closer = distance < nearest
        np.copyto(nearest, distance, where=closer)
        np.copyto(taken, other, where=closer)
    flat[pixels] = taken


def _beside(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Places (n,) of pixels in a flat photo of size (H, W) -> (4, n), their neighbours; themselves beyond an edge."""
    y, x = np.divmod(pixels, size[1])
    return np.stack(
        [
            np.where(x + 1 < size[1], pixels + 1, pixels),
            np.where(y + 1 < size[0], pixels + size[1], pixels),
            np.where(x > 0, pixels - 1, pixels),
            np.where(y > 0, pixels - size[1], pixels),
        ]
    )


def _squared(colours: np.ndarray) -> np.ndarray:
    """float32 (..., 3) -> (...,): squared length."""
    if not colours.size:
        return np.zeros(colours.shape[:-1], np.float32)
    one_row = colours.reshape(1, -1, 3)
    return cv2.transform(cv2.multiply(one_row, one_row), np.ones((1, 3), np.float32)).reshape(colours.shape[:-1])
