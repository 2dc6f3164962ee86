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
    _give_strays(pieces, lab)
    used = np.flatnonzero(np.bincount(pieces.ravel()))
    number = np.zeros(used[-1] + 1, np.int32)
    number[used] = np.arange(len(used))
    return number[pieces]


def touching(pieces: np.ndarray, lab: np.ndarray) -> Touching:
    """Which pieces touch, over edges of pixels."""
    flat = pieces.ravel()
    pairs, distances = [], []
    for steps, beside in zip(_steps(lab), (1, pieces.shape[1]), strict=True):
        crossed = np.flatnonzero(flat[beside:] != flat[:-beside])
        step = steps.take(crossed)
        crossed = crossed[np.isfinite(step)]
        pairs.append(np.stack([flat.take(crossed), flat.take(crossed + beside)]))
        distances.append(np.sqrt(step[np.isfinite(step)]))
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


def _steps(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W): squared Lab distances of each pixel to the one to its right, and below it; infinite beyond the photo."""
    right, below = np.full(lab.shape[:2], np.inf, np.float32), np.full(lab.shape[:2], np.inf, np.float32)
    right[:, :-1] = _squared(lab[:, :-1] - lab[:, 1:])
    below[:-1] = _squared(lab[:-1] - lab[1:])
    return right, below


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
    right, below = _steps(lab)
    beside = np.stack([lines + 1, lines + width, lines - 1, lines - width])
    # before the first pixel of a row or column is the last of another, or of all, with nothing beyond it
    distances = np.stack([right.take(lines), below.take(lines), right.ravel()[beside[2]], below.ravel()[beside[3]]])
    while len(lines):
        around = flat.take(beside, mode="wrap")
        of_pieces = np.where(around > 0, distances, np.float32(np.inf))
        nearest, taken = of_pieces[0], around[0]
        for distance, piece in zip(of_pieces[1:], around[1:], strict=True):
            np.copyto(taken, piece, where=distance < nearest)
            nearest = np.minimum(nearest, distance)
        beside_piece = np.isfinite(nearest)
        ready = beside_piece & (nearest <= distances.min(0))
        if not ready.any():
            ready = beside_piece
        flat[lines[ready]] = taken[ready]
        wait = np.flatnonzero(~ready)
        lines, beside, distances = lines[wait], beside.take(wait, 1), distances.take(wait, 1)


def _give_strays(pieces: np.ndarray, lab: np.ndarray) -> None:
    """Give each pixel that is far from the colour of its piece, and near to that of the piece beside it, to the other
    one, in place. Lines keep pieces from pixels of their own colour, and others run over the border there.
    """
    places, colours = pieces.ravel().astype(np.intp), lab.reshape(-1, 3)
    count = int(places.max()) + 1
    sums = _sums(places, colours, count)
    for _ in range(REPAIRS):
        mean = (sums[:, 1:] / np.maximum(sums[:, :1], 1)).astype(np.float32)
        astray = _squared(colours - mean.take(places, 0)) / FARTHER**2 - LEAST**2
        pixels = np.flatnonzero(astray > 0)
        nearest, before, own = astray[pixels], places[pixels], colours.take(pixels, 0)
        taken = before.copy()
        for beside in _beside(pixels, pieces.shape):
            other = places.take(beside)
            distance = _squared(own - mean.take(other, 0))
            closer = distance < nearest
            np.copyto(nearest, distance, where=closer)
            np.copyto(taken, other, where=closer)
        given = np.flatnonzero(taken != before)
        places[pixels[given]] = taken[given]
        own = own[given]
        sums += _sums(taken[given], own, count) - _sums(before[given], own, count)
    pieces[:] = places.reshape(pieces.shape)


def _sums(places: np.ndarray, colours: np.ndarray, count: int) -> np.ndarray:
    """float64 (count, 4): pixels (n,) in each piece, and the sums of their colours (n, 3)."""
    sums = [np.bincount(places, channel, count) for channel in (None, *colours.T)]
    return np.stack(sums, 1).astype(np.float64)


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
