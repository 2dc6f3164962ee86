"""A photo with masks and a prompt drawn on it.

A canvas is the photo at `scale` times its size, uint8 RGB (h, w, 3), C-contiguous; `draw_...` change it in place.
"""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from PIL import Image

from semsam_model.types import Click, Prompt

Colour = tuple[int, int, int]

WANTED: Colour = (40, 200, 90)
GOT: Colour = (250, 120, 30)
POSITIVE: Colour = (0, 160, 60)
NEGATIVE: Colour = (210, 30, 30)
BOX: Colour = (0, 229, 255)


def scaled(rgb: np.ndarray, scale: float) -> np.ndarray:
    """The photo, uint8 RGB (H, W, 3), as a canvas at `scale` times its size, at least one pixel on each side."""
    height, width = rgb.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(rgb, size, interpolation=smooth))


def resize_mask(mask: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """bool (H, W) of the photo -> bool (h, w) of the canvas, by nearest pixels."""
    size = canvas.shape[1], canvas.shape[0]
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0)


def blend(pixels: np.ndarray, colour: Colour, share: float) -> np.ndarray:
    """Pixels (n, 3) with so much of a colour in them."""
    return ((1 - share) * pixels + share * np.array(colour)).round().astype(np.uint8)


def draw_mask(canvas: np.ndarray, inside: np.ndarray, colour: Colour, share: float) -> None:
    """Tint what is inside a mask, bool (h, w) of the canvas."""
    canvas[inside] = blend(canvas[inside], colour, share)


def draw_outline(canvas: np.ndarray, inside: np.ndarray, colour: Colour, thickness: int = 2) -> None:
    """Outline a mask, bool (h, w) of the canvas, with its holes."""
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, colour, thickness)


def draw_prompt(canvas: np.ndarray, prompt: Prompt, scale: float) -> None:
    """Draw the boxes, then the clicks as dots with a white ring: POSITIVE or NEGATIVE."""
    for box in prompt.boxes:
        x0, y0, x1, y1 = (round(side * scale) for side in (box.x0, box.y0, box.x1, box.y1))
        cv2.rectangle(canvas, (x0, y0), (x1, y1), BOX, 2)
    for click in prompt.clicks:
        at = round(click.x * scale), round(click.y * scale)
        cv2.circle(canvas, at, 7, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, at, 5, POSITIVE if click.positive else NEGATIVE, -1, cv2.LINE_AA)


def draw_comparison(
    rgb: np.ndarray, wanted: np.ndarray, got: np.ndarray | None, click: Click, side: int = 320
) -> np.ndarray:
    """The photo, its longer side of `side` pixels, with a click, the outline WANTED and, if anything came, GOT."""
    scale = side / max(rgb.shape[:2])
    canvas = scaled(rgb, scale)
    for mask, colour in ((wanted, WANTED), (got, GOT)):
        if mask is not None:
            draw_outline(canvas, resize_mask(mask, canvas), colour)
    draw_prompt(canvas, Prompt((click,)), scale)
    return canvas


def to_data_url(canvas: np.ndarray) -> str:
    """data:image/webp;base64,... for an HTML page that needs no other file."""
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
