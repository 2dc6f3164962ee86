"""Random views of a photo and its masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from semsam_model.training.config import SamplingConfig


def augment(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    size: int,
    config: SamplingConfig,
    fill: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, crop, flip and colours: uint8 RGB (H, W, 3) and bool (H, W) masks -> (S, S, 3) and (G, S, S).

    Photo and masks stay aligned. What the photo does not cover, on the right and bottom as at inference, is `fill`
    (RGB, 0..255). All masks are returned, also those the crop emptied.
    """
    height, width = image.shape[:2]
    scale = np.exp(rng.uniform(np.log(config.scale_min), np.log(config.scale_max))) * size / max(height, width)
    rows, columns = min(height, max(1, int(size / scale))), min(width, max(1, int(size / scale)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    new = (min(size, max(1, round(rows * scale))), min(size, max(1, round(columns * scale))))
    flip = config.flip and rng.random() < 0.5

    def place(pixels: np.ndarray, interpolation: int) -> np.ndarray:
        part = cv2.resize(pixels, (new[1], new[0]), interpolation=interpolation)
        return part[:, ::-1] if flip else part

    photo = np.empty((size, size, 3), np.uint8)
    photo[:] = np.round(np.asarray(fill))
    window = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    photo[: new[0], : new[1]] = place(_jitter(window, config.jitter, rng), shrink)
    placed = np.zeros((len(masks), size, size), bool)
    for index, mask in enumerate(masks):
        part = mask[top : top + rows, left : left + columns]
        if part.any():
            # A mask of 0 and 255 rounds to the nearer side of its outline; area averaging would cost ten times more.
            levels = np.ascontiguousarray(part).view(np.uint8) * np.uint8(255)
            placed[index, : new[0], : new[1]] = place(levels, cv2.INTER_LINEAR) > 127
    return photo, placed


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    contrast, brightness = 1 + rng.uniform(-strength, strength), 128 * rng.uniform(-strength, strength)
    gains = 1 + rng.uniform(-strength / 4, strength / 4, 3)
    levels = np.arange(256)[:, None]
    table = ((levels - 128) * contrast + 128 + brightness) * gains
    return cv2.LUT(image, np.clip(np.round(table), 0, 255).astype(np.uint8)[None])
