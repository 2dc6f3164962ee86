"""The answer to a prompt -> a `Suggestion`, and into the store. No answer waits for the encoding of its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from backend.label_studio.fields import clean
from backend.records import ProjectKey, SuggestedCandidate, Suggestion
from backend.store.statements import insert_if_new
from backend.store.tables import offers
from backend.store.totals import changing
from semsam_model.masks.codecs import encode_coco_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.masks.label_studio import region_mask, row_labels
from semsam_model.types import Candidate, Prompt

#: Types of regions that carry an outline or a box in place of the candidate's mask.
_OUTLINES = ("polygonlabels", "rectanglelabels", "polygon", "rectangle")


@dataclass(frozen=True, eq=False)
class PromptAnswer:
    """The answer to one prompt as the service gave it, to be stored as a `Suggestion`."""

    key: ProjectKey
    task: int
    image_sha256: str
    size: tuple[int, int]  #: (H, W)
    prompt: Prompt | None
    text: str | None
    candidates: Sequence[Candidate]
    prediction: Mapping[str, Any]
    milliseconds: float
    at: datetime

    def suggestion(self) -> Suggestion | None:
        """As it is to be stored; None where the answer has no candidates."""
        by_rank = {candidate.rank: candidate for candidate in self.candidates}
        rows = [row for row in self.prediction["result"] if "meta" in row]
        if not rows:
            return None
        prompt = self.prompt
        labels = {row["id"]: label for row in self.prediction["result"] for label in row_labels(row)}
        return Suggestion(
            prompt_id=rows[0]["meta"]["prompt_id"],
            key=self.key,
            task=self.task,
            image_sha256=self.image_sha256,
            size=self.size,
            clicks=tuple((click.x, click.y, click.positive) for click in prompt.clicks) if prompt else (),
            boxes=tuple((box.x0, box.y0, box.x1, box.y1) for box in prompt.boxes) if prompt else (),
            text=self.text,
            candidates=tuple(_candidate(row, by_rank[row["meta"]["candidate"]], labels.get(row["id"])) for row in rows),
            model_version=self.prediction["model_version"],
            milliseconds=self.milliseconds,
            created_at=self.at,
        )


def _candidate(row: Mapping[str, Any], candidate: Candidate, label: str | None) -> SuggestedCandidate:
    crop, bbox = candidate.crop, candidate.bbox
    if row["type"] in _OUTLINES and (drawn := region_mask(dict(row))) is not None and drawn.any():
        crop, bbox = crop_mask(drawn)
    return SuggestedCandidate(
        region=row["id"],
        rank=candidate.rank,
        level=candidate.level,
        score=row["score"],
        mask=encode_coco_rle(crop, bbox, candidate.size),
        label=label,
    )


def save_suggestions(connection: Connection, new: Sequence[Suggestion]) -> None:
    """Write suggestions; one that is stored already stays as it is."""
    for key in sorted({each.key for each in new}):
        mine = [each for each in new if each.key == key]
        with changing(connection, key, {each.task for each in mine}, offers_only=True):
            connection.execute(insert_if_new(connection, offers), [_row(each) for each in mine])


def _row(suggestion: Suggestion) -> dict[str, Any]:
    same = ("prompt_id", "task", "image_sha256", "model_version", "milliseconds", "created_at")
    height, width = suggestion.size
    return {
        **vars(suggestion.key),
        **{name: getattr(suggestion, name) for name in same},
        "height": height,
        "width": width,
        "prompt": {
            "clicks": suggestion.clicks,
            "boxes": suggestion.boxes,
            "text": clean(suggestion.text) if suggestion.text else None,
        },
        "candidates": [
            vars(each)
            | {
                "mask": each.mask["counts"],
                "label": None if each.label is None else clean(each.label),
            }
            for each in suggestion.candidates
        ],
    }
