"""What became of a suggestion: a region as submitted, compared with the candidate that it came from. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from backend.label_studio.annotations import AnnotatedRegion
from backend.records import Outcome, SuggestedCandidate, Suggestion
from semsam_model.masks.codecs import decode_coco_rle
from semsam_model.masks.geometry import iou


@dataclass(frozen=True)
class Judgement:
    """See `StoredRegion` for the fields."""

    outcome: Outcome
    iou_with_offer: float | None = None
    click: tuple[float, float] | None = None


def judge(region: AnnotatedRegion, suggestion: Suggestion | None) -> Judgement:
    """Outcome of a region. suggestion: what was suggested under its prompt id, where that is known.

    A mask that differs from the suggested one is corrected only when the editor says that it was edited: outlines that
    merely passed through the editor may differ by a pixel. Where both mask and label changed, the mask counts.
    """
    if not region.suggested:
        return Judgement("drawn")
    candidate = candidate_of(region, suggestion)
    if candidate is None or suggestion is None:
        return Judgement("corrected" if region.edited else "accepted", click=_click(suggestion))
    suggested = decode_coco_rle(dict(candidate.mask))
    outcome, overlap = judge_mask(region.mask, region.labels, suggested, candidate.label, edited=region.edited)
    return Judgement(outcome, overlap, _click(suggestion))


def judge_mask(
    mask: np.ndarray, labels: Sequence[str], suggested: np.ndarray, label: str | None, *, edited: bool
) -> tuple[Outcome, float]:
    """(outcome, IoU) of a mask, bool (H, W), with its labels, given the mask and the label that were suggested."""
    overlap = iou(mask, suggested) if mask.shape == suggested.shape else 0.0
    if edited and overlap < 1:
        return "corrected", overlap
    return "accepted" if (labels[0] if labels else None) == label else "relabelled", overlap


def candidate_of(region: AnnotatedRegion, suggestion: Suggestion | None) -> SuggestedCandidate | None:
    """The candidate that became the region: by its id, which the editor keeps, else by its rank."""
    candidates = suggestion.candidates if suggestion else ()
    by_id = (each for each in candidates if each.region == region.id)
    by_rank = (each for each in candidates if each.rank == region.rank)
    return next(by_id, next(by_rank, None))


def _click(suggestion: Suggestion | None) -> tuple[float, float] | None:
    positives = [(x, y) for x, y, positive in suggestion.clicks if positive] if suggestion else []
    return positives[-1] if positives else None


def seconds_until(end: datetime, answered: datetime, next_prompt: datetime | None) -> float:
    """Seconds from an answer to what came after the accept: the next prompt on the task, or else the submit."""
    until = min(end, next_prompt) if next_prompt else end
    return max(0.0, (until - answered).total_seconds())
