"""The files that `semsam click` and `semsam segment` write.

DIR/candidates.json    every candidate with its mask as COCO RLE
DIR/mask_RANK.png      8-bit mask, 255 inside
DIR/contact_sheet.png  `click`: the photo and the candidates side by side
DIR/overview.png       `segment`: all masks over the photo, small ones on top, with their names
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.cli.shared import write_json
from backend.images import Photo
from semsam_model.checkpoints.header import Version
from semsam_model.masks.codecs import encode_coco_rle
from semsam_model.masks.drawing import Colour, blend, draw_mask, draw_outline, draw_prompt, resize_mask, scaled
from semsam_model.types import Candidate, Prompt

TILE = 420  #: longer side of one tile on the sheet, pixels
CAPTION = 30
GAP = 8
COLOURS = ((230, 57, 70), (29, 120, 200), (42, 157, 70), (233, 150, 40), (140, 70, 190), (0, 160, 170))


def write_candidates(
    out: Path, photo: Photo, candidates: Sequence[Candidate], version: Version, concepts: Version | None = None
) -> None:
    """Write masks and candidates.json into `out`, made if missing, and print a line for each. Raises OSError.

    concepts: of the model that found them by words.
    """
    out.mkdir(parents=True, exist_ok=True)
    for c in candidates:
        Image.fromarray(c.mask.astype(np.uint8) * 255).save(out / f"mask_{c.rank}.png")
        label = f"  {c.label}" if c.label else ""
        parent = f"  part of {c.parent}" if c.parent else ""
        print(f"{c.rank}  level {c.level}  score {c.score:.2f}  {c.area} px{label}{parent}")
    height, width = photo.size
    content: dict[str, Any] = {
        "image": {"width": width, "height": height, "sha256": photo.sha256},
        "model": {"name": version.name, "version": version.version},
        "candidates": [_row(c) for c in candidates],
    }
    if concepts is not None:
        content["model"]["concepts"] = concepts.version
    write_json(out / "candidates.json", content)


def _row(c: Candidate) -> dict[str, Any]:
    """An entry of candidates.json: pixels of the EXIF-oriented photo, the mask at its size."""
    x0, y0, x1, y1 = c.bbox
    return {
        "rank": c.rank,
        "level": c.level,
        "token": c.token,
        "score": c.score,
        "predicted_iou": c.predicted_iou,
        "stability": c.stability,
        "area": c.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "parent": c.parent,
        "label": c.label,
        "segmentation": encode_coco_rle(c.crop, c.bbox, c.size),
    }


def contact_sheet(rgb: np.ndarray, prompt: Prompt, candidates: Sequence[Candidate]) -> Image.Image:
    """The photo with its prompt, then each candidate drawn over the photo, captioned rank, level, score."""
    scale = TILE / max(rgb.shape[:2])
    small = scaled(rgb, scale)
    tiles = [(small.copy(), "photo and prompt")]
    for c in candidates:
        drawn = _highlighted(small, c.mask, COLOURS[(c.rank - 1) % len(COLOURS)])
        label = f" · {c.label}" if c.label else ""
        within = f" · in {c.parent}" if c.parent else ""
        tiles.append((drawn, f"{c.rank} · level {c.level} · {c.score:.2f}{label}{within}"))
    for tile, _ in tiles:
        draw_prompt(tile, prompt, scale)
    columns = min(4, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    cell_w, cell_h = small.shape[1] + GAP, small.shape[0] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for i, (tile, caption) in enumerate(tiles):
        x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
        sheet.paste(Image.fromarray(tile), (x, y))
        draw.text((x + 2, y + small.shape[0] + 5), caption, fill="black", font=font)
    return sheet


def overview(rgb: np.ndarray, candidates: Sequence[Candidate]) -> Image.Image:
    """All masks over the photo at its own size, small ones on top, in different colours, with their names."""
    out = rgb.copy()
    shuffled = np.random.default_rng(0).permutation(180)
    order = sorted(candidates, key=lambda c: -c.area)
    for c in order:
        hue = np.array([[[shuffled[c.rank % 180], 190, 235]]], np.uint8)
        red, green, blue = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        x0, y0, x1, y1 = c.bbox
        window = out[y0:y1, x0:x1]
        window[c.crop] = blend(rgb[y0:y1, x0:x1][c.crop], (red, green, blue), 0.5)
        draw_outline(window, c.crop, (255, 255, 255), 1)
    sheet = Image.fromarray(out)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for c in order:
        if c.label:
            x0, y0, x1, y1 = c.bbox
            at = ((x0 + x1) / 2, (y0 + y1) / 2)
            draw.text(at, c.label, fill="black", font=font, anchor="mm", stroke_width=2, stroke_fill="white")
    return sheet


def _highlighted(canvas: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """A copy of the canvas, tinted inside the mask and pale and grey outside."""
    inside = resize_mask(mask, canvas)
    grey = canvas.mean(2, keepdims=True).repeat(3, 2)
    out = np.where(inside[..., None], canvas, (grey * 0.6 + 90).clip(0, 255)).astype(np.uint8)
    draw_mask(out, inside, colour, 0.5)
    draw_outline(out, inside, colour)
    return out
