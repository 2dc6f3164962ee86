"""The prompts of an interactive request -> what to ask the model, in pixels of the photo, and how to answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.requests import KeypointRow, PromptRow, RectangleRow, TextRow
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import to_percent, to_pixels
from semsam_model.types import Box, Candidate, Click, Prompt

#: Clicks of the cycle tool this close, as a share of the photo's longer side, ask for the next candidate.
SAME_SPOT = 0.02

Mode = Literal["all", "cycle"]


@dataclass(frozen=True)
class Interaction:
    """What the annotator asks, in photo pixels.

    mode "all": the answer holds every candidate. mode "cycle": it holds one: first the best, then level by level
    towards the parts, after the smallest the largest; `cycle_index` counts from 0.
    `prompt` is None when there is nothing to point at (no rows, negative points only).
    """

    mode: Mode
    prompt: Prompt | None
    cycle_index: int
    text: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()  #: prompts not used, in words for the log

    def suggested(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates that the answer holds, best first."""
        if self.mode == "all" or not candidates:
            return candidates
        by_level = sorted(candidates, key=lambda c: (c.level, -c.area))
        best = min(range(len(by_level)), key=lambda i: by_level[i].rank)
        return [by_level[(best + self.cycle_index) % len(by_level)]]


def check_size(declared: Size, photo: Size) -> None:
    """Raises BadRequest when the (H, W) that the editor sent is not that of the photo as opened and turned by EXIF."""
    if declared != photo:
        turned = " (exchanged: one side turns the photo by its EXIF orientation, the other does not)"
        raise BadRequest(
            f"original_width x original_height: expected the photo's {photo[1]} x {photo[0]} pixels, Label Studio sent "
            f"{declared[1]} x {declared[0]}{turned if declared == photo[::-1] else ''}; masks would not fit"
        )


def parse_interaction(rows: Sequence[PromptRow], config: LabelConfig, photo: Size) -> Interaction:
    """Prompts of one interactive request -> what to ask the model and how to answer.

    `photo` is the (H, W) of the photo as opened; what the rows say about its size must agree.

    - Cycle when the newest prompt's control has "cycle" in its name, or when the answer is polygons: the editor cannot
      accept one polygon of several. Otherwise all.
    - Cycle needs no memory: its index is the number of positive clicks by the newest one's control within 2 % of it (of
      the photo's longer side), less one; of these the model gets the first, so that every round asks the same. Other
      clicks, and negative ones, refine. Boxes drawn again over the same place count likewise.
    - A point outside the photo is moved to its border. Equal points count once, the later sign wins. A turned rectangle
      is its bounding box; one under a pixel wide or high is taken for a click at its centre.

    Raises BadRequest when rows disagree on the size, or with `photo`.
    """
    declared = {row.size for row in rows if row.size}
    if len(declared) > 1:
        raise BadRequest(f"original_width, original_height: expected one size in all prompts, got {sorted(declared)}")
    for size in declared:
        check_size(size, photo)
    text = tuple(line for row in rows if isinstance(row, TextRow) for line in row.texts)
    pointing = [row for row in rows if not isinstance(row, TextRow)]
    mode = _mode(pointing, config)
    if not pointing:
        return Interaction(mode, None, 0, text)
    marks = [(_mark(row, photo), row.control) for row in pointing]
    ignored = tuple(f"rectangle of {control!r} lies outside the photo" for mark, control in marks if mark is None)
    clicks = [(mark, control) for mark, control in marks if isinstance(mark, Click)]
    boxes = [mark for mark, _ in marks if isinstance(mark, Box)]
    index = 0
    if mode == "cycle":
        reach = SAME_SPOT * max(photo)
        if isinstance(marks[-1][0], Box) or not any(click.positive for click, _ in clicks):
            boxes, index = _first_box_there(boxes, reach)
        else:
            clicks, index = _first_click_there(clicks, reach)
    distinct = {(click.x, click.y): click for click, _ in clicks}.values()
    if not boxes and not any(click.positive for click in distinct):
        return Interaction(mode, None, 0, text, (*ignored, "no positive point and no box: nothing to look for"))
    return Interaction(mode, Prompt(tuple(distinct), tuple(dict.fromkeys(boxes))), index, text, ignored)


def _mode(pointing: Sequence[KeypointRow | RectangleRow], config: LabelConfig) -> Mode:
    one_only = config.answer is not None and config.answer.tag == "polygonlabels"
    return "cycle" if one_only or (pointing and "cycle" in pointing[-1].control.lower()) else "all"


def _first_click_there(clicks: list[tuple[Click, str]], reach: float) -> tuple[list[tuple[Click, str]], int]:
    """Leaves, of the positive clicks within `reach` of the newest positive one, only the first.

    Also how many of them the newest one's control made, less one. Each click comes with the name of its control.
    """
    newest, control = next(pair for pair in reversed(clicks) if pair[0].positive)
    near = [click.positive and math.hypot(click.x - newest.x, click.y - newest.y) <= reach for click, _ in clicks]
    first = near.index(True)
    index = sum(close and own == control for close, (_, own) in zip(near, clicks, strict=True)) - 1
    return [pair for k, pair in enumerate(clicks) if not near[k] or k == first], index


def _first_box_there(boxes: list[Box], reach: float) -> tuple[list[Box], int]:
    """Leaves, of the boxes whose sides lie within `reach` of the newest one's, only the first.

    Also how many of them there are, less one.
    """
    if not boxes:
        return boxes, 0
    newest = boxes[-1]
    near = [max(abs(a - b) for a, b in zip(astuple(box), astuple(newest), strict=True)) <= reach for box in boxes]
    return [box for k, box in enumerate(boxes) if not near[k] or k == near.index(True)], sum(near) - 1


def _mark(row: KeypointRow | RectangleRow, size: Size) -> Click | Box | None:
    """A prompt in pixels; None for a rectangle that lies outside the photo."""
    height, width = size
    if isinstance(row, KeypointRow):
        return _click(row.value.x, row.value.y, size, row.is_positive)
    corners = row.value.corners(size)
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
