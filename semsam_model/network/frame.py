"""The only place that maps photo pixels <-> model frame: images, prompts and mask logits together.

The photo is resized with PIL's antialiased bicubic filter, normalised, and zero-padded on the bottom and right to a
multiple of 32 (zero after normalisation is the mean colour). Prompts are divided by the photo's size and scaled by
resized/padded, because the network's coordinates are shares of the padded frame.

A frame may show a window of the photo instead of all of it, magnified. Everything outside the network stays in pixels
of the whole photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semsam_model.config import ModelConfig
from semsam_model.errors import ImageError, PromptError
from semsam_model.masks.geometry import EMPTY_BBOX, BBox, crop_mask, tight_bbox
from semsam_model.types import Box, Click

PAD_TO = 32  #: stride of the coarsest backbone map
LOGIT_STRIDE = 4  #: mask logits have one value per 4x4 model-frame pixels
NOWHERE = -1e4  #: logit of cells outside the window of a frame
CLICK, BOX = 0, 1  #: prompt kinds; published weights know CLICK (their pb flag 0) and never trained BOX

Window = tuple[int, int, int, int]  #: half-open x0, y0, x1, y1, whole photo pixels


@dataclass(frozen=True)
class Frame:
    """How one photo, or a window of it, maps to the model frame. Sizes are (H, W)."""

    photo: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]
    window: Window  #: the part of the photo that is shown

    @classmethod
    def of(cls, photo: tuple[int, int], config: ModelConfig, window: Window | None = None) -> Frame:
        """Geometry for a photo of size (H, W), or for a window of it.

        The other side is truncated, as published: int(target * other / side). Raises ImageError for an empty photo or
        window, a window that leaves the photo, and one too long and thin to keep a pixel on its short side.
        """
        x0, y0, x1, y1 = window or (0, 0, photo[1], photo[0])
        height, width = y1 - y0, x1 - x0
        if height < 1 or width < 1:
            raise ImageError(f"photo of {width}x{height} pixels: expected at least 1x1")
        if min(x0, y0) < 0 or x1 > photo[1] or y1 > photo[0]:
            raise ImageError(f"window {window}: expected it inside the photo of {photo[1]}x{photo[0]} pixels")
        side = min(height, width) if config.resize_side == "short" else max(height, width)
        target = config.zoom_pixels if window else config.resize_pixels
        resized = (max(1, target * height // side), max(1, target * width // side))
        if max(resized) > 32 * target:
            raise ImageError(
                f"photo of {width}x{height} pixels: too long and thin for model {config.name}, "
                "expected an aspect ratio of at most 32:1"
            )
        padded = tuple(-(-side // PAD_TO) * PAD_TO for side in resized)
        return cls(photo, resized, (padded[0], padded[1]), (x0, y0, x1, y1))

    @property
    def shown(self) -> tuple[int, int]:
        """(H, W) of the window, photo pixels."""
        x0, y0, x1, y1 = self.window
        return y1 - y0, x1 - x0

    def image(self, rgb: np.ndarray, config: ModelConfig) -> Tensor:
        """uint8 RGB (H, W, 3) of the photo -> normalised, padded float32 (1, 3, H_pad, W_pad). Raises ImageError."""
        return self.normalised(self.resize(rgb), config)

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) of the photo -> the window, resized: uint8 (h, w, 3). Raises ImageError."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.shape[:2] != self.photo:
            raise ImageError(
                f"image array: expected uint8 RGB of shape ({self.photo[0]}, {self.photo[1]}, 3), "
                f"got {rgb.dtype} {rgb.shape}"
            )
        height, width = self.resized
        x0, y0, x1, y1 = self.window
        shown = Image.fromarray(rgb[y0:y1, x0:x1])
        return np.array(shown.resize((width, height), Image.Resampling.BICUBIC))

    def normalised(self, resized: np.ndarray, config: ModelConfig) -> Tensor:
        """The output of `resize` -> normalised, padded float32 (1, 3, H_pad, W_pad)."""
        height, width = self.resized
        pixels = torch.from_numpy(resized).float()
        padded = torch.zeros(1, *self.padded, 3)
        padded[0, :height, :width] = (pixels - torch.tensor(config.pixel_mean)) / torch.tensor(config.pixel_std)
        return padded.permute(0, 3, 1, 2)

    def prompts(self, prompts: Sequence[Click | Box], config: ModelConfig) -> tuple[Tensor, Tensor]:
        """Clicks and boxes in photo pixels -> boxes (N, 4) cx, cy, w, h as shares of the padded frame, kinds (N,) long.

        A click is the box of side `config.click_box` around it. Raises PromptError for a click outside the window.
        Boxes are clipped to the window.
        """
        left, top, _, _ = self.window
        height, width = self.shown
        rows, kinds = [], []
        for prompt in prompts:
            if isinstance(prompt, Click):
                self.check(prompt)
                rows.append(((prompt.x - left) / width, (prompt.y - top) / height, config.click_box, config.click_box))
                kinds.append(CLICK)
            else:
                box = self.clip(prompt)
                x, y = (box.x0 + box.x1) / 2 - left, (box.y0 + box.y1) / 2 - top
                rows.append((x / width, y / height, (box.x1 - box.x0) / width, (box.y1 - box.y0) / height))
                kinds.append(BOX)
        share_y, share_x = self.resized[0] / self.padded[0], self.resized[1] / self.padded[1]
        scale = torch.tensor([share_x, share_y, share_x, share_y])
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) * scale, torch.tensor(kinds, dtype=torch.long)

    def check(self, click: Click) -> None:
        """Raises PromptError for a click outside the window."""
        if not self.holds(click.x, click.y):
            height, width = self.shown
            raise PromptError(
                f"click ({click.x:g}, {click.y:g}): expected a point inside {self._whole_or_window}, "
                f"which is {width} wide and {height} high"
            )

    def clip(self, box: Box) -> Box:
        """The part of a box that lies in the window. Raises PromptError when there is none."""
        left, top, right, bottom = map(float, self.window)
        x0, y0, x1, y1 = max(left, box.x0), max(top, box.y0), min(right, box.x1), min(bottom, box.y1)
        if x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"box {box.x0:g},{box.y0:g},{box.x1:g},{box.y1:g}: "
                f"expected it to overlap {self._whole_or_window} of {self.shown[1]}x{self.shown[0]} pixels"
            )
        return Box(x0, y0, x1, y1)

    @property
    def whole(self) -> bool:
        """Whether the window is the photo."""
        return self.shown == self.photo

    @property
    def _whole_or_window(self) -> str:
        return "the photo" if self.whole else f"the window {self.window}"

    @property
    def logits(self) -> tuple[int, int]:
        """(h, w) of the mask logits that touch the unpadded frame."""
        return -(-self.resized[0] // LOGIT_STRIDE), -(-self.resized[1] // LOGIT_STRIDE)

    @property
    def photo_pixels(self) -> float:
        """Photo pixels under one model-frame pixel."""
        return (self.shown[0] / self.resized[0]) * (self.shown[1] / self.resized[1])

    def onto(self, logits: np.ndarray, other: Frame, stride: int = LOGIT_STRIDE) -> np.ndarray:
        """Mask logits of this frame, float32 (h, w), at the cells of another frame of the same photo (bilinear).

        stride: of those cells, in pixels of the other frame. (h', w') as `other.logits`, of stride 1 as
        `other.resized`; NOWHERE where the centre of a cell lies outside this window.
        """
        cells = tuple(-(-side // stride) for side in other.resized)
        steps, starts, inside = [], [], []
        for axis in (0, 1):
            # photo pixels a cell
            ours, theirs = (
                f.shown[axis] / f.resized[axis] * step for f, step in ((self, LOGIT_STRIDE), (other, stride))
            )
            away = other.window[1 - axis] - self.window[1 - axis]
            steps.append(theirs / ours)
            starts.append((away + theirs / 2) / ours - 0.5)
            centre = away + (np.arange(cells[axis]) + 0.5) * theirs
            inside.append((centre >= 0) & (centre <= self.shown[axis]))
        matrix = np.array([[steps[1], 0, starts[1]], [0, steps[0], starts[0]]])
        size = cells[1], cells[0]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(logits, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.where(inside[0][:, None] & inside[1], moved, np.float32(NOWHERE))

    def holds(self, x: float, y: float) -> bool:
        """Whether the window shows a photo point."""
        x0, y0, x1, y1 = self.window
        return x0 <= x <= x1 and y0 <= y <= y1

    def mask(self, logits: np.ndarray, threshold: float = 0.0, stride: int = LOGIT_STRIDE) -> tuple[np.ndarray, BBox]:
        """One mask in the photo's own pixels: logits are upsampled (bilinear) and *then* thresholded.

        logits: float32 (h, w) at `stride`, padding allowed beyond `self.logits`.
        Returns bool crop (y1 - y0, x1 - x0) and its tight half-open box x0, y0, x1, y1 in photo pixels.
        Work and memory are those of the box, not of the photo: outside one cell around the logits above the
        threshold, a bilinear surface cannot be above it. An empty mask is a (0, 0) crop with box 0, 0, 0, 0.
        """
        nothing = np.zeros((0, 0), bool), EMPTY_BBOX
        left, top, right, bottom = tight_bbox(logits > threshold)
        if left == right:
            return nothing
        y0, y_taps, y_share = self._taps(top - 1, bottom, 0, logits.shape[0], stride)
        x0, x_taps, x_share = self._taps(left - 1, right, 1, logits.shape[1], stride)
        if not y_share.size or not x_share.size:
            return nothing
        narrow = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
        narrow = torch.lerp(narrow[:, x_taps[0]], narrow[:, x_taps[1]], torch.from_numpy(x_share)[None])
        crop = np.empty((y_share.size, x_share.size), bool)
        share = torch.from_numpy(y_share)[:, None]
        step = max(1, (1 << 20) // x_share.size)  # about 4 MB of float32 at a time stays in the cache
        for start in range(0, y_share.size, step):
            part = slice(start, start + step)
            values = torch.lerp(narrow[y_taps[0][part]], narrow[y_taps[1][part]], share[part])
            crop[part] = (values > threshold).numpy()
        return crop_mask(crop, (x0 + self.window[0], y0 + self.window[1]))

    def enlarge(self, logits: np.ndarray) -> np.ndarray:
        """float32 (h, w) at stride 4, padding allowed beyond `self.logits` -> (H, W) of the window, bilinear."""
        _, rows, row_share = self._taps(-1, logits.shape[0], 0, logits.shape[0])
        _, columns, column_share = self._taps(-1, logits.shape[1], 1, logits.shape[1])
        narrow = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
        narrow = torch.lerp(narrow[:, columns[0]], narrow[:, columns[1]], torch.from_numpy(column_share)[None])
        return torch.lerp(narrow[rows[0]], narrow[rows[1]], torch.from_numpy(row_share)[:, None]).numpy()

    def _taps(
        self, first: int, last: int, axis: int, cells: int, stride: int = LOGIT_STRIDE
    ) -> tuple[int, tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Pixels of the window along one axis whose centre lies between logit cells `first` and `last`.

        Returns the first such pixel, the two cells that each pixel blends (edge cells repeated, as align_corners=False
        does), and the second cell's share. Pixel centre j + 0.5 lies at logit coordinate (j + 0.5) * scale - 0.5.
        """
        scale = self.resized[axis] / self.shown[axis] / stride
        start = max(0, int(np.floor((first + 0.5) / scale - 0.5)))
        stop = min(self.shown[axis], int(np.ceil((last + 0.5) / scale - 0.5)) + 1)
        if first < 0:
            start = 0
        if last >= cells:
            stop = self.shown[axis]
        at = (np.arange(start, stop) + 0.5) * scale - 0.5
        at = np.clip(at, 0, cells - 1)
        low = np.floor(at).astype(np.int64)
        return start, (low, np.minimum(low + 1, cells - 1)), (at - low).astype(np.float32)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """bool (H, W) of the photo -> float32 (h, w), share of each logit cell that the mask covers."""
        h, w = self.logits
        x0, y0, x1, y1 = self.window
        resized = cv2.resize(mask[y0:y1, x0:x1].astype(np.float32), self.resized[::-1], interpolation=cv2.INTER_AREA)
        whole = np.zeros((h * LOGIT_STRIDE, w * LOGIT_STRIDE), np.float32)
        whole[: self.resized[0], : self.resized[1]] = resized
        share: np.ndarray = whole.reshape(h, LOGIT_STRIDE, w, LOGIT_STRIDE).mean((1, 3))
        return share

    def cell_of(self, x: float, y: float) -> tuple[int, int]:
        """(row, col) of the logit cell under a photo point, clipped to the window."""
        h, w = self.logits
        at_x, at_y = self.in_cells(x, y)
        return min(max(int(at_y), 0), h - 1), min(max(int(at_x), 0), w - 1)

    def in_pixels(self, click: Click) -> Click:
        """The middle of the photo's pixel that was clicked, in model-frame pixels."""
        scale_y, scale_x = (r / p for r, p in zip(self.resized, self.shown, strict=True))
        height, width = self.photo
        x, y = (
            min(max(0.0, float(np.floor(at))), side - 1) + 0.5 for at, side in ((click.x, width), (click.y, height))
        )
        return Click((x - self.window[0]) * scale_x, (y - self.window[1]) * scale_y, click.positive)

    def in_cells(self, x: float, y: float) -> tuple[float, float]:
        """Photo point x, y in units of logit cells, x, y."""
        scale_y, scale_x = (r / p / LOGIT_STRIDE for r, p in zip(self.resized, self.shown, strict=True))
        return (x - self.window[0]) * scale_x, (y - self.window[1]) * scale_y
