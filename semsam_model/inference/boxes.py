"""A box answers with what lies in it: what reaches beyond is cut off, and counts for less in the order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, CropPrediction, PromptCells, cleaned
from semsam_model.inference.proposals import Proposals
from semsam_model.network.frame import LOGIT_STRIDE

BEYOND = 0.05  #: share of a box's sides that a mask may reach beyond them: boxes are drawn by hand


def within_boxes(proposals: Proposals, scores: np.ndarray, options: CandidateOptions) -> tuple[Proposals, np.ndarray]:
    """The proposals of a prompt with boxes, cut off at BEYOND of their sides, and scores (n,) times the share inside.

    One that lies outside altogether is empty then. As they come where there is no box, or where a positive click lies
    outside of all of them, which says that more is meant.
    """
    if not any(_limits(crop.prompt) for crop in proposals.crops):
        return proposals, scores
    inside = [1 - crop.prompt.outside(proposal) for crop, proposal in proposals.pairs]
    crops = tuple(_cut(crop, options) for crop in proposals.crops)
    return Proposals(proposals.embedding, crops), (scores * inside).astype(np.float32)


def _limits(prompt: PromptCells) -> Sequence[tuple[float, float, float, float]]:
    """The boxes, in cells, where the mask is meant to lie in them."""
    meant = all(
        any(x0 <= c + 0.5 <= x1 and y0 <= r + 0.5 <= y1 for x0, y0, x1, y1 in prompt.boxes) for r, c in prompt.positives
    )
    return prompt.boxes if meant else ()


def _cut(crop: CropPrediction, options: CandidateOptions) -> CropPrediction:
    """Negative beyond the boxes, and without the specks that this may leave."""
    beyond = np.ones(crop.frame.logits, bool)
    for x0, y0, x1, y1 in _limits(crop.prompt):
        across, down = BEYOND * (x1 - x0), BEYOND * (y1 - y0)
        rows = slice(max(0, math.floor(y0 - down)), math.ceil(y1 + down))
        beyond[rows, max(0, math.floor(x0 - across)) : math.ceil(x1 + across)] = False
    cut = [replace(p, logits=np.where(beyond, -np.abs(p.logits), p.logits)) for p in crop.proposals]
    return replace(crop, proposals=tuple(cleaned(p, options.min_region / LOGIT_STRIDE**2) for p in cut))
