"""Candidates -> a prediction as Label Studio takes it: regions in the form of the project's answer control."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from backend.label_studio.label_config import LabelConfig
from semsam_model.masks import codecs, polygons
from semsam_model.masks.label_studio import to_percent
from semsam_model.types import Candidate

NOTED_NAMES = 3  #: names with scores in a region's note
LEAST_NOTED = 0.1  #: score of a name that is worth a place in the note beside the first


def empty_prediction(model_version: str) -> dict[str, Any]:
    """The answer for a task without regions; Label Studio wants an entry for every task."""
    return {"model_version": model_version, "score": 0.0, "result": []}


def default_label(candidate: Candidate, config: LabelConfig, *, part: bool | None = None) -> str | None:
    """The candidate's own label when the config has it; else its best name, behind a question mark in the note.

    Where there is no name, the rule: "object" without parent, "part" for the others, see `LabelConfig.label_for`.
    part: what the mask is known to be; then only names of labels that can be that are guessed. No region is left
    without a label where there are any: Label Studio's exports leave out regions without one, and a guess that says so
    is corrected with one key.
    """
    kinds = {label.value: label.kind for label in config.labels}
    if candidate.label in kinds:
        return candidate.label
    wanted = (None, "object", "part") if part is None else (None, "part" if part else "object")
    guess = next((name for name, _ in candidate.names if name in kinds and kinds[name] in wanted), None)
    return guess or config.label_for(part=candidate.parent is not None if part is None else part)


def build_prediction(
    candidates: Sequence[Candidate],
    *,
    config: LabelConfig,
    prompt_id: str,
    model_version: str,
    labels: Sequence[str | None] | None = None,
    best_on_top: bool = True,
    max_vertices: int = polygons.DEFAULT_MAX_VERTICES,
    new_id: Callable[[], object] = uuid.uuid4,
    preannotated: bool = False,
    page: int = 0,
) -> dict[str, Any]:
    """One prediction for one task, in the form of the config's answer control.

    Candidates may come in any order; they are written large to small, but the best (lowest rank) last: it lies on top
    and gets the click where the editor puts several accept buttons on one spot. best_on_top False: for regions that
    are accepted together, where a part would be hidden under its whole. Empty masks are left out. `labels` (one
    for each candidate, None for no label) replaces `default_label`. A candidate's rows share one id: the geometry, and,
    where the config has the controls, its note (see `_said`) and level without geometry. `parentID` points to the
    next larger candidate if that one is in this answer. The prediction's score is the best candidate's. preannotated:
    it answers no prompt; its regions carry that mark, and bring it back when they are accepted. page: that the photo is
    of a task with several.
    """
    chosen = labels if labels is not None else [default_label(candidate, config) for candidate in candidates]
    shown = [pair for pair in zip(candidates, chosen, strict=True) if pair[0].area]
    if config.answer is None or config.image_name is None or not shown:
        return empty_prediction(model_version)
    best = min(shown, key=lambda pair: pair[0].rank)[0]
    shown.sort(key=lambda pair: (best_on_top and pair[0] is best, -pair[0].area, pair[0].rank))
    ids = {candidate.rank: str(new_id()) for candidate, _ in shown}
    # What the editor keeps with each region and sends back when it is accepted.
    meta = {"prompt_id": prompt_id, "model_version": model_version} | ({"preannotated": True} if preannotated else {})
    rows = [
        row for candidate, label in shown for row in _region_rows(candidate, label, ids, meta, config, max_vertices)
    ]
    if config.pages:
        rows = [row | {"item_index": page} for row in rows]
    return {"model_version": model_version, "score": round(float(best.score), 4), "result": rows}


def _region_rows(
    candidate: Candidate,
    label: str | None,
    ids: dict[int, str],
    meta: dict[str, Any],
    config: LabelConfig,
    max_vertices: int,
) -> list[dict[str, Any]]:
    """The rows of one candidate: geometry, note, level. ids: of the regions of this prediction, by rank."""
    assert config.answer is not None  # else there is no row to write
    height, width = candidate.size
    tag, shape = config.answer.tag, config.answer.shape
    own_labels = {tag: [label]} if label is not None and config.labels_in is None else {}
    note, score = _said(candidate, label)
    shared = {
        "id": ids[candidate.rank],
        "to_name": config.image_name,
        "origin": "prediction",
        "score": round(score, 4),
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    about: dict[str, float] = {
        "candidate": candidate.rank,
        "level": candidate.level,
        "expected_iou": round(float(candidate.score), 4),
    }
    if candidate.concept_score is not None:
        about["concept_score"] = round(candidate.concept_score, 4)
    geometry = shared | {
        "type": tag,
        "from_name": config.answer.name,
        "value": _geometry(candidate, shape, max_vertices) | own_labels,
        "meta": {"text": [note]} | about | meta,
    }
    if candidate.parent in ids and candidate.parent != candidate.rank:
        geometry["parentID"] = ids[candidate.parent]
    rows = [geometry]
    if config.labels_in is not None and label is not None:
        rows.append(shared | {"type": "labels", "from_name": config.labels_in.name, "value": {"labels": [label]}})
    if config.note:
        rows.append(shared | {"type": "textarea", "from_name": config.note, "value": {"text": [note]}})
    if config.level and candidate.level in config.level_values:
        choices = [config.level_values[candidate.level]]
        rows.append(shared | {"type": "choices", "from_name": config.level, "value": {"choices": choices}})
    return rows


def _said(candidate: Candidate, label: str | None) -> tuple[str, float]:
    """What is read beside a mask, and the one score in it: "wheel 0.81", "wheel 0.62 | door 0.21", "? wheel 0.31".

    The score is that of the region's label (of the best name, where it is none of them), with the next best from
    LEAST_NOTED on, behind a question mark where none is sure enough. Where nothing was named, the score is the mask's.
    """
    if not candidate.names:
        return " ".join(filter(None, (label, f"{candidate.score:.2f}"))), float(candidate.score)
    first = next((named for named in candidate.names if named[0] == label), candidate.names[0])
    others = [named for named in candidate.names if named != first and named[1] >= LEAST_NOTED]
    said = " | ".join(f"{name} {score:.2f}" for name, score in [first, *others[: NOTED_NAMES - 1]])
    return ("" if candidate.label else "? ") + said, float(first[1])


def _geometry(candidate: Candidate, shape: str, max_vertices: int) -> dict[str, Any]:
    crop, bbox, size = candidate.crop, candidate.bbox, candidate.size
    if shape == "brush":
        return {"format": "rle", "rle": codecs.encode_brush_rle(crop, bbox, size)}
    if shape == "bitmask":
        return {"imageDataURL": codecs.encode_bitmask(crop, bbox, size)}
    height, width = size
    if shape == "polygon":
        points = polygons.encode_polygon(crop, bbox, max_vertices)
        return {"points": [[to_percent(x, width), to_percent(y, height)] for x, y in points.tolist()], "closed": True}
    x0, y0, x1, y1 = bbox
    return {
        "x": to_percent(x0, width),
        "y": to_percent(y0, height),
        "width": to_percent(x1 - x0, width),
        "height": to_percent(y1 - y0, height),
        "rotation": 0,
    }
