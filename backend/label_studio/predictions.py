"""Label Studio's JSON <-> values of our own. Percent becomes pixels and pixels become percent here and nowhere else,
but for regions, which training reads too: `semsam_model.masks.label_studio`.

`requests` reads the bodies; here prompts become pixels, candidates become predictions, regions become masks.
Percent run over the EXIF-oriented photo. `image_rotation`, the editor's turned view, changes neither percent nor
pixels.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.requests import PromptRow, Size
from semsam_model.errors import DataError
from semsam_model.masks import codecs, polygons
from semsam_model.masks import label_studio as label_studio_masks
from semsam_model.masks.label_studio import rectangle_corners
from semsam_model.types import LEVELS, Box, Candidate, Click, Prompt

#: Clicks of the cycle tool this close, as a share of the photo's longer side, ask for the next candidate.
SAME_SPOT = 0.02
NOTED_NAMES = 3  #: names with scores in a region's note


def to_pixels(percent: float, side: int) -> float:
    """Percent of a side -> continuous pixels, clipped to the photo: 0..side."""
    return min(max(percent / 100.0 * side, 0.0), float(side))


def to_percent(pixels: float, side: int) -> float:
    """Continuous pixels -> percent of a side."""
    return pixels / side * 100.0


def check_size(declared: Size, photo: Size) -> None:
    """Raises BadRequest when the (H, W) that the editor sent is not that of the photo as opened and turned by EXIF."""
    if declared != photo:
        turned = " (exchanged: one side turns the photo by its EXIF orientation, the other does not)"
        raise BadRequest(
            f"original_width x original_height: expected the photo's {photo[1]} x {photo[0]} pixels, Label Studio sent "
            f"{declared[1]} x {declared[0]}{turned if declared == photo[::-1] else ''}; masks would not fit"
        )


@dataclass(frozen=True)
class Interaction:
    """What the annotator asks, in photo pixels.

    mode "all": offer every candidate. mode "cycle": offer one: first the best, then level by level towards the parts,
    after the smallest the largest; `cycle_index` counts from 0.
    `prompt` is None when there is nothing to point at (no rows, negative points only).
    """

    mode: Literal["all", "cycle"]
    prompt: Prompt | None
    cycle_index: int
    original_size: Size | None  #: (H, W)
    text: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  #: prompts not used, in words for the log

    def offered(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates, best first, that the answer should hold."""
        if self.mode == "all" or not candidates:
            return candidates
        by_level = sorted(candidates, key=lambda c: (c.level, -c.area))
        start = next(i for i, c in enumerate(by_level) if c.rank == min(c.rank for c in candidates))
        return [by_level[(start + self.cycle_index) % len(by_level)]]


def parse_interaction(rows: Sequence[PromptRow], config: LabelConfig, photo: Size | None = None) -> Interaction:
    """Prompts of one interactive request -> what to ask the model and how to answer.

    `photo` is the (H, W) of the photo as opened; needed when no row tells it, compared with the rows otherwise.

    - Cycle when the newest prompt's control has "cycle" in its name, or when the answer is polygons: the editor cannot
      accept one polygon of several. Otherwise all.
    - Cycle needs no memory: its index is the number of positive clicks by the newest one's control within 2 % of it (of
      the photo's longer side), less one; of these the model gets the first, so that every round asks the same. Other
      clicks, and negative ones, refine. Boxes drawn again over the same place count likewise.
    - A point outside the photo is moved to its border. Equal points count once, the later sign wins. A turned rectangle
      is its bounding box; one under a pixel wide or high is taken for a click at its centre.

    Raises BadRequest when rows disagree on the size, with `photo`, or when nobody knows it.
    """
    declared = {row.size for row in rows if row.size}
    if len(declared) > 1:
        raise BadRequest(f"original_width, original_height: expected one size in all prompts, got {sorted(declared)}")
    size = next(iter(declared), None)
    if size and photo:
        check_size(size, photo)
    size = size or photo
    text = tuple(line for row in rows if row.kind == "text" for line in row.text)
    pointing = [row for row in rows if row.kind != "text"]
    one_only = config.answer is not None and config.answer.tag == "polygonlabels"
    cycle = one_only or bool(pointing and "cycle" in pointing[-1].control.lower())
    mode: Literal["all", "cycle"] = "cycle" if cycle else "all"
    if not pointing:
        return Interaction(mode, None, 0, size, text)
    if size is None:
        raise BadRequest("original_width, original_height: missing, and the photo's size is not known")

    marks = [(_mark(row, size), row.control) for row in pointing]
    ignored = tuple(f"rectangle of {control!r} lies outside the photo" for mark, control in marks if mark is None)
    clicks = [(mark, control) for mark, control in marks if isinstance(mark, Click)]
    boxes = [mark for mark, _ in marks if isinstance(mark, Box)]
    index = 0
    if cycle:
        by_box = not any(click.positive for click, _ in clicks) or isinstance(marks[-1][0], Box)
        reach = SAME_SPOT * max(size)
        boxes, index = _collapse_boxes(boxes, reach) if by_box else (boxes, 0)
        clicks, index = (clicks, index) if by_box else _collapse_clicks(clicks, reach)
    distinct = {(click.x, click.y): click for click, _ in clicks}.values()
    if not boxes and not any(click.positive for click in distinct):
        return Interaction(mode, None, 0, size, text, (*ignored, "no positive point and no box: nothing to look for"))
    return Interaction(mode, Prompt(tuple(distinct), tuple(dict.fromkeys(boxes))), index, size, text, ignored)


def _collapse_clicks(clicks: list[tuple[Click, str]], reach: float) -> tuple[list[tuple[Click, str]], int]:
    """Positive clicks round the newest positive one -> their first alone, and how many its control made, less one."""
    newest, control = next(pair for pair in reversed(clicks) if pair[0].positive)
    near = [click.positive and math.hypot(click.x - newest.x, click.y - newest.y) <= reach for click, _ in clicks]
    first = near.index(True)
    index = sum(close and own == control for close, (_, own) in zip(near, clicks, strict=True)) - 1
    return [pair for k, pair in enumerate(clicks) if not near[k] or k == first], index


def _collapse_boxes(boxes: list[Box], reach: float) -> tuple[list[Box], int]:
    """Boxes with all sides near the newest one's -> their first alone, and how many there are, less one."""
    if not boxes:
        return boxes, 0
    newest = boxes[-1]
    near = [max(abs(a - b) for a, b in zip(_sides(box), _sides(newest), strict=True)) <= reach for box in boxes]
    return [box for k, box in enumerate(boxes) if not near[k] or k == near.index(True)], sum(near) - 1


def _sides(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


def _mark(row: PromptRow, size: Size) -> Click | Box | None:
    """A prompt row in pixels; None for a rectangle that lies outside the photo."""
    height, width = size
    if row.kind == "keypoint":
        return _click(row.x, row.y, size, row.positive)
    corners = rectangle_corners(row.x, row.y, row.width, row.height, row.rotation, size)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:
        return _click(to_percent((x0 + x1) / 2, width), to_percent((y0 + y1) / 2, height), size, True)
    x0, x1 = max(x0, 0.0), min(x1, float(width))
    y0, y1 = max(y0, 0.0), min(y1, float(height))
    return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _click(x: float, y: float, size: Size, positive: bool) -> Click:
    """Percent -> a click on the photo: at 100 % it is moved half a pixel in, so that it lies on the last pixel."""
    height, width = size
    return Click(min(to_pixels(x, width), width - 0.5), min(to_pixels(y, height), height - 0.5), positive)


# ------------------------------------------------------------------------------------------------------------ answering


def empty_prediction(model_version: str) -> dict[str, Any]:
    """The answer for a task when there is nothing to say; an entry a task is owed even then."""
    return {"model_version": model_version, "score": 0.0, "result": []}


def _new_id() -> str:
    return str(uuid.uuid4())


def default_label(candidate: Candidate, config: LabelConfig) -> str | None:
    """The candidate's own label when the config has it; else the rule: "object" without parent, "part" for the others.

    See `LabelConfig.label_for`.
    """
    if candidate.label is not None and candidate.label in {label.value for label in config.labels}:
        return candidate.label
    return config.label_for(part=candidate.parent is not None)


def build_prediction(
    candidates: Sequence[Candidate],
    *,
    config: LabelConfig,
    prompt_id: str,
    model_version: str,
    labels: Sequence[str | None] | None = None,
    best_on_top: bool = True,
    max_vertices: int = polygons.DEFAULT_MAX_VERTICES,
    new_id: Callable[[], str] = _new_id,
    preannotated: bool = False,
) -> dict[str, Any]:
    """One prediction for one task, in the form of the config's answer control.

    Candidates may come in any order; they leave large to small, but the best (lowest rank) last: there it lies on top
    and gets the click where the editor puts several accept buttons on one spot. best_on_top False: for regions that
    are accepted together, where a part would be hidden under its whole. Empty masks are left out. `labels` (one
    for each candidate, None for no label) replaces `default_label`. A candidate's rows share one id: the geometry, and,
    where the config has the controls, its note (see `_note`) and level without geometry. `parentID` points to the
    next larger candidate if that one is in this answer. The prediction's score is the best candidate's. preannotated:
    it answers no prompt, which its regions say, for when they come back.
    """
    chosen = labels if labels is not None else [default_label(candidate, config) for candidate in candidates]
    offered = [pair for pair in zip(candidates, chosen, strict=True) if pair[0].area]
    if config.answer is None or config.image_name is None or not offered:
        return empty_prediction(model_version)
    best = min(offered, key=lambda pair: pair[0].rank)[0]
    offered.sort(key=lambda pair: (best_on_top and pair[0] is best, -pair[0].area, pair[0].rank))
    ids = {candidate.rank: new_id() for candidate, _ in offered}

    rows: list[dict[str, Any]] = []
    for candidate, label in offered:
        height, width = candidate.size
        note = _note(candidate, label)
        shared = {
            "id": ids[candidate.rank],
            "to_name": config.image_name,
            "origin": "prediction",
            "score": round(float(candidate.score), 4),
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        tag = config.answer.tag
        geometry = shared | {
            "type": tag,
            "from_name": config.answer.name,
            "value": _geometry(candidate, tag, max_vertices) | ({tag: [label]} if label is not None else {}),
            "meta": {
                "text": [note],
                "prompt_id": prompt_id,
                "candidate": candidate.rank,
                "level": candidate.level,
                "model_version": model_version,
            }
            | ({"preannotated": True} if preannotated else {}),
        }
        if candidate.parent in ids and candidate.parent != candidate.rank:
            geometry["parentID"] = ids[candidate.parent]
        rows.append(geometry)
        if config.note:
            rows.append(shared | {"type": "textarea", "from_name": config.note, "value": {"text": [note]}})
        if config.level and candidate.level in config.level_values:
            choices = [config.level_values[candidate.level]]
            rows.append(shared | {"type": "choices", "from_name": config.level, "value": {"choices": choices}})
    return {"model_version": model_version, "score": round(float(best.score), 4), "result": rows}


def _note(candidate: Candidate, label: str | None) -> str:
    """What the editor shows beside the mask: "L3/6 wheel 0.81 | door 0.10 | hood 0.04", best names with scores.

    Behind a question mark where no name is sure enough; "L3/6 part 0.81", with the mask's score, where there are none.
    """
    names = [f"{name} {score:.2f}" for name, score in candidate.names[:NOTED_NAMES]]
    if names:
        said = ("" if candidate.label else "? ") + " | ".join(names)
    else:
        said = " ".join(filter(None, (label, f"{candidate.score:.2f}")))
    return f"L{candidate.level}/{len(LEVELS)} {said}"


def _geometry(candidate: Candidate, tag: str, max_vertices: int) -> dict[str, Any]:
    crop, bbox, size = candidate.crop, candidate.bbox, candidate.size
    if tag == "brushlabels":
        return {"format": "rle", "rle": codecs.encode_brush_rle(crop, bbox, size)}
    if tag == "bitmasklabels":
        return {"imageDataURL": codecs.encode_bitmask(crop, bbox, size)}
    height, width = size
    if tag == "polygonlabels":
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


def region_mask(row: Any) -> np.ndarray | None:
    """A region of an annotation, as accepted, corrected or drawn -> bool (H, W); None for a row without geometry.

    Brush, bitmask, polygon, rectangle, with or without labels. Raises BadRequest for a geometry that cannot be read.
    """
    try:
        return label_studio_masks.region_mask(row)
    except DataError as exc:
        raise BadRequest(str(exc)) from exc
