"""An annotation -> rows of the table of regions: masks decoded, regions compared with what was suggested.

This takes milliseconds for each region, so it is done before the transaction that writes the rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Row, func, select

from backend.corrections.queries import to_suggestion
from backend.errors import BadRequest
from backend.label_studio.annotations import WAITS_FOR_PHOTO, AnnotatedRegion, Annotation, MalformedRegion, read_region
from backend.label_studio.fields import clean
from backend.label_studio.label_config import LabelConfig
from backend.records import Outcome, ProjectKey, SuggestedCandidate, Suggestion
from backend.store.database import Store
from backend.store.statements import of_task
from backend.store.tables import offers, regions
from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import Size, crop_mask, iou

log = logging.getLogger(__name__)

_MAX_RAW = 100_000  #: characters of a malformed region kept

#: A suggestion, and when the next prompt on its task was answered; None: there was none.
_Suggested = tuple[Suggestion, datetime | None]


def config_or_empty(xml: str) -> LabelConfig:
    """The labeling config; an empty one for a text that cannot be read, so that its project's corrections count."""
    try:
        return LabelConfig.parse(xml)
    except BadRequest:
        return LabelConfig()


def region_rows(store: Store, key: ProjectKey, annotation: Annotation, config: LabelConfig) -> list[dict[str, Any]]:
    """A row with every column for each region; none for an annotation that was cancelled."""
    if annotation.cancelled:
        return []
    suggested: dict[str, _Suggested | None] = {}
    rows = []
    for region in annotation.regions(config):
        if isinstance(region, MalformedRegion):
            log.warning("project %s annotation %d: %s", key, annotation.id, region.problem)
            rows.append(_malformed_row(region))
            continue
        if region.prompt_id is not None and not region.preannotated and region.prompt_id not in suggested:
            suggested[region.prompt_id] = _find_suggested(store, key, annotation.task, region.prompt_id)
        rows.append(_usable_row(region, suggested.get(region.prompt_id or ""), annotation.updated_at))
    # every column, so that all rows of one statement have the same ones
    common: dict[str, Any] = dict.fromkeys(column.name for column in regions.columns) | vars(key)
    common |= {name: getattr(annotation, name) for name in ("task", "annotator", "ground_truth", "updated_at")}
    common |= {"annotation": annotation.id, "labels": [], "preannotated": False}
    return [common | row for row in rows]


def _malformed_row(region: MalformedRegion) -> dict[str, Any]:
    raw = json.dumps(list(region.rows))
    if region.problem != WAITS_FOR_PHOTO:
        raw = raw[:_MAX_RAW]
    return {"region": region.id, "problem": clean(region.problem)[:2000], "raw": raw}


def _usable_row(region: AnnotatedRegion, suggested: _Suggested | None, updated_at: datetime) -> dict[str, Any]:
    same = ("granularity", "parent", "prompt_id", "rank", "level", "score", "model_version", "preannotated")
    row = {name: getattr(region, name) for name in same} | {
        "region": region.id,
        "width": region.mask.shape[1],
        "height": region.mask.shape[0],
        "labels": list(region.labels),
        "mask": encode_coco_rle(*crop_mask(region.mask), region.mask.shape)["counts"],
        "raw": region.rows and json.dumps(list(region.rows)),
    }
    row["outcome"], row["iou_with_offer"] = judge(region, suggested[0] if suggested else None)
    if suggested is not None:
        suggestion, next_prompt = suggested
        if region.mask.shape == suggestion.size:  # another size is compared with the photo's, once that is there
            row["image_sha256"], row["raw"] = suggestion.image_sha256, None
        row["seconds"] = _seconds_until(updated_at, suggestion.created_at, next_prompt)
        clicks = [(x, y) for x, y, positive in suggestion.clicks if positive]
        if clicks and region.suggested:
            row["click_x"], row["click_y"] = clicks[-1]
    return row


def fitted_row(store: Store, stored: Row[Any], config: LabelConfig, photo: Size) -> dict[str, Any]:
    """What changes in the row of a region now that the size of its photo is known, (H, W).

    Outlines are laid over the photo as it is; a mask of another size cannot be used.
    """
    key = ProjectKey(stored.origin, stored.project)
    if stored.raw is None:
        if (stored.height, stored.width) == photo or stored.problem is not None:
            return {}
        drawn, there = (f"{width}x{height}" for height, width in ((stored.height, stored.width), photo))
        problem = (
            f"drawn on a photo of {drawn} pixels, the photo has {there}: this mask cannot be laid over another size"
        )
        return {"problem": problem, "outcome": None, "mask": None}
    if (stored.height, stored.width) == photo and stored.problem is None:
        return {"raw": None}
    if stored.problem not in (None, WAITS_FOR_PHOTO):
        return {}
    region = read_region(stored.region, json.loads(stored.raw), config, photo)
    if region is None:
        return {}
    if isinstance(region, MalformedRegion):
        return {"problem": clean(region.problem)[:2000], "outcome": None, "mask": None}
    suggested = None
    if region.prompt_id is not None and not region.preannotated:
        suggested = _find_suggested(store, key, stored.task, region.prompt_id)
    return _usable_row(region, suggested, stored.updated_at) | {"problem": None, "raw": None}


def _find_suggested(store: Store, key: ProjectKey, task: int, prompt_id: str) -> _Suggested | None:
    """None where nothing was suggested under this prompt id on this very task."""
    mine = of_task(offers, key, task)
    with store.read() as connection:
        row = connection.execute(select(offers).where(mine, offers.c.prompt_id == prompt_id)).one_or_none()
        if row is None:
            return None
        later = select(func.min(offers.c.created_at)).where(mine, offers.c.created_at > row.created_at)
        return to_suggestion(row), connection.scalar(later)


def _seconds_until(end: datetime, answered: datetime, next_prompt: datetime | None) -> float:
    """Seconds from an answer to what came after the accept: the next prompt on the task, or else the submit."""
    until = min(end, next_prompt) if next_prompt else end
    return max(0.0, (until - answered).total_seconds())


def judge(region: AnnotatedRegion, suggestion: Suggestion | None) -> tuple[Outcome, float | None]:
    """(outcome, IoU) of a region; IoU None where it was drawn, or the suggestion is not known.

    A mask that differs from the suggested one is corrected only when the editor says that it was edited: outlines that
    merely passed through the editor may differ by a pixel. Where both mask and label changed, the mask counts.
    suggestion: what was suggested under the region's prompt id, where that is known.
    """
    if not region.suggested:
        return "drawn", None
    candidate = _candidate_of(region, suggestion)
    if candidate is None:
        return "corrected" if region.edited else "accepted", None
    suggested = decode_coco_rle(dict(candidate.mask))
    return judge_mask(region.mask, region.labels, suggested, candidate.label, edited=region.edited)


def judge_mask(
    mask: np.ndarray, labels: Sequence[str], suggested: np.ndarray, label: str | None, *, edited: bool
) -> tuple[Outcome, float]:
    """(outcome, IoU) of a mask, bool (H, W), with its labels, given the mask and the label that were suggested."""
    overlap = iou(mask, suggested) if mask.shape == suggested.shape else 0.0
    if edited and overlap < 1:
        return "corrected", overlap
    return "accepted" if (labels[0] if labels else None) == label else "relabelled", overlap


def _candidate_of(region: AnnotatedRegion, suggestion: Suggestion | None) -> SuggestedCandidate | None:
    """The candidate that became the region: by its id, which the editor keeps, else by its rank."""
    candidates = suggestion.candidates if suggestion else ()
    by_id = (each for each in candidates if each.region == region.id)
    by_rank = (each for each in candidates if each.rank == region.rank)
    return next(by_id, next(by_rank, None))
