"""One click without Label Studio: what `semsam click` writes.

DIR/candidates.json    every candidate with its mask as COCO RLE
DIR/mask_RANK.png      8-bit mask, 255 inside
DIR/contact_sheet.png  the photo and the candidates side by side
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.formats import encode_coco_rle
from backend.images import Photo
from semsam_model.checkpoint import Version
from semsam_model.types import Candidate, Prompt

TILE = 420  #: longer side of one picture on the sheet, pixels
CAPTION = 30
GAP = 8
COLOURS = ((230, 57, 70), (29, 120, 200), (42, 157, 70), (233, 150, 40), (140, 70, 190), (0, 160, 170))


def write(out: Path, photo: Photo, prompt: Prompt, candidates: Sequence[Candidate], version: Version) -> None:
    """Write all three kinds of file into `out`, made if missing. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        Image.fromarray(candidate.mask.astype(np.uint8) * 255).save(out / f"mask_{candidate.rank}.png")
    contact_sheet(photo.rgb, prompt, candidates).save(out / "contact_sheet.png")
    text = json.dumps(describe(photo, candidates, version), indent=1)
    (out / "candidates.json").write_text(text, encoding="utf-8")


def describe(photo: Photo, candidates: Sequence[Candidate], version: Version) -> dict[str, Any]:
    """The content of candidates.json: pixels of the EXIF-oriented photo, masks at its size."""
    height, width = photo.size
    return {
        "image": {"width": width, "height": height, "sha256": photo.sha256},
        "model": {"name": version.name, "version": version.version},
        "candidates": [_row(c) for c in candidates],
    }


def _row(c: Candidate) -> dict[str, Any]:
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
    height, width = rgb.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
    tiles = [(_with_prompt(small, prompt, scale), "photo and prompt")]
    for c in candidates:
        colour = COLOURS[(c.rank - 1) % len(COLOURS)]
        label = f" · {c.label}" if c.label else ""
        within = f" · in {c.parent}" if c.parent else ""
        drawn = _with_prompt(_with_mask(small, c.mask, colour), prompt, scale)
        tiles.append((drawn, f"{c.rank} · level {c.level} · {c.score:.2f}{label}{within}"))
    columns = min(4, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    cell_w, cell_h = size[0] + GAP, size[1] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for i, (tile, caption) in enumerate(tiles):
        x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
        sheet.paste(Image.fromarray(tile), (x, y))
        draw.text((x + 2, y + size[1] + 5), caption, fill="black", font=font)
    return sheet


def _with_mask(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    h, w = picture.shape[:2]
    inside = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA) > 0
    grey = picture.mean(2, keepdims=True).repeat(3, 2)
    out = np.where(inside[..., None], picture * 0.5 + np.array(colour) * 0.5, grey * 0.6 + 90).clip(0, 255)
    out = np.ascontiguousarray(out.astype(np.uint8))
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(out, contours, -1, colour, 2)


def _with_prompt(picture: np.ndarray, prompt: Prompt, scale: float) -> np.ndarray:
    out = picture.copy()
    for box in prompt.boxes:
        corners = [round(v * scale) for v in (box.x0, box.y0, box.x1, box.y1)]
        cv2.rectangle(out, (corners[0], corners[1]), (corners[2], corners[3]), (0, 229, 255), 2)
    for click in prompt.clicks:
        at = (round(click.x * scale), round(click.y * scale))
        cv2.circle(out, at, 7, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(out, at, 5, (0, 160, 60) if click.positive else (210, 30, 30), -1, cv2.LINE_AA)
    return out
