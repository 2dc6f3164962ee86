"""The pictures of the documents, taken in a real Label Studio: `cp out/pictures/* docs/images/` puts them in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.demo.project import DemoProject
from tests.journeys.browser import Editor
from tests.journeys.camera import Camera
from tests.journeys.test_click_in_label_studio import COFFEE, MakeProject, mask_of, start
from tests.paths import ROOT, SAMPLES

pytestmark = pytest.mark.browser

PICTURES = ROOT / "out" / "pictures"
IN_THE_CUP, BESIDE = (0.55, 0.40), (0.556, 0.40)
ON_THE_SPOON, ON_THE_SUIT, ON_THE_FACE = (0.62, 0.74), (0.25, 0.75), (0.44, 0.22)


@pytest.fixture
def camera(editor: Editor) -> Camera:
    return Camera(editor.page, PICTURES)


def check(path: Path, limit: float = 150e3) -> None:
    assert path.stat().st_size < limit, "a document is read on slow lines too"


def begin(editor: Editor, project: DemoProject, tool: str, camera: Camera, task: int = 0) -> None:
    start(editor, project, tool, task)
    camera.fit()
    camera.draw_mouse()


def is_the_cup(row: dict[str, Any]) -> bool:
    """Rim and side, and no saucer."""
    mask = mask_of(row)
    height, width = mask.shape
    rim, side, saucer = (mask[int(y * height), int(x * width)] for x, y in ((0.40, 0.08), (0.33, 0.45), (0.20, 0.60)))
    return bool(rim and side and not saucer)


def further_clicks(editor: Editor) -> Iterator[None]:
    """Beside the dot, until the whole cup is shown."""
    for _ in range(6):
        (row,) = editor.click(BESIDE, "Control").regions
        yield
        if is_the_cup(row):
            return
    raise AssertionError("no outline of the whole cup is among those shown")


def test_from_a_click_to_an_accepted_outline(editor: Editor, project: MakeProject, camera: Camera) -> None:
    begin(editor, project([COFFEE]), "click", camera)
    editor.point((0.75, 0.5))
    editor.press("m")
    camera.frame(900)
    for place in (ON_THE_SPOON, IN_THE_CUP):
        editor.point(place)
        camera.frame(700)
        editor.click(place)
        camera.frame(1500)
        if place == IN_THE_CUP:
            for _ in further_clicks(editor):
                camera.frame(1500)
        editor.point_at_accept()
        camera.frame(800)
        editor.accept_all()
        camera.frame(1200)
    assert len(editor.regions()) == 2
    check(camera.animation("click_to_accept"), limit=2e6)


def test_a_click_the_next_level_a_part_a_dot_a_box(editor: Editor, project: MakeProject, camera: Camera) -> None:
    made = project([SAMPLES / "astronaut.jpg", COFFEE])
    begin(editor, made, "click", camera)
    editor.click(ON_THE_FACE)
    editor.click(ON_THE_SUIT, "Alt")
    check(camera.picture("guide_not_this"))
    editor.reject_all()

    begin(editor, made, "box", camera, task=1)
    editor.drag((0.53, 0.60), (0.70, 0.88))
    check(camera.picture("guide_box"))
    editor.reject_all()
    editor.press("m")
    editor.click(IN_THE_CUP)
    check(camera.picture("guide_first"))
    for _ in further_clicks(editor):
        pass
    check(camera.picture("guide_next_level"))
    editor.accept_all()
    editor.click(IN_THE_CUP, "Control")
    check(camera.picture("guide_part"))
    editor.accept_all()
    editor.click(ON_THE_SPOON)
    editor.select_last()
    check(camera.picture("guide_dot", panel=True))


def test_all_candidates_at_once(editor: Editor, project: MakeProject, camera: Camera) -> None:
    begin(editor, project([COFFEE]), "click_all", camera)
    editor.click(IN_THE_CUP)
    check(camera.picture("guide_all"))


def test_a_label_before_the_click(editor: Editor, project: MakeProject, camera: Camera) -> None:
    begin(editor, project([COFFEE], "labeling_label_first.xml"), "click", camera)
    editor.press("3")
    editor.click(IN_THE_CUP)
    check(camera.picture("guide_label_first"))
