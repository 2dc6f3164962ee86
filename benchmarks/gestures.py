"""Gestures and waiting for one accepted, labelled mask in Label Studio's own editor: as it was first, and as it is.

    python -m benchmarks.gestures

The demo as `make run` starts it, and Chromium without a window. The same places on the sample photos are clicked in
both ways, by the same model, until the thing that is meant is accepted with its label:

first   every click shows all candidates as brush masks, each with rows for level and note: click, accept disc of the
        one that is meant, cross; where that disc lies outside the canvas: cross, the tool that shows one at a time, a
        click for each until the one that is meant is there, check mark, and back to the first tool
now     the default config: click, a click for each further level, check mark

In both a wrong name costs two more: select the region, the key of its label. Waiting: seconds from the mouse button
until the suggestions are drawn, of all clicks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page

from backend.demo.project import DemoProject
from benchmarks.editor import DRAWN, ROWS, browsing
from benchmarks.machine import LABELING, SAMPLES, described
from semsam_model.masks.label_studio import region_mask
from tests.journeys.browser import Editor
from tests.journeys.demo_process import DemoProcess

MEANT = 0.6  #: least IoU of a suggestion's bounding box with that of the thing


@dataclass(frozen=True)
class Thing:
    """Somewhere to click, and what is meant there; places and box are shares of the photo's sides."""

    photo: str
    label: str
    at: tuple[float, float]
    box: tuple[float, float, float, float]


THINGS = (
    Thing("astronaut", "person", (0.35, 0.70), (0.0, 0.03, 0.95, 1.0)),
    Thing("astronaut", "person", (0.44, 0.22), (0.33, 0.12, 0.54, 0.37)),  # the face
    Thing("cat", "cat", (0.45, 0.55), (0.0, 0.0, 0.88, 1.0)),
    Thing("coffee", "cup", (0.47, 0.36), (0.27, 0.02, 0.70, 0.72)),
    Thing("coffee", "spoon", (0.62, 0.74), (0.54, 0.60, 0.69, 0.82)),
    Thing("coffee", "saucer", (0.30, 0.72), (0.10, 0.12, 0.83, 0.98)),
    Thing("rocket", "rocket", (0.50, 0.50), (0.48, 0.29, 0.53, 0.97)),
)


@dataclass
class Spent:
    """On one thing."""

    gestures: int = 0
    waited: float = 0.0  #: seconds
    how: str = "accepted"


def first_config() -> str:
    """The default one with brush masks, three rows each."""
    return LABELING.read_text().replace("PolygonLabels", "BrushLabels").replace("</View>", f"{ROWS}</View>")


def fits(row: dict[str, Any], thing: Thing) -> bool:
    mask = region_mask(row)
    if mask is None or not mask.any():
        return False
    (top, bottom), (left, right) = ((places.min(), places.max() + 1) for places in np.nonzero(mask))
    height, width = mask.shape
    own, box = (left / width, top / height, right / width, bottom / height), thing.box
    sides = [min(own[i + 2], box[i + 2]) - max(own[i], box[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (own, box))
    return bool(shared / (areas - shared) >= MEANT)


class Annotator:
    """Does what is said of each way at the top, and counts."""

    def __init__(self, page: Page, editor: Editor) -> None:
        self._page = page
        self._editor = editor

    def click(self, thing: Thing, turn: int, spent: Spent) -> list[dict[str, Any]]:
        """A click beside those before it, with Ctrl, which asks on top of what is accepted too. The regions."""
        at = thing.at[0] + 0.004 * (turn % 3), thing.at[1] + 0.004 * (turn // 3)
        self._editor.point(at)
        with self._page.expect_response(lambda response: "/interactive-annotating" in response.url) as caught:
            self._page.keyboard.down("Control")
            self._page.mouse.down()
            self._page.mouse.up()
            self._page.keyboard.up("Control")
        _, drawn = self._page.wait_for_function(DRAWN).json_value()
        spent.gestures += 1
        spent.waited += drawn / 1000
        rows = caught.value.json()["data"]["result"]
        return [row for row in rows if row["type"] in ("brushlabels", "polygonlabels")]

    def until_meant(self, thing: Thing, spent: Spent) -> dict[str, Any] | None:
        """One suggestion at a time, at most six; accepted with the check mark, or rejected with the cross."""
        for turn in range(6):
            (shown,) = self.click(thing, turn, spent)
            if fits(shown, thing):
                self._editor.accept_all()
                spent.gestures += 1
                return shown
        self._editor.reject_all()
        spent.gestures += 1
        return None

    def first(self, thing: Thing) -> Spent:
        spent = Spent()
        self._editor.choose("click_all")
        offered = [row for row in self.click(thing, 0, spent) if fits(row, thing)]
        within_reach = [row for row in offered if self._editor.can_accept_with_the_mouse(row["id"])]
        accepted: dict[str, Any] | None = None
        if within_reach:
            accepted = within_reach[-1]
            self._editor.accept_with_the_mouse(accepted["id"])
            self._editor.reject_all()
            spent.gestures += 2
        else:
            self._editor.reject_all()
            self._editor.choose("click")
            spent.gestures += 3  # the cross, the other tool, the first one again
            accepted = self.until_meant(thing, spent)
            spent.how = "disc outside the canvas" if offered else spent.how
        return self._named(thing, accepted, spent)

    def now(self, thing: Thing) -> Spent:
        spent = Spent()
        self._editor.press("m")
        return self._named(thing, self.until_meant(thing, spent), spent)

    def _named(self, thing: Thing, accepted: dict[str, Any] | None, spent: Spent) -> Spent:
        if accepted is None:
            spent.how = "never offered"
        elif accepted["value"][accepted["type"]] != [thing.label]:
            spent.gestures += 2
            spent.how += ", name put right"
        return spent


def measured(page: Page, editor: Editor, made: DemoProject, photos: Sequence[Path], way: str) -> list[Spent]:
    annotator, found = Annotator(page, editor), []
    for photo, task in zip(photos, made.tasks, strict=True):
        editor.open(made.id, task)
        editor.switch_on_auto_annotation()
        found += [getattr(annotator, way)(thing) for thing in THINGS if thing.photo == photo.stem]
    return found


def main() -> None:
    photos = sorted(SAMPLES.glob("*.jpg"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        demo = DemoProcess(folder / "data")
        stack.callback(demo.stop)
        demo.wait_until_ready()
        page = stack.enter_context(browsing(demo))
        editor = Editor(page, demo.url, folder)

        def clicked(title: str, config: str, way: str) -> list[Spent]:
            made = demo.api.make(title, config, photos, demo.backend_url, demo.credentials.webhook_secret)
            return measured(page, editor, made, photos, way)

        clicked("embeddings", LABELING.read_text(), "now")  # both ways click on warm photos
        ways = {"first": clicked("first", first_config(), "first"), "now": clicked("now", LABELING.read_text(), "now")}
        print("| photo | thing | first: gestures / waiting, s | now |\n|---|---|---|---|")
        for thing, *both in zip(THINGS, ways["first"], ways["now"], strict=True):
            cells = (f"{spent.gestures} / {spent.waited:.1f} ({spent.how})" for spent in both)
            print(f"| {thing.photo} | {thing.label} |", *(f"{cell} |" for cell in cells))
        sums = (f"{sum(s.gestures for s in all_)} / {sum(s.waited for s in all_):.1f}" for all_ in ways.values())
        print("| all | |", *(f"{each} |" for each in sums))
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
