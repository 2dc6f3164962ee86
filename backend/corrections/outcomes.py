"""What became of an offer: a region as submitted against the candidate it came from. Pure."""

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


def judge(region: AnnotatedRegion, offer: Suggestion | None) -> Judgement:
    """Outcome of a region, with what was offered under its prompt id where that is known.

    A mask that differs from the offered one is corrected when the editor says that it was edited: outlines that only
    passed through the editor may differ by a pixel. Where both mask and label changed, the mask counts.
    """
    if not region.offered:
        return Judgement("drawn")
    candidate = candidate_of(region, offer)
    if candidate is None or offer is None:
        return Judgement("corrected" if region.edited else "accepted", click=_click(offer))
    offered = decode_coco_rle(dict(candidate.mask))
    outcome, overlap = judge_mask(region.mask, region.labels, offered, candidate.label, edited=region.edited)
    return Judgement(outcome, overlap, _click(offer))


def judge_mask(
    mask: np.ndarray, labels: Sequence[str], offered: np.ndarray, label: str | None, *, edited: bool
) -> tuple[Outcome, float]:
    """Outcome of a mask with its labels, bool (H, W), against the mask and label offered; and the IoU of the masks."""
    overlap = iou(mask, offered) if mask.shape == offered.shape else 0.0
    if edited and overlap < 1:
        return "corrected", overlap
    return "accepted" if (labels[0] if labels else None) == label else "relabelled", overlap


def candidate_of(region: AnnotatedRegion, offer: Suggestion | None) -> SuggestedCandidate | None:
    """The candidate that a region was: by its id, which the editor keeps, else by its rank."""
    candidates = offer.candidates if offer else ()
    by_id = (each for each in candidates if each.region == region.id)
    by_rank = (each for each in candidates if each.rank == region.rank)
    return next(by_id, next(by_rank, None))


def _click(offer: Suggestion | None) -> tuple[float, float] | None:
    positives = [(x, y) for x, y, positive in offer.clicks if positive] if offer else []
    return positives[-1] if positives else None


def seconds_until(end: datetime, answered: datetime, next_prompt: datetime | None) -> float:
    """From an answer until what is known to have come after the accept: the task's next prompt, else the submit."""
    until = min(end, next_prompt) if next_prompt else end
    return max(0.0, (until - answered).total_seconds())
