import itertools
import json
import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import (
    build_prediction,
    check_size,
    empty_prediction,
    parse_interaction,
    region_mask,
    to_percent,
    to_pixels,
)
from backend.label_studio.requests import PromptRow
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import LEVEL_TOKENS, Box, Candidate, Click
from tests.paths import CONFIGS
from tests.semsam_model.masks.shapes import any_mask, blobs, disc

quick = settings(max_examples=60, deadline=None)
BRUSH = LabelConfig.parse((CONFIGS / "labeling.xml").read_text())
POLYGON = LabelConfig.parse((CONFIGS / "labeling_polygon.xml").read_text())
SIZE = (600, 800)


def config_for(tag: str) -> LabelConfig:
    xml = (CONFIGS / "labeling.xml").read_text().replace("BrushLabels", tag)
    return LabelConfig.parse(xml)


def key(x: float, y: float, control: str = "click_all", positive: bool = True, size: Any = SIZE) -> PromptRow:
    return PromptRow("keypoint", control, x, y, positive=positive, size=size)


def rect(x: float, y: float, width: float, height: float, rotation: float = 0, control: str = "box") -> PromptRow:
    return PromptRow("rectangle", control, x, y, width, height, rotation, size=SIZE)


def candidate(mask: np.ndarray, rank: int = 1, parent: int | None = None, level: int = 2, **own: Any) -> Candidate:
    crop, bbox = crop_mask(mask)
    token = LEVEL_TOKENS[level - 1]
    shown = {"score": 0.8123456, "predicted_iou": 0.9, "stability": 0.95} | own
    return Candidate(rank, token, level, size=mask.shape, bbox=bbox, crop=crop, parent=parent, **shown)


def nested() -> list[Candidate]:
    """Best first: the middle one; then the whole, then the smallest part."""
    middle, whole, part = (disc(61, 83, 40, 30, radius) for radius in (18, 28, 7))
    return [
        candidate(middle, 1, parent=2, level=3, score=0.9),
        candidate(whole, 2, level=1, score=0.7),
        candidate(part, 3, parent=1, level=6, score=0.5),
    ]


def build(candidates: list[Candidate], config: LabelConfig = BRUSH, **own: Any) -> dict[str, Any]:
    counter = itertools.count(1)
    own.setdefault("new_id", lambda: f"id{next(counter)}")
    return build_prediction(candidates, config=config, prompt_id="q", model_version="v1", **own)


def regions(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in prediction["result"] if row["type"].endswith("labels")]


# --------------------------------------------------------------------------------------------------- percent and pixels


@quick
@given(st.integers(1, 12_001), st.floats(0, 1))
def test_pixels_survive_the_way_through_percent_at_any_size(side: int, share: float) -> None:
    pixels = share * side
    assert math.isclose(to_pixels(to_percent(pixels, side), side), pixels, abs_tol=1e-9 * side)


@quick
@given(st.integers(1, 4001), st.integers(1, 4001), st.data())
def test_a_click_on_a_pixels_centre_lands_on_that_pixel(height: int, width: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    at = key(100 * (column + 0.5) / width, 100 * (row + 0.5) / height, size=(height, width))
    prompt = parse_interaction([at], BRUSH).prompt
    assert prompt is not None
    (click,) = prompt.clicks
    assert abs(click.x - column - 0.5) < 1e-6 and abs(click.y - row - 0.5) < 1e-6


@quick
@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.integers(1, 99), st.integers(1, 99))
def test_a_click_anywhere_ends_up_on_a_pixel_of_the_photo(x: float, y: float, height: int, width: int) -> None:
    prompt = parse_interaction([key(x, y, size=(height, width))], BRUSH).prompt
    assert prompt is not None
    assert 0 <= int(prompt.clicks[0].x) < width and 0 <= int(prompt.clicks[0].y) < height


# --------------------------------------------------------------------------------------------------------- interactions


def test_the_all_tool_asks_for_all_with_every_point() -> None:
    asked = parse_interaction([key(50, 50), key(50.5, 50), key(10, 10, positive=False)], BRUSH)
    assert (asked.mode, asked.cycle_index, asked.original_size) == ("all", 0, SIZE)
    assert asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(404, 300), Click(80, 60, positive=False))


def test_equal_points_count_once_and_the_later_sign_wins() -> None:
    asked = parse_interaction([key(50, 50), key(20, 20), key(50, 50), key(20, 20, positive=False)], BRUSH)
    assert asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(160, 120, positive=False))


@quick
@given(st.lists(st.tuples(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7)), min_size=1, max_size=9))
def test_the_cycle_tool_counts_clicks_on_the_spot_and_asks_the_same_each_time(offsets: list) -> None:
    rows = [key(50 + dx, 50 + dy, "click_cycle") for dx, dy in offsets]
    for count in range(1, len(rows) + 1):
        asked = parse_interaction(rows[:count], BRUSH)
        assert (asked.mode, asked.cycle_index) == ("cycle", count - 1)
        assert asked.prompt == parse_interaction(rows[:1], BRUSH).prompt


def test_far_and_negative_points_refine_a_cycle_without_turning_it() -> None:
    rows = [key(50, 50, "click_cycle"), key(50, 51, "click_cycle"), key(80, 80, "click_cycle", positive=False)]
    asked = parse_interaction(rows, BRUSH)
    assert asked.cycle_index == 1 and asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(640, 480, positive=False))
    far = parse_interaction([*rows, key(20, 50, "click_cycle")], BRUSH)
    assert far.cycle_index == 0 and far.prompt is not None
    assert far.prompt.positives == (Click(400, 300), Click(400, 306), Click(160, 300))


def test_of_two_tools_mixed_the_newest_decides_and_only_its_clicks_turn_the_cycle() -> None:
    rows = [key(50, 50, "click_all"), key(50, 50, "click_cycle"), key(50, 51, "click_cycle")]
    asked = parse_interaction(rows, BRUSH)
    assert (asked.mode, asked.cycle_index) == ("cycle", 1)
    assert asked.prompt is not None and asked.prompt.clicks == (Click(400, 300),)
    assert parse_interaction([*rows, key(70, 70, "click_all")], BRUSH).mode == "all"


def test_the_spot_is_two_percent_of_the_longer_side() -> None:
    def index(x: float, y: float) -> int:
        return parse_interaction([key(50, 50, "click_cycle"), key(x, y, "click_cycle")], BRUSH).cycle_index

    assert [index(51.9, 50), index(52.1, 50), index(50, 52.6), index(50, 52.8)] == [1, 0, 1, 0]


def test_polygons_are_always_offered_one_at_a_time() -> None:
    assert [parse_interaction([key(50, 50)] * n, POLYGON).cycle_index for n in (1, 2, 3)] == [0, 1, 2]
    box = parse_interaction([rect(10, 10, 20, 20), rect(10.5, 10, 20, 20.5), rect(60, 60, 9, 9)], POLYGON)
    assert (box.mode, box.cycle_index) == ("cycle", 0) and box.prompt is not None and len(box.prompt.boxes) == 3
    again = parse_interaction([rect(60, 60, 9, 9), rect(10, 10, 20, 20), rect(10.5, 10, 20, 20.5)], POLYGON)
    assert again.cycle_index == 1 and again.prompt is not None
    assert again.prompt.boxes == (Box(480, 360, 552, 414), Box(80, 60, 240, 180))


def test_a_cycle_starts_with_the_best_goes_down_the_levels_and_starts_over() -> None:
    three = nested()
    rows = [key(50, 50, "click_cycle")]
    levels = [c.level for n in range(1, 5) for c in parse_interaction(rows * n, BRUSH).offered(three)]
    assert levels == [3, 6, 1, 3]
    assert parse_interaction([key(50, 50)], BRUSH).offered(three) == three
    assert not parse_interaction(rows, BRUSH).offered([])


@quick
@given(st.floats(5, 60), st.floats(5, 60), st.floats(1, 30), st.floats(1, 30), st.floats(-400, 400))
def test_a_turned_rectangle_is_its_bounding_box_cut_to_the_photo(
    x: float, y: float, width: float, height: float, degrees: float
) -> None:
    prompt = parse_interaction([rect(x, y, width, height, degrees)], BRUSH).prompt
    assert prompt is not None
    (box,) = prompt.boxes
    # The same corners by OpenCV's rotation about the upper left one; its angle runs the other way.
    left, top, w, h = x * 8, y * 6, width * 8, height * 6
    turn = cv2.getRotationMatrix2D((left, top), -degrees, 1.0)
    corners = np.array([[left, top, 1], [left + w, top, 1], [left, top + h, 1], [left + w, top + h, 1]]) @ turn.T
    expected = np.clip([*corners.min(axis=0), *corners.max(axis=0)], 0, [800, 600, 800, 600])
    assert np.allclose([box.x0, box.y0, box.x1, box.y1], expected, atol=1e-3)


@pytest.mark.parametrize("width", [0, 0.05])
def test_an_accidental_rectangle_is_a_click_at_its_centre(width: float) -> None:
    prompt = parse_interaction([rect(25, 50, width, 10)], BRUSH).prompt
    assert prompt is not None and prompt.boxes == ()
    assert prompt.clicks == (Click(200 + 4 * width, 330),)


def test_a_rectangle_drawn_backwards_or_over_the_border_is_cut() -> None:
    prompt = parse_interaction([rect(50, 50, -60, -20), rect(120, 10, 20, 20)], BRUSH)
    assert prompt.prompt is not None and prompt.prompt.boxes == (Box(0, 180, 400, 300),)
    assert prompt.ignored == ("rectangle of 'box' lies outside the photo",)


@pytest.mark.parametrize("rows", [[], [key(50, 50, positive=False)], [rect(120, 10, 20, 20)]])
def test_nothing_to_point_at_gives_no_prompt(rows: list[PromptRow]) -> None:
    for config in (BRUSH, POLYGON):
        assert parse_interaction(rows, config, SIZE).prompt is None


def test_text_is_kept_beside_the_prompt() -> None:
    text = PromptRow("text", "prompt", text=("red wheel",))
    assert parse_interaction([text], BRUSH).text == ("red wheel",)
    asked = parse_interaction([key(50, 50), text], BRUSH)
    assert asked.text == ("red wheel",) and asked.prompt is not None


def test_the_photos_own_size_serves_when_no_row_tells_it() -> None:
    asked = parse_interaction([key(50, 50, size=None)], BRUSH, photo=(101, 201))
    assert asked.original_size == (101, 201)
    assert asked.prompt is not None and asked.prompt.clicks == (Click(100.5, 50.5),)
    with pytest.raises(BadRequest, match="missing, and the photo's size is not known"):
        parse_interaction([key(50, 50, size=None)], BRUSH)


def test_a_size_that_is_not_the_photos_is_refused_and_exif_named() -> None:
    with pytest.raises(BadRequest, match=r"expected the photo's 600 x 800 pixels, Label Studio sent 800 x 600.*EXIF"):
        parse_interaction([key(50, 50)], BRUSH, photo=(800, 600))
    with pytest.raises(BadRequest, match=r"the photo's 799 x 600 pixels, Label Studio sent 800 x 600; masks"):
        check_size((600, 800), (600, 799))
    with pytest.raises(BadRequest, match="expected one size in all prompts"):
        parse_interaction([key(50, 50), key(50, 50, size=(3, 4))], BRUSH)


# ---------------------------------------------------------------------------------------------------------- predictions


@quick
@given(any_mask | blobs(), st.sampled_from(["BrushLabels", "BitmaskLabels", "PolygonLabels"]))
def test_a_mask_comes_back_from_the_region_it_became(mask: np.ndarray, tag: str) -> None:
    prediction = build([candidate(mask)], config_for(tag), max_vertices=20_000)
    if not mask.any():
        assert prediction["result"] == []
        return
    (row,) = regions(json.loads(json.dumps(prediction, allow_nan=False)))
    assert (row["original_height"], row["original_width"]) == mask.shape
    assert row["value"][tag.lower()] == ["object"]
    back = region_mask(row)
    assert back is not None and np.array_equal(back, mask)


@quick
@given(any_mask.filter(np.any))
def test_a_rectangle_answer_is_the_masks_bounding_box(mask: np.ndarray) -> None:
    (row,) = regions(build([candidate(mask)], config_for("RectangleLabels")))
    back = region_mask(row)
    assert back is not None and crop_mask(back)[1] == crop_mask(mask)[1]
    assert back.sum() == np.prod(crop_mask(mask)[0].shape)


def test_the_best_candidate_comes_last_and_gives_the_score() -> None:
    for order in itertools.permutations(nested()):
        prediction = build(list(order))
        assert [row["meta"]["candidate"] for row in regions(prediction)] == [2, 3, 1]
        assert prediction["score"] == 0.9 and prediction["model_version"] == "v1"


def test_a_region_carries_what_survives_acceptance() -> None:
    whole, part, best = regions(build(nested()))
    assert (whole["id"], part["id"], best["id"]) == ("id1", "id2", "id3")
    assert "parentID" not in whole and best["parentID"] == whole["id"] and part["parentID"] == best["id"]
    assert whole["value"]["brushlabels"] == ["object"]
    assert part["value"]["brushlabels"] == best["value"]["brushlabels"] == ["part"]
    assert best["meta"] == {
        "text": ["L3/6 part 0.90"],
        "prompt_id": "q",
        "candidate": 1,
        "level": 3,
        "model_version": "v1",
    }
    for row in (whole, part, best):
        assert (row["type"], row["from_name"], row["to_name"]) == ("brushlabels", "mask", "image")
        assert (row["origin"], row["image_rotation"]) == ("prediction", 0)
        assert (row["original_width"], row["original_height"]) == (83, 61)


def test_note_and_level_follow_their_region_under_its_id_without_geometry() -> None:
    rows = build(nested())["result"]
    assert [row["type"] for row in rows] == ["brushlabels", "textarea", "choices"] * 3
    for region, note, level in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert region["id"] == note["id"] == level["id"]
        assert note["from_name"] == "note" and note["value"] == {"text": region["meta"]["text"]}
        assert level["from_name"] == "level" and level["value"] == {"choices": [f"level {region['meta']['level']}"]}
        assert region_mask(note) is None and region_mask(level) is None


def test_a_level_without_a_choice_and_missing_controls_send_no_rows() -> None:
    head = '<View><Image name="i" value="$i"/><BrushLabels name="m" toName="i" smart="false"/>'
    choices = '<Choices name="level" toName="i" perRegion="true"><Choice value="level 1"/></Choices></View>'
    assert [row["type"] for row in build(nested(), LabelConfig.parse(head + "</View>"))["result"]] == [
        "brushlabels"
    ] * 3
    rows = build(nested(), LabelConfig.parse(head + choices))["result"]
    assert [row["value"]["choices"] for row in rows if row["type"] == "choices"] == [["level 1"]]
    assert all("brushlabels" not in row["value"] for row in rows)  # no labels in the config, so none are made up


def test_a_parent_outside_the_answer_is_not_pointed_to() -> None:
    (row,) = regions(build(nested()[:1]))
    assert "parentID" not in row and row["value"]["brushlabels"] == ["part"]


def test_labels_given_or_the_candidates_own_come_before_the_rule() -> None:
    chosen = regions(build(nested(), labels=["a", None, "c"]))
    assert [row["value"].get("brushlabels") for row in chosen] == [None, ["c"], ["a"]]
    mask = disc(20, 20, 10, 10, 5)
    (own,) = regions(build([candidate(mask, label="part")]))
    assert own["value"]["brushlabels"] == ["part"] and own["meta"]["text"] == ["L2/6 part 0.81"]
    (foreign,) = regions(build([candidate(mask, label="zebra")]))
    assert foreign["value"]["brushlabels"] == ["object"]


def test_ids_are_full_uuids_and_fresh() -> None:
    def ids() -> list[str]:
        prediction = build_prediction(nested(), config=BRUSH, prompt_id="q", model_version="v")
        return [row["id"] for row in regions(prediction)]

    both = ids() + ids()
    assert len(set(both)) == 6 and {len(each) for each in both} == {36}


def test_without_candidates_or_answer_control_the_prediction_is_empty() -> None:
    empty = {"model_version": "v1", "score": 0.0, "result": []}
    assert build([]) == build([candidate(np.zeros((5, 7), bool))]) == empty_prediction("v1") == empty
    assert build(nested(), LabelConfig.parse('<View><Image name="i" value="$i"/></View>')) == empty


# -------------------------------------------------------------------------------------------------------------- regions


REGION = {"type": "polygonlabels", "original_width": 40, "original_height": 30}


def test_a_hand_drawn_turned_rectangle_is_read() -> None:
    value = {"x": 50, "y": 0, "width": 25, "height": 20, "rotation": 90}
    mask = region_mask(REGION | {"type": "rectangle", "value": value})
    assert mask is not None and crop_mask(mask)[1] == (14, 0, 20, 10)


@pytest.mark.parametrize(
    "row",
    [
        REGION | {"value": {"points": "x"}},
        REGION | {"value": {"points": [[1, 2, 3]]}},
        REGION | {"value": {"points": [[1, None], [2, 3], [4, 5]]}},
        REGION | {"value": {}},
        REGION | {"type": "brushlabels", "value": {"rle": [1, 2]}},
        REGION | {"type": "bitmask", "value": {}},
        REGION | {"type": "rectangle", "value": {"x": 1}},
        {"type": "polygon", "value": {"points": [[1, 2], [3, 4], [5, 0]]}},
        3,
    ],
)
def test_a_region_that_cannot_be_read_is_a_bad_request(row: Any) -> None:
    with pytest.raises(BadRequest):
        region_mask(row)


@pytest.mark.parametrize("point", [1e308, -1e308, 1e5])
def test_a_polygon_far_outside_is_cut(point: float) -> None:
    row = REGION | {"value": {"points": [[0, 0], [point, 0], [point, 100], [0, 100]]}}
    mask = region_mask(row)
    assert mask is not None and mask.all() == (point > 0)


def test_prompts_and_global_choices_in_an_annotation_have_no_mask() -> None:
    for row in (
        {"type": "keypoint", "value": {"x": 1, "y": 2}},
        {"type": "choices", "value": {}},
        {"type": "relation"},
    ):
        assert region_mask(row) is None
    stamped = {"type": "brushlabels", "value": {"brushlabels": ["a"]}, "original_width": 4, "original_height": 3}
    assert region_mask(stamped) is None
