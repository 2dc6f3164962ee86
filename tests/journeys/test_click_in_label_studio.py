"""What an annotator does, in a real Label Studio and a real Chromium, and what is stored in the end."""

from __future__ import annotations

import shutil
from base64 import b64encode
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle
from PIL import Image

from backend.corrections.queries import problems, stream_regions
from backend.demo.project import DemoProject
from backend.records import ProjectKey
from backend.store.database import Store
from semsam_model.masks.geometry import iou
from semsam_model.masks.label_studio import region_mask
from tests.journeys.browser import Answer, Editor
from tests.journeys.conftest import Studio
from tests.paths import SAMPLES
from tests.waiting import eventually

pytestmark = pytest.mark.browser

COFFEE = SAMPLES / "coffee.jpg"
IN_THE_CUP, ON_THE_SAUCER = (0.47, 0.36), (0.30, 0.72)
#: Where a new user would click first on each photo of the demo, and names that are right there. Of the rocket the model
#: shows a section first, whose name it does not know.
FIRST_CLICKS = {
    "astronaut": ((0.35, 0.70), {"person"}),
    "cat": ((0.45, 0.55), {"cat"}),
    "coffee": (IN_THE_CUP, {"cup", "saucer"}),
    "rocket": ((0.50, 0.50), None),
}
#: As Label Studio's own Segment Anything backends have it.
OFFICIAL = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="banana"/><Label value="cup"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true">
    <Label value="banana" smart="true" hotkey="1"/><Label value="cup" smart="true" hotkey="2"/>
  </KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true">
    <Label value="banana" hotkey="3"/><Label value="cup" hotkey="4"/>
  </RectangleLabels>
</View>"""

MakeProject = Callable[..., DemoProject]


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """bool (H, W); of a brush row as Label Studio's own decoder reads it."""
    if row["type"] != "brushlabels":
        mask = region_mask(row)
        assert mask is not None
        return mask
    size = row["original_height"], row["original_width"]
    return np.reshape(decode_rle(row["value"]["rle"]), (*size, 4))[..., 3] > 127


def start(editor: Editor, project: DemoProject, tool: str, task: int = 0) -> None:
    editor.open(project.id, project.tasks[task])
    editor.switch_on_auto_annotation()
    editor.show_region_labels()
    editor.choose(tool)


def stored_rows(studio: Studio, task: int) -> list[dict[str, Any]]:
    """Of the one annotation of a task."""
    (annotation,) = studio.api.call("GET", f"/api/tasks/{task}/annotations/")
    return annotation["result"]


def test_the_first_suggestion_on_every_sample_photo_is_accepted_with_two_gestures_and_stored_as_offered(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    photographs = sorted(SAMPLES.glob("*.jpg"))
    made = project(photographs)
    for number, photo in enumerate(photographs):
        place, names = FIRST_CLICKS[photo.stem]
        editor.open(made.id, made.tasks[number])
        editor.switch_on_auto_annotation()
        editor.show_region_labels()
        if number == 0:
            editor.press("m")
        assert editor.smart_tool() in ("click", "click_again")  # on further photos without a key
        (offered,) = editor.click(place).rows  # one row: nothing else to encode before the next click
        editor.screenshot(f"1-{photo.stem}")
        editor.accept_all()
        assert [region["id"] for region in editor.regions()] == [offered["id"]]  # and no dot is left
        assert names is None or offered["value"]["polygonlabels"][0] in names, offered["meta"]["text"]
    editor.submit()
    (stored,) = stored_rows(studio, made.tasks[-1])
    for key in ("id", "meta", "score", "origin", "original_width", "original_height"):
        assert stored[key] == offered[key], key
    assert stored["value"]["polygonlabels"] == offered["value"]["polygonlabels"]
    assert np.allclose(stored["value"]["points"], offered["value"]["points"])
    assert np.array_equal(mask_of(stored), mask_of(offered))


def test_further_clicks_show_the_next_best_level_and_all_candidates_can_be_taken_one_by_one(
    editor: Editor, project: MakeProject, tmp_path: Path
) -> None:
    made = project([COFFEE, shutil.copy(COFFEE, tmp_path / "coffee-again.jpg")])
    start(editor, made, "click_all")
    every = editor.click(IN_THE_CUP).regions
    editor.screenshot("2-all")
    assert len(every) >= 2
    assert all(iou(mask_of(a), mask_of(b)) < 0.95 for a, b in combinations(every, 2))
    in_turn = sorted(every, key=lambda row: row["meta"]["candidate"])
    (alone,) = editor.click((IN_THE_CUP[0] + 0.01, IN_THE_CUP[1])).regions
    assert np.array_equal(mask_of(alone), mask_of(in_turn[0]))
    editor.reject_all()

    start(editor, made, "click", task=1)
    beside = (IN_THE_CUP[0] + 0.006, IN_THE_CUP[1])  # a dot of four pixels is in the way of nothing
    rounds = [editor.click(IN_THE_CUP), editor.click(IN_THE_CUP, "Control"), editor.click(beside)]
    editor.screenshot("2-next-level")
    for index, answer in enumerate(rounds):
        assert [prompt["from_name"] for prompt in answer.prompts] == ["click"] * (index + 1)
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
    # a place in the click's row that one mask of the click holds and another one does not
    choices = [np.flatnonzero(a[y] & ~b[y]) for a, b in permutations(masks, 2) if a[y, x] and b[y, x]]
    away = int(np.median(max(choices, key=len)))

    second = editor.click(((away + 0.5) / width, (y + 0.5) / height), "Alt")
    editor.screenshot("3-excluded")
    assert [prompt["is_positive"] for prompt in second.prompts] == [True, False]
    best = mask_of(second.regions[-1])
    assert best[y, x]
    assert not best[y, away]


def test_a_box_offers_one_mask_of_what_is_in_it(editor: Editor, project: MakeProject) -> None:
    start(editor, project([COFFEE]), "click_all")
    editor.press("m")
    editor.press("m")
    assert editor.smart_tool() == "click"  # the first, however often
    editor.press("r")
    assert editor.smart_tool() == "box"
    answer = editor.drag((0.27, 0.03), (0.70, 0.72))
    editor.screenshot("4-box")
    (prompt,) = answer.prompts
    assert prompt["type"] == "rectangle"
    (row,) = answer.regions
    rows, columns = np.nonzero(mask_of(row))
    assert columns.min() / row["original_width"] > 0.22 and columns.max() / row["original_width"] < 0.75
    assert rows.max() / row["original_height"] < 0.77


def test_a_bitmask_is_accepted_with_its_disc_and_stored_to_the_pixel(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    made = project([COFFEE], "labeling_bitmask.xml")
    start(editor, made, "click_all")
    answer = editor.click(IN_THE_CUP)
    editor.screenshot("5-bitmasks")
    assert editor.suggestions() == [row["id"] for row in answer.regions]
    wanted = next(row for row in reversed(answer.regions) if editor.can_accept_with_the_mouse(row["id"]))
    editor.accept_with_the_mouse(wanted["id"])
    editor.reject_all()
    editor.submit()
    (stored,) = stored_rows(studio, made.tasks[0])
    assert (stored["id"], stored["meta"]) == (wanted["id"], wanted["meta"])
    assert np.array_equal(mask_of(stored), mask_of(wanted))


def test_a_label_chosen_before_the_click_or_the_box_is_on_the_answer(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    made = project([COFFEE], "labeling_label_first.xml")
    start(editor, made, "box")
    editor.press("d")
    answers = [(editor.drag((0.53, 0.60), (0.70, 0.88)), "cup")]  # a spoon
    editor.accept_all()
    editor.choose("click")
    said = (("4", ON_THE_SAUCER, "saucer"), ("1", IN_THE_CUP, "person"))  # a cup, said to be a person
    for key, place, label in said:
        editor.press(key)
        answers.append((editor.click(place, "Control"), label))  # it may lie in what is accepted
        editor.screenshot(f"7-{label}-first")
        editor.accept_all()
    editor.submit()
    assert [answer.labels for answer, _ in answers] == [[label] for _, label in answers]
    accepted = {answer.regions[0]["id"]: label for answer, label in answers}
    rows = stored_rows(studio, made.tasks[0])
    assert {row["id"]: row["value"]["polygonlabels"] for row in rows} == {id: [label] for id, label in accepted.items()}


def test_a_config_of_label_studios_own_segment_anything_backend_works_unchanged(
    editor: Editor, studio: Studio, project: MakeProject, tmp_path: Path
) -> None:
    (tmp_path / "official.xml").write_text(OFFICIAL)
    made = project([COFFEE], str(tmp_path / "official.xml"))
    start(editor, made, "tag2")
    editor.press("2")
    answer = editor.click(IN_THE_CUP)
    editor.screenshot("8-official")
    assert answer.labels == ["cup"] and len(answer.rows) == 1
    editor.accept_all()
    editor.submit()
    (row,) = stored_rows(studio, made.tasks[0])
    assert row["value"]["brushlabels"] == ["cup"] and np.array_equal(mask_of(row), mask_of(answer.regions[0]))


def test_a_dot_that_was_submitted_is_no_region_and_blocks_no_click(
    editor: Editor, studio: Studio, project: MakeProject
) -> None:
    made = project([COFFEE])
    start(editor, made, "click")
    editor.click(IN_THE_CUP)
    editor.submit()
    (dot,) = stored_rows(studio, made.tasks[0])
    assert dot["type"] == "keypoint"

    editor.open_annotation(made.id, made.tasks[0], regions=1)
    editor.switch_on_auto_annotation()
    editor.choose("click")
    best = editor.click(IN_THE_CUP, "Control").regions[0]
    assert best["meta"]["candidate"] == 1  # the old dot is no turn
    (following,) = editor.click((IN_THE_CUP[0] + 0.006, IN_THE_CUP[1])).regions
    assert following["meta"]["candidate"] != 1


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


PAGES = """<View>
  <Image name="image" valueList="$pages"/>
  <Labels name="label" toName="image"><Label value="cat"/><Label value="cup"/></Labels>
  <Polygon name="outline" toName="image" smart="false"/>
  <KeyPoint name="click" toName="image" smartOnly="true" strokeWidth="2"/>
</View>"""


def test_a_click_on_the_second_page_is_answered_there_with_its_label_beside_it_and_not_kept_as_of_the_first(
    editor: Editor, studio: Studio, backends_store: Store
) -> None:
    call = studio.api.call
    settings = {"title": "pages", "label_config": PAGES, "show_collab_predictions": False}
    number = call("POST", "/api/projects", json=settings)["id"]
    photographs = COFFEE, SAMPLES / "cat.jpg"
    pages = ["data:image/jpeg;base64," + b64encode(each.read_bytes()).decode() for each in photographs]
    call("POST", f"/api/projects/{number}/import", json=[{"pages": pages}])
    made = studio.api.make("pages", PAGES, [], studio.backend_url, studio.credentials.webhook_secret)
    start(editor, made, "click")
    editor.turn_to_page(1)
    answer = editor.click((0.45, 0.55))
    (region,) = answer.regions
    with Image.open(SAMPLES / "cat.jpg") as cat:
        assert (region["original_width"], region["original_height"], region["item_index"]) == (*cat.size, 1)
    editor.accept_all()
    rows = [row for row in editor.submit()["result"] if row["id"] == region["id"]]
    assert [(row["type"], row["item_index"]) for row in rows] == [("polygon", 1), ("labels", 1)]
    assert rows[1]["value"]["labels"] == ["cat"]
    key = ProjectKey(studio.url, number)
    eventually(lambda: any("item_index 1" in why for why in problems(backends_store, key).values()))
    assert not list(stream_regions(backends_store, key))
