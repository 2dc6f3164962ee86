"""Where the refiner looks: a square around the mask and the clicks, and the way there and back. NumPy and OpenCV.

Everything here is in pixels of one resized photo, continuous (x, y) as everywhere; a crop has SIDE x SIDE pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from semsam_model.masks.geometry import tight_bbox
from semsam_model.network.ranker import logistic
from semsam_model.network.refiner import HINTS, SIDE
from semsam_model.types import Click

ROOM = 1.4  #: side of the square, by the longer side of the box around mask and clicks
LEAST = 32  #: least side of the square, pixels
DISK = 3  #: radius of a click in the maps, pixels of the crop
OUTSIDE = -1e4  #: logit outside the photo


@dataclass(frozen=True)
class Square:
    """A square window of a photo of size (H, W); it may reach beyond the photo."""

    size: tuple[int, int]  #: of the photo
    left: int
    top: int
    side: int

    @classmethod
    def around(cls, mask: np.ndarray, clicks: Sequence[Click], room: float = ROOM) -> Square:
        """The square around a bool (H, W) mask, which may be empty, and at least one click; inside the photo where it
        fits there.
        """
        x0, y0, x1, y1 = tight_bbox(mask)
        xs = [c.x for c in clicks] + [x0, x1] * (x0 < x1)
        ys = [c.y for c in clicks] + [y0, y1] * (x0 < x1)
        side = max(LEAST, int(np.ceil(room * max(max(xs) - min(xs), max(ys) - min(ys)))))
        height, width = mask.shape
        left, top = (_place((min(at) + max(at)) / 2, side, length) for at, length in ((xs, width), (ys, height)))
        return cls((height, width), left, top, side)

    def crop(self, pixels: np.ndarray, outside: float) -> np.ndarray:
        """float32 or uint8 (H, W[, C]) of the photo -> float32 (SIDE, SIDE[, C]); `outside` beyond the photo."""
        inside, (y0, y1, x0, x1) = self._inside()
        window = np.full((self.side, self.side, *pixels.shape[2:]), outside, np.float32)
        window[y0:y1, x0:x1] = pixels[inside]
        shrinks = self.side > SIDE
        resized: np.ndarray = cv2.resize(
            window, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return resized

    def paste(self, crop: np.ndarray, onto: np.ndarray, where: np.ndarray) -> np.ndarray:
        """A copy of the float32 (H, W) map `onto` with the (SIDE, SIDE) crop in its place, but only `where`, bool
        (SIDE, SIDE).
        """
        inside, (y0, y1, x0, x1) = self._inside()
        window = cv2.resize(crop, (self.side, self.side), interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1]
        taken = cv2.resize(where.astype(np.uint8), (self.side, self.side), interpolation=cv2.INTER_NEAREST)
        pasted = onto.copy()
        pasted[inside] = np.where(taken[y0:y1, x0:x1] > 0, window, onto[inside])
        return pasted

    def click(self, click: Click) -> Click:
        """In pixels of the crop."""
        scale = SIDE / self.side
        return Click((click.x - self.left) * scale, (click.y - self.top) * scale, click.positive)

    def _inside(self) -> tuple[tuple[slice, slice], tuple[int, int, int, int]]:
        """The part of the photo that lies in the square; its first and last row and column in the square."""
        height, width = self.size
        x0, y0 = max(0, self.left), max(0, self.top)
        x1, y1 = min(width, self.left + self.side), min(height, self.top + self.side)
        at = y0 - self.top, y1 - self.top, x0 - self.left, x1 - self.left
        return (slice(y0, y1), slice(x0, x1)), at


def _place(middle: float, side: int, length: int) -> int:
    """First pixel of a window of `side` along `length` pixels: inside where it fits, else the photo in its middle."""
    if side >= length:
        return -((side - length) // 2)
    return min(max(0, round(middle - side / 2)), length - side)


def hint_maps(logits: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """Logits (SIDE, SIDE) of the mask, clicks so far in pixels of the crop -> float32 (HINTS, SIDE, SIDE).

    The channels: probability of the mask; disks at positive clicks; at negative ones; 1 or -1 at the newest, the last.
    """
    maps = np.zeros((HINTS, SIDE, SIDE), np.float32)
    maps[0] = logistic(logits)
    for click in clicks:
        _disk(maps[1 if click.positive else 2], click, 1.0)
    _disk(maps[3], clicks[-1], 1.0 if clicks[-1].positive else -1.0)
    return maps


def _disk(plane: np.ndarray, click: Click, value: float) -> None:
    cv2.circle(plane, (int(np.floor(click.x)), int(np.floor(click.y))), DISK, value, cv2.FILLED)
