"""Random changes of a photo and its masks: scale, crop, flip, right-angle turns, colours, blur, compression."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from semsam_model.masks.geometry import Size
from semsam_model.training.config import SamplingConfig

_GREY = 0.1  #: share of the images with other colours that lose them


def augment(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    size: int,
    config: SamplingConfig,
    fill: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, Size]:
    """Random scale, crop, flip and colours: uint8 RGB (H, W, 3) and bool (H, W) masks -> (S, S, 3) and (G, S, S).

    Photo and masks stay aligned. What the photo does not cover, on the right and bottom as at inference, is `fill`
    (RGB, 0..255); what it covers, (h, w) from the upper left, comes last. All masks are returned, also those the crop
    emptied.
    """
    height, width = image.shape[:2]
    scale = _log_uniform(config.scale_min, config.scale_max, rng) * size / max(height, width)
    rows, columns = min(height, max(1, int(size / scale))), min(width, max(1, int(size / scale)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    new = (min(size, max(1, round(rows * scale))), min(size, max(1, round(columns * scale))))
    flip = config.flip and rng.random() < 0.5

    photo = np.empty((size, size, 3), np.uint8)
    photo[:] = np.round(np.asarray(fill))
    window = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    photo[: new[0], : new[1]] = _flipped(_resized(_jitter(window, config.jitter, rng), new), flip)
    placed = np.zeros((len(masks), size, size), bool)
    for index, mask in enumerate(masks):
        part = mask[top : top + rows, left : left + columns]
        if part.any():
            placed[index, : new[0], : new[1]] = _flipped(_resized_mask(part, new), flip) > 127
    return photo, placed, new


def cut_out(
    image: np.ndarray, masks: Sequence[np.ndarray], new: Size, config: SamplingConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As `augment` for a cut-out piece at a given new size (h, w): uint8 RGB (H, W, 3) and bool (H, W) masks -> uint8
    (h, w, 3) and levels 0..255 (G, h, w), which are inside above 127.
    """
    flip = config.flip and rng.random() < 0.5
    pixels = _flipped(_resized(_jitter(np.ascontiguousarray(image), config.jitter, rng), new), flip)
    return pixels, np.stack([_flipped(_resized_mask(mask, new), flip) for mask in masks])


def paste_scale(config: SamplingConfig, rng: np.random.Generator) -> float:
    """Drawn evenly over its logarithm."""
    return _log_uniform(config.paste_scale_min, config.paste_scale_max, rng)


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _flipped(pixels: np.ndarray, flip: bool) -> np.ndarray:
    return pixels[:, ::-1] if flip else pixels


def _resized(image: np.ndarray, new: Size) -> np.ndarray:
    shrinks = new[0] < image.shape[0] or new[1] < image.shape[1]
    return cv2.resize(image, (new[1], new[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _resized_mask(mask: np.ndarray, new: Size) -> np.ndarray:
    """bool (H, W) -> levels 0..255 of the new size (h, w)."""
    # A mask of 0 and 255 rounds to the nearer side of its outline; area averaging would cost ten times more.
    levels = np.ascontiguousarray(mask).view(np.uint8) * np.uint8(255)
    return cv2.resize(levels, (new[1], new[0]), interpolation=cv2.INTER_LINEAR)


def turned(
    image: np.ndarray, masks: Sequence[np.ndarray], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """With a chance of `share`, photo and masks by 0, 90, 180 or 270 degrees."""
    quarters = int(rng.integers(4)) if rng.random() < share else 0
    return np.rot90(image, quarters), [np.rot90(mask, quarters) for mask in masks]


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Another brightness and contrast; a quarter of it per colour channel."""
    contrast, brightness = 1 + rng.uniform(-strength, strength), 128 * rng.uniform(-strength, strength)
    gains = 1 + rng.uniform(-strength / 4, strength / 4, 3)
    levels = np.arange(256)[:, None]
    table = ((levels - 128) * contrast + 128 + brightness) * gains
    return cv2.LUT(image, np.clip(np.round(table), 0, 255).astype(np.uint8)[None])


def degraded(image: np.ndarray, config: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Blur and compression, each with its chance: uint8 RGB (H, W, 3)."""
    if config.blur and rng.random() < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
    if config.jpeg and rng.random() < config.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 91))]
        packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
        unpacked = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
        image = cv2.cvtColor(unpacked, cv2.COLOR_BGR2RGB)
    return image


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another hue, saturation and gamma: uint8 RGB (H, W, 3)."""
    hue, saturation, gamma = int(rng.integers(-12, 13)), rng.uniform(0.5, 1.5), np.exp(rng.uniform(-0.35, 0.35))
    if rng.random() < _GREY:
        saturation = 0.0
    levels = np.arange(256)
    table = np.stack(  # of OpenCV's hue, half degrees; saturation; value
        ((levels + hue) % 180, np.clip(levels * saturation, 0, 255), 255 * (levels / 255) ** gamma), 1
    )
    changed = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.round(table).astype(np.uint8)[None])
    return cv2.cvtColor(changed, cv2.COLOR_HSV2RGB)
