"""What an annotator does, in a real Label Studio and a real Chromium, and what is stored in the end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle
from PIL import Image

from backend.demo import DemoProject
from tests.journeys.browser import Answer, Editor
from tests.journeys.conftest import ROOT, Studio

pytestmark = pytest.mark.browser

COFFEE = ROOT / "samples" / "coffee.jpg"
IN_THE_CUP = (0.47, 0.36)
ON_THE_TABLE = (0.88, 0.12)

MakeProject = Callable[..., DemoProject]


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """bool (H, W) of a brush row, read by Label Studio's own decoder."""
    size = row["original_height"], row["original_width"]
    return np.reshape(decode_rle(row["value"]["rle"]), (*size, 4))[..., 3] > 127


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def start(editor: Editor, project: DemoProject, tool: str) -> None:
    editor.open(project.id, project.tasks[0])
    editor.switch_on_auto_annotation()
    editor.show_region_labels()
    editor.choose(tool)


def test_a_click_offers_distinct_masks_and_the_accepted_one_is_stored_as_it_was_offered(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    made = project([COFFEE])
    start(editor, made, "click_all")

    answer = editor.click(IN_THE_CUP)
    editor.screenshot("1-suggestions")
    assert editor.suggestions() == [row["id"] for row in answer.regions]
    masks = [mask_of(row) for row in answer.regions]
    assert len(masks) >= 2
    assert all(iou(a, b) < 0.95 for a, b in combinations(masks, 2))

    wanted = next(row for row in reversed(answer.regions) if editor.can_accept_with_the_mouse(row["id"]))
    editor.accept_with_the_mouse(wanted["id"])
    editor.screenshot("1-accepted")
    editor.reject_all()
    assert [region["id"] for region in editor.regions()] == [wanted["id"]]
    editor.submit()
    editor.screenshot("1-submitted")

    (annotation,) = studio.api.call("GET", f"/api/tasks/{made.tasks[0]}/annotations/")
    assert {row["id"] for row in annotation["result"]} == {wanted["id"]}
    stored = next(row for row in annotation["result"] if row["type"] == "brushlabels")
    for key in ("meta", "score", "origin", "original_width", "original_height"):
        assert stored[key] == wanted[key], key
    assert stored["value"]["brushlabels"] == wanted["value"]["brushlabels"]
    assert np.array_equal(mask_of(stored), mask_of(wanted))


def test_further_clicks_beside_the_first_show_one_level_after_the_other(editor: Editor, project: MakeProject) -> None:
    start(editor, project([COFFEE]), "click_cycle")
    answers = [editor.click((IN_THE_CUP[0] + step * 0.006, IN_THE_CUP[1])) for step in range(3)]
    editor.screenshot("2-cycle")
    masks = []
    for number, answer in enumerate(answers, 1):
        assert len(answer.prompts) == number
        (row,) = answer.regions
        masks.append(mask_of(row))
    assert all(iou(a, b) < 0.95 for a, b in pairwise(masks))


def test_an_alt_click_takes_its_place_out_of_every_mask(editor: Editor, project: MakeProject) -> None:
    start(editor, project([COFFEE]), "click_all")
    first = editor.click(IN_THE_CUP)
    largest = max((mask_of(row) for row in first.regions), key=np.sum)
    # somewhere inside the largest mask, well away from the first click
    rows, columns = np.nonzero(largest)
    height, width = largest.shape
    far = np.argmax((rows / height - IN_THE_CUP[1]) ** 2 + (columns / width - IN_THE_CUP[0]) ** 2)
    away = 0.8 * np.array([columns[far] / width, rows[far] / height]) + 0.2 * np.array(IN_THE_CUP)

    second = editor.click((float(away[0]), float(away[1])), "Alt")
    editor.screenshot("3-excluded")
    assert [prompt["is_positive"] for prompt in second.prompts] == [True, False]
    assert second.regions
    for row in second.regions:
        assert not mask_of(row)[int(away[1] * height), int(away[0] * width)]


def test_a_box_offers_masks_of_what_is_in_it(editor: Editor, project: MakeProject) -> None:
    start(editor, project([COFFEE]), "box")
    answer = editor.drag((0.27, 0.03), (0.70, 0.72))
    editor.screenshot("4-box")
    (prompt,) = answer.prompts
    assert prompt["type"] == "rectangle"
    assert answer.regions
    for row in answer.regions:
        rows, columns = np.nonzero(mask_of(row))
        assert 0.27 < columns.mean() / row["original_width"] < 0.70
        assert 0.03 < rows.mean() / row["original_height"] < 0.72


def test_polygons_are_accepted_with_the_check_mark_and_stored_as_offered(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    made = project([COFFEE], "labeling-polygon.xml")
    start(editor, made, "click_cycle")
    answer = editor.click(IN_THE_CUP)
    editor.screenshot("5-polygon")
    (offered,) = answer.regions
    editor.accept_all()
    editor.submit()
    (annotation,) = studio.api.call("GET", f"/api/tasks/{made.tasks[0]}/annotations/")
    (stored,) = [row for row in annotation["result"] if row["type"] == "polygonlabels"]
    assert stored["id"] == offered["id"]
    assert stored["meta"] == offered["meta"]
    assert np.allclose(stored["value"]["points"], offered["value"]["points"])


def test_a_photo_that_its_exif_turns_gets_the_masks_of_the_upright_one(
    editor: Editor, project: MakeProject, tmp_path: Path
) -> None:
    upright = Image.open(COFFEE).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    options: dict[str, Any] = {"quality": 95, "subsampling": 0}
    upright.save(tmp_path / "a-upright.jpg", **options)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b-turned.jpg", exif=exif, **options)
    made = project([tmp_path / "a-upright.jpg", tmp_path / "b-turned.jpg"])

    answers: list[Answer] = []
    for task, name in zip(made.tasks, ("upright", "turned"), strict=True):
        editor.open(made.id, task)
        editor.switch_on_auto_annotation()
        editor.choose("click_all")
        answers.append(editor.click(IN_THE_CUP))
        editor.screenshot(f"6-{name}")
    for answer in answers:
        assert {(row["original_width"], row["original_height"]) for row in answer.rows} == {upright.size}
    of_upright, of_turned = ([mask_of(row) for row in answer.regions] for answer in answers)
    # decoded pixels differ by rounding alone, so the same masks come back
    assert len(of_upright) == len(of_turned)
    for mask in of_upright:
        assert max(iou(mask, other) for other in of_turned) > 0.9
