from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.prompt_rows import KeypointRow, PromptRow, RectangleRow, TextRow
from backend.label_studio.prompts import Interaction, check_size, parse_interaction
from semsam_model.masks.geometry import Size
from semsam_model.types import Box, Click
from tests.backend.label_studio.candidates import nested
from tests.paths import BRUSH_WITH_LEVELS, CONFIGS

quick = settings(max_examples=60, deadline=None)
BRUSH = LabelConfig.parse(BRUSH_WITH_LEVELS.read_text())
POLYGON = LabelConfig.parse((CONFIGS / "labeling.xml").read_text())
SIZE = (600, 800)


def key(
    x: float,
    y: float,
    control: str = "click_all",
    positive: bool = True,
    size: Any = SIZE,
    labels: Sequence[str] = (),
) -> KeypointRow:
    height, width = size or (None, None)
    row = {"from_name": control, "original_height": height, "original_width": width, "is_positive": positive}
    return KeypointRow.model_validate(row | {"value": {"x": x, "y": y}, "labels": labels})


def rect(x: float, y: float, width: float, height: float, rotation: float = 0) -> RectangleRow:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    row = {"from_name": "box", "original_height": SIZE[0], "original_width": SIZE[1], "value": value}
    return RectangleRow.model_validate(row)


def ask(rows: Sequence[PromptRow], config: LabelConfig = BRUSH, photo: Size = SIZE) -> Interaction:
    return parse_interaction(rows, config, photo)


@quick
@given(st.integers(1, 4001), st.integers(1, 4001), st.data())
def test_a_click_on_a_pixels_centre_lands_on_that_pixel(height: int, width: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    at = key(100 * (column + 0.5) / width, 100 * (row + 0.5) / height, size=(height, width))
    prompt = ask([at], BRUSH, (height, width)).prompt
    assert prompt is not None
    (click,) = prompt.clicks
    assert abs(click.x - column - 0.5) < 1e-6 and abs(click.y - row - 0.5) < 1e-6


@quick
@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.integers(1, 99), st.integers(1, 99))
def test_a_click_anywhere_ends_up_on_a_pixel_of_the_photo(x: float, y: float, height: int, width: int) -> None:
    prompt = ask([key(x, y, size=(height, width))], BRUSH, (height, width)).prompt
    assert prompt is not None
    assert 0 <= int(prompt.clicks[0].x) < width and 0 <= int(prompt.clicks[0].y) < height


# --------------------------------------------------------------------------------------------------------- interactions


def test_the_all_tool_asks_for_all_with_every_point_elsewhere() -> None:
    asked = ask([key(50, 50), key(75, 50), key(10, 10, positive=False)])
    assert (asked.mode, asked.turn) == ("all", 0)
    assert asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(600, 300), Click(80, 60, positive=False))


def test_equal_points_count_once_and_the_later_sign_wins() -> None:
    asked = ask([key(50, 50), key(20, 20), key(50, 50), key(20, 20, positive=False)])
    assert asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(160, 120, positive=False))


@quick
@given(st.lists(st.tuples(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7)), min_size=1, max_size=9))
def test_a_tool_counts_its_clicks_on_the_spot_and_asks_the_same_each_time(offsets: list) -> None:
    rows = [key(50 + dx, 50 + dy, "click") for dx, dy in offsets]
    for count in range(1, len(rows) + 1):
        asked = ask(rows[:count])
        assert (asked.mode, asked.turn) == ("one", count - 1)
        assert asked.prompt == ask(rows[:1]).prompt


def test_far_and_negative_points_refine_and_are_no_turn() -> None:
    rows = [key(50, 50, "click"), key(50, 51, "click"), key(80, 80, "click", positive=False)]
    asked = ask(rows)
    assert asked.turn == 1 and asked.prompt is not None
    assert asked.prompt.clicks == (Click(400, 300), Click(640, 480, positive=False))
    far = ask([*rows, key(20, 50, "click")])
    assert far.turn == 0 and far.prompt is not None
    assert far.prompt.positives == (Click(400, 300), Click(400, 306), Click(160, 300))


def test_of_two_tools_mixed_the_newest_decides_and_only_its_clicks_count() -> None:
    rows = [key(50, 50, "click_all"), key(50, 50, "click"), key(50, 51, "click")]
    asked = ask(rows)
    assert (asked.mode, asked.turn) == ("one", 1)
    assert asked.prompt is not None and asked.prompt.clicks == (Click(400, 300),)
    assert ask([*rows, key(70, 70, "click_all")]).mode == "all"


def test_the_spot_is_two_percent_of_the_longer_side() -> None:
    def index(x: float, y: float) -> int:
        return ask([key(50, 50, "click"), key(x, y, "click")]).turn

    assert [index(51.9, 50), index(52.1, 50), index(50, 52.6), index(50, 52.8)] == [1, 0, 1, 0]


def test_a_box_drawn_again_over_the_same_place_asks_for_the_next() -> None:
    box = ask([rect(10, 10, 20, 20), rect(10.5, 10, 20, 20.5), rect(60, 60, 9, 9)])
    assert (box.mode, box.turn) == ("one", 0) and box.prompt is not None and len(box.prompt.boxes) == 3
    again = ask([rect(60, 60, 9, 9), rect(10, 10, 20, 20), rect(10.5, 10, 20, 20.5)])
    assert again.turn == 1 and again.prompt is not None
    assert again.prompt.boxes == (Box(480, 360, 552, 414), Box(80, 60, 240, 180))


def test_one_starts_with_the_best_goes_on_with_the_next_best_and_starts_over() -> None:
    three = nested()
    rows = [key(50, 50, "click")]
    ranks = [c.rank for n in range(1, 5) for c in ask(rows * n).suggested(three)]
    assert ranks == [1, 2, 3, 1]
    assert not ask(rows).suggested([])


def test_all_shows_every_candidate_and_then_each_alone_so_that_any_can_be_accepted() -> None:
    three = nested()
    turns = [ask([key(50, 50, "click_all")] * n).suggested(three) for n in range(1, 6)]
    assert turns[0] == three
    assert [[c.rank for c in turn] for turn in turns[1:]] == [[1], [2], [3], [1]]


@pytest.mark.parametrize(
    ("control", "mode"),
    [("click_all", "all"), ("All", "all"), ("all-boxes", "all"), ("click", "one"), ("ball", "one"), ("tag2", "one")],
)
def test_the_word_all_in_a_tools_name_decides(control: str, mode: str) -> None:
    assert ask([key(50, 50, control)]).mode == mode


def test_the_label_active_at_the_newest_prompt_is_meant_by_value_or_by_alias() -> None:
    config = LabelConfig.parse(
        '<View><Image name="image" value="$image"/><PolygonLabels name="mask" toName="image" smart="false">'
        '<Label value="cup"/><Label value="side mirror" alias="M7"/></PolygonLabels></View>'
    )
    chosen = [[], ["cup"], ["M7"], ["side mirror"], ["cat"], ["cat", "cup"]]
    asked = [ask([key(20, 20, labels=["cup"]), key(50, 50, labels=labels)], config) for labels in chosen]
    assert [each.label for each in asked] == [None, "cup", "M7", "M7", None, "cup"]
    assert asked[4].ignored == ("label 'cat': <PolygonLabels name=\"mask\"> has no such label",)


@quick
@given(st.floats(5, 60), st.floats(5, 60), st.floats(1, 30), st.floats(1, 30), st.floats(-400, 400))
def test_a_turned_rectangle_is_its_bounding_box_cut_to_the_photo(
    x: float, y: float, width: float, height: float, degrees: float
) -> None:
    prompt = ask([rect(x, y, width, height, degrees)]).prompt
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
    prompt = ask([rect(25, 50, width, 10)]).prompt
    assert prompt is not None and prompt.boxes == ()
    assert prompt.clicks == (Click(200 + 4 * width, 330),)


def test_a_rectangle_drawn_backwards_or_over_the_border_is_cut() -> None:
    prompt = ask([rect(50, 50, -60, -20), rect(120, 10, 20, 20)])
    assert prompt.prompt is not None and prompt.prompt.boxes == (Box(0, 180, 400, 300),)
    assert prompt.ignored == ("rectangle of 'box' lies outside the photo",)


@pytest.mark.parametrize("rows", [[], [key(50, 50, positive=False)], [rect(120, 10, 20, 20)]])
def test_nothing_to_point_at_gives_no_prompt(rows: list[PromptRow]) -> None:
    for config in (BRUSH, POLYGON):
        assert ask(rows, config).prompt is None


def test_text_is_kept_beside_the_prompt() -> None:
    text = TextRow.model_validate({"from_name": "prompt", "value": {"text": ["red wheel"]}})
    assert ask([text]).text == ("red wheel",)
    asked = ask([key(50, 50), text])
    assert asked.text == ("red wheel",) and asked.prompt is not None


def test_the_photos_own_size_serves_when_no_row_tells_it() -> None:
    asked = ask([key(50, 50, size=None)], photo=(101, 201))
    assert asked.prompt is not None and asked.prompt.clicks == (Click(100.5, 50.5),)


def test_a_size_that_is_not_the_photos_is_refused_and_exif_named() -> None:
    with pytest.raises(BadRequest, match=r"expected the photo's 600 x 800 pixels, Label Studio sent 800 x 600.*EXIF"):
        ask([key(50, 50)], photo=(800, 600))
    with pytest.raises(BadRequest, match=r"the photo's 799 x 600 pixels, Label Studio sent 800 x 600; masks"):
        check_size((600, 800), (600, 799))
    with pytest.raises(BadRequest, match="expected one size in all prompts"):
        ask([key(50, 50), key(50, 50, size=(3, 4))])
