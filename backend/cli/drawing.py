"""Photos without Label Studio: what `semsam click` and `semsam segment` write.

DIR/candidates.json    every candidate with its mask as COCO RLE
DIR/mask_RANK.png      8-bit mask, 255 inside
DIR/contact_sheet.png  one click: the photo and the candidates side by side
DIR/overview.png       everything: all masks over the photo, small ones on top, with their names
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

from backend.images import Photo
from semsam_model.checkpoints.header import Version
from semsam_model.masks.codecs import encode_coco_rle
from semsam_model.types import Candidate, Prompt

TILE = 420  #: longer side of one picture on the sheet, pixels
CAPTION = 30
GAP = 8
COLOURS = ((230, 57, 70), (29, 120, 200), (42, 157, 70), (233, 150, 40), (140, 70, 190), (0, 160, 170))


def write(out: Path, photo: Photo, prompt: Prompt, candidates: Sequence[Candidate], version: Version) -> None:
    """Write all three kinds of file into `out`, made if missing. Raises OSError."""
    _write_masks(out, photo, candidates, version)
    contact_sheet(photo.rgb, prompt, candidates).save(out / "contact_sheet.png")


def write_overview(out: Path, photo: Photo, candidates: Sequence[Candidate], version: Version) -> None:
    """As `write`, with all masks in one picture. Raises OSError."""
    _write_masks(out, photo, candidates, version)
    overview(photo.rgb, candidates).save(out / "overview.png")


def _write_masks(out: Path, photo: Photo, candidates: Sequence[Candidate], version: Version) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        Image.fromarray(candidate.mask.astype(np.uint8) * 255).save(out / f"mask_{candidate.rank}.png")
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


def overview(rgb: np.ndarray, candidates: Sequence[Candidate]) -> Image.Image:
    """All masks over the photo at its own size, small ones on top, in different colours, with their names."""
    out = rgb.astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(180)
    order = sorted(candidates, key=lambda c: -c.area)
    for c in order:
        hue = np.array([[[shuffled[c.rank % 180], 190, 235]]], np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
        x0, y0, x1, y1 = c.bbox
        window = out[y0:y1, x0:x1]
        window[c.crop] = 0.5 * rgb[y0:y1, x0:x1][c.crop] + 0.5 * colour
        outline, _ = cv2.findContours(c.crop.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        painted = cv2.drawContours(np.ascontiguousarray(window), outline, -1, (255, 255, 255), 1)
        out[y0:y1, x0:x1] = painted
    sheet = Image.fromarray(out.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for c in order:
        if c.label:
            x0, y0, x1, y1 = c.bbox
            at = ((x0 + x1) / 2, (y0 + y1) / 2)
            draw.text(at, c.label, fill="black", font=font, anchor="mm", stroke_width=2, stroke_fill="white")
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
