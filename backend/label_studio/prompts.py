"""The prompts of an interactive request -> what to ask the model, in pixels of the photo, and how to answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.prompt_rows import KeypointRow, PromptRow, RectangleRow, TextRow
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import to_percent, to_pixels
from semsam_model.types import Box, Candidate, Click, Prompt

#: Clicks of one tool this close, as a share of the photo's longer side, ask for the next candidate.
SAME_SPOT = 0.02
#: In the name of a control whose first answer holds every candidate.
_ALL = re.compile(r"(?<![a-z])all(?![a-z])")

Mode = Literal["one", "all"]


@dataclass(frozen=True)
class Interaction:
    """What the annotator asks, in photo pixels.

    mode "one": the answer holds one candidate: the best, then the next best, which is a level above or below, after
    the last the best again; `turn` counts from 0. mode "all": the answer of turn 0 holds every candidate, the later
    ones those of "one" in turn, so that a mask can be accepted whose own button lies outside the photo.
    `prompt` is None when there is nothing to point at (no rows, negative points only).
    """

    mode: Mode
    prompt: Prompt | None
    turn: int
    text: tuple[str, ...] = ()
    label: str | None = None  #: of the labeling config, as results carry it: chosen before the newest prompt
    ignored: tuple[str, ...] = ()  #: prompts not used, in words for the log

    def suggested(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """The candidates that the answer holds, best first."""
        turn = self.turn - (self.mode == "all")
        if turn < 0 or not candidates:
            return candidates
        # going down the levels, needless small parts would often come before the whole that is meant
        return [sorted(candidates, key=lambda c: c.rank)[turn % len(candidates)]]


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

    - All for a text, and when the newest prompt's control has the word "all" in its name. Otherwise one.
    - Turns need no memory: the turn is the number of positive clicks by the newest one's control within 2 % of it (of
      the photo's longer side), less one; of these the model gets the first, so that every turn asks the same. Other
      clicks, and negative ones, refine. Boxes drawn again over the same place count likewise.
    - The label is the one that was active when the newest prompt was made, if the answer's control has it.
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
    if not pointing:
        return Interaction("all", None, 0, text)
    mode: Mode = "all" if _ALL.search(pointing[-1].control.lower()) else "one"
    marks = [(_mark(row, photo), row.control) for row in pointing]
    ignored = tuple(f"rectangle of {control!r} lies outside the photo" for mark, control in marks if mark is None)
    clicks = [(mark, control) for mark, control in marks if isinstance(mark, Click)]
    boxes = [mark for mark, _ in marks if isinstance(mark, Box)]
    reach = SAME_SPOT * max(photo)
    if isinstance(marks[-1][0], Box) or not any(click.positive for click, _ in clicks):
        boxes, turn = _first_box_there(boxes, reach)
    else:
        clicks, turn = _first_click_there(clicks, reach)
    distinct = {(click.x, click.y): click for click, _ in clicks}.values()
    if not boxes and not any(click.positive for click in distinct):
        ignored += ("no positive point and no box: nothing to look for",)
        return Interaction(mode, None, 0, text, ignored=ignored)
    label, unknown = _label(pointing[-1], config)
    return Interaction(mode, Prompt(tuple(distinct), tuple(dict.fromkeys(boxes))), turn, text, label, ignored + unknown)


def _label(row: KeypointRow | RectangleRow, config: LabelConfig) -> tuple[str | None, tuple[str, ...]]:
    """The config's label that was active when a prompt was made, and in words for the log why another one is not."""
    for name in row.labels:
        by_value = (label.value for label in config.labels if label.value == name)
        by_text = (label.value for label in config.labels if label.text == name)
        if (found := next(by_value, next(by_text, None))) is not None:
            return found, ()
    if not row.labels:
        return None, ()
    return None, (f"label {row.labels[0][:40]!r}: {config.answer} has no such label",)


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
