"""A second, closer look at the photo, where the first says that something small may be meant.

The photo is shown to the network at a fixed size, so that what is small in it is a few cells of the mask map. A closer
look shows a window of the photo alone, magnified. Windows lie on a grid with half their side as step:
neighbouring clicks share one, and its embedding can be kept like that of a photo.

    look = looker(model, rgb)                     # Look: Window -> ImageEmbedding, the last few are kept
    propose(model, model.encode(rgb), prompt, look=look)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from semsam_model.config import ModelConfig
from semsam_model.inference.candidates import CropPrediction
from semsam_model.masks.geometry import tight_bbox
from semsam_model.network.frame import Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Prompt

CropEncoder = Callable[[Window], ImageEmbedding]

#: Sides of the smallest first answer, shares of the photo's longer side. Where nothing smaller than LARGE was seen the
#: first look is enough; below TINY the window is smaller still. Tuned on annotated photos:
#: docs/results/training-log.md.
LARGE, TINY = 0.6, 0.05
CLOSER = 1.5  #: how much smaller
ROOM = 0.75  #: share of the window's sides that boxes and clicks may span together
KEPT = 16  #: embeddings that a looker keeps


def crop_encoder(model: SemanticSAM, rgb: np.ndarray) -> CropEncoder:
    """How to look closer at one photo, uint8 RGB (H, W, 3)."""
    return lru_cache(KEPT)(lambda window: model.encode(rgb, window))


def choose_crop(view: CropPrediction, prompt: Prompt, config: ModelConfig) -> Window | None:
    """The window for a closer look, from what the first look (view) answered; None where that is enough.

    It shows every positive click and every box.
    """
    spans = [_span(proposal.cells) for proposal in view.proposals]
    smallest = min((span for span in spans if span), default=0) / max(view.frame.logits)
    if not config.zoom or smallest >= LARGE:
        return None
    share = 1 / config.zoom / (CLOSER if smallest < TINY else 1)
    xs = [c.x for c in prompt.positives] + [x for b in prompt.boxes for x in (b.x0, b.x1)]
    ys = [c.y for c in prompt.positives] + [y for b in prompt.boxes for y in (b.y0, b.y1)]
    (top, bottom), (left, right) = (
        _place(min(max(min(at), 0), side), min(max(max(at), 0), side), side, share)
        for at, side in zip((ys, xs), view.frame.photo, strict=True)
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


def without_truncated(view: CropPrediction) -> CropPrediction:
    """Without the proposals that a side of the window cuts off: they go on outside, the first look has them whole."""
    x0, y0, x1, y1 = view.frame.window
    height, width = view.frame.photo
    kept = []
    for proposal in view.proposals:
        cells = proposal.cells
        cut = (
            (cells[0].any() and y0 > 0)
            or (cells[-1].any() and y1 < height)
            or (cells[:, 0].any() and x0 > 0)
            or (cells[:, -1].any() and x1 < width)
        )
        if not cut:
            kept.append(proposal)
    return replace(view, proposals=tuple(kept))
