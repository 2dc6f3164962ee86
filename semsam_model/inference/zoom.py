"""A magnified crop of the photo, predicted beside the whole photo where something small may be meant.

The network gets the photo at a fixed size, so that what is small in it covers a few cells of the mask logits. The crop
shows a window of the photo alone, magnified. Windows lie on a grid with half their side as step: neighbouring clicks
share one, and its embedding can be cached like that of a photo.

    encode_crop = crop_encoder(model, rgb)      # Window -> ImageEmbedding, the last few are kept
    predict_candidates(model, model.encode(rgb), prompt, encode_crop=encode_crop)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, CropPrediction
from semsam_model.inference.engine import EngineEmbedding, Model
from semsam_model.masks.geometry import tight_bbox
from semsam_model.network.frame import Window
from semsam_model.types import Prompt

CropEncoder = Callable[[Window], EngineEmbedding]

# Tuned on annotated photos, as `CandidateOptions.magnify_below` was: docs/results/training-log.md.
TINY, CLOSER = 0.05, 1.5  #: a proposal below this share of the photo's longer side is magnified so much more
ROOM = 0.75  #: share of the window's sides that boxes and clicks may span together
KEPT = 16  #: embeddings that a crop encoder keeps


def crop_encoder(model: Model, rgb: np.ndarray) -> CropEncoder:
    """Encodes windows of one photo, uint8 RGB (H, W, 3)."""
    return lru_cache(KEPT)(lambda window: model.encode(rgb, window))


def choose_crop(photo: CropPrediction, prompt: Prompt, zoom: float, options: CandidateOptions) -> Window | None:
    """The window to magnify, by the sizes of the proposals in the whole photo; None where the photo is enough.

    zoom: the window has 1/zoom of the photo's sides; 0: never. It holds every positive click and every box.
    """
    spans = [_span(proposal.cells) for proposal in photo.proposals]
    smallest = min((span for span in spans if span), default=0) / max(photo.frame.logits)
    if not zoom or smallest >= options.magnify_below:
        return None
    share = 1 / zoom / (CLOSER if smallest < TINY else 1)
    xs = [c.x for c in prompt.positives] + [x for b in prompt.boxes for x in (b.x0, b.x1)]
    ys = [c.y for c in prompt.positives] + [y for b in prompt.boxes for y in (b.y0, b.y1)]
    (top, bottom), (left, right) = (
        _place(min(max(min(at), 0), side), min(max(max(at), 0), side), side, share)
        for at, side in zip((ys, xs), photo.frame.photo, strict=True)
    )
    window = left, top, right, bottom
    shown = left <= min(xs) and max(xs) <= right and top <= min(ys) and max(ys) <= bottom
    fits = max(xs) - min(xs) <= ROOM * (right - left) and max(ys) - min(ys) <= ROOM * (bottom - top)
    return window if shown and fits else None


def _span(cells: np.ndarray) -> int:
    """Longer side of the bounding box, cells; 0 for an empty mask."""
    x0, y0, x1, y1 = tight_bbox(cells)
    return max(x1 - x0, y1 - y0)


def _place(first: float, last: float, side: int, share: float) -> tuple[int, int]:
    """Along one side of the photo the window, of those on the grid, whose middle is nearest to that of first..last."""
    length = min(side, max(1, round(side * share)))
    steps = max(1, round((side - length) / (length / 2)))
    step = (side - length) / steps
    at = (first + last - length) / 2
    number = min(max(round(at / step), 0), steps) if step else 0
    start = round(number * step)
    return start, start + length


def without_truncated(crop: CropPrediction) -> CropPrediction:
    """Without the proposals that a side of the window cuts off: the whole photo has them in one piece."""
    x0, y0, x1, y1 = crop.frame.window
    height, width = crop.frame.photo
    kept = []
    for proposal in crop.proposals:
        cells = proposal.cells
        cut = (
            (cells[0].any() and y0 > 0)
            or (cells[-1].any() and y1 < height)
            or (cells[:, 0].any() and x0 > 0)
            or (cells[:, -1].any() and x1 < width)
        )
        if not cut:
            kept.append(proposal)
    return replace(crop, proposals=tuple(kept))
