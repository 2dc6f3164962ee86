"""What an annotator does, in a real Label Studio and a real Chromium, and what is stored in the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle
from PIL import Image

from backend.demo.project import DemoProject
from semsam_model.masks.geometry import iou
from tests.journeys.browser import Answer, Editor
from tests.journeys.conftest import Studio
from tests.paths import SAMPLES

pytestmark = pytest.mark.browser

COFFEE = SAMPLES / "coffee.jpg"
IN_THE_CUP = (0.47, 0.36)

MakeProject = Callable[..., DemoProject]


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """bool (H, W) of a brush row, read by Label Studio's own decoder."""
    size = row["original_height"], row["original_width"]
    return np.reshape(decode_rle(row["value"]["rle"]), (*size, 4))[..., 3] > 127


def start(editor: Editor, project: DemoProject, tool: str, task: int = 0) -> None:
    editor.open(project.id, project.tasks[task])
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


def test_further_clicks_on_the_spot_go_down_the_levels_from_the_best(
    editor: Editor, project: MakeProject, tmp_path: Path
) -> None:
    made = project([COFFEE, shutil.copy(COFFEE, tmp_path / "coffee-again.jpg")])
    start(editor, made, "click_all")
    candidates = sorted(editor.click(IN_THE_CUP).regions, key=lambda row: (row["meta"]["level"], -mask_of(row).sum()))
    best = next(i for i, row in enumerate(candidates) if row["meta"]["candidate"] == 1)
    in_turn = candidates[best:] + candidates[:best]

    start(editor, made, "click_cycle", task=1)
    beside = (IN_THE_CUP[0] + 0.015, IN_THE_CUP[1])
    rounds = [editor.click(IN_THE_CUP), editor.click(IN_THE_CUP, "Control"), editor.click(beside)]
    editor.screenshot("2-cycle")
    for index, answer in enumerate(rounds):
        assert [prompt["from_name"] for prompt in answer.prompts] == ["click_cycle"] * (index + 1)
        (row,) = answer.regions
        expected = in_turn[index % len(in_turn)]
        assert row["meta"]["level"] == expected["meta"]["level"]
        assert np.array_equal(mask_of(row), mask_of(expected))
    editor.accept_all()
    assert [region["id"] for region in editor.regions()] == [rounds[-1].regions[0]["id"]]


def test_an_alt_click_takes_its_place_out_of_the_best_mask(editor: Editor, project: MakeProject) -> None:
    start(editor, project([COFFEE]), "click_all")
    masks = [mask_of(row) for row in editor.click(IN_THE_CUP).regions]
    height, width = masks[0].shape
    y, x = int(IN_THE_CUP[1] * height), int(IN_THE_CUP[0] * width)
    # In the click's row, where no accept button lies: a place that one mask of the click holds and another one does not
    choices = [np.flatnonzero(a[y] & ~b[y]) for a, b in permutations(masks, 2) if a[y, x] and b[y, x]]
    away = int(np.median(max(choices, key=len)))

    second = editor.click(((away + 0.5) / width, (y + 0.5) / height), "Alt")
    editor.screenshot("3-excluded")
    assert [prompt["is_positive"] for prompt in second.prompts] == [True, False]
    best = mask_of(second.regions[-1])
    assert best[y, x]
    assert not best[y, away]


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
    made = project([COFFEE], "labeling_polygon.xml")
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
    for task, name in enumerate(("upright", "turned")):
        start(editor, made, "click_all", task)
        answers.append(editor.click(IN_THE_CUP))
        editor.screenshot(f"6-{name}")
    for answer in answers:
        assert {(row["original_width"], row["original_height"]) for row in answer.rows} == {upright.size}
    of_upright, of_turned = ([mask_of(row) for row in answer.regions] for answer in answers)
    # decoded pixels differ by rounding alone, so the same masks come back, but for one of several alike
    agreement = [max(iou(mask, other) for other in of_turned) for mask in of_upright]
    assert np.median(agreement) > 0.9 and min(agreement) > 0.6
