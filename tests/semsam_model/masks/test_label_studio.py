import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.errors import DataError
from semsam_model.masks.geometry import crop_mask
from semsam_model.masks.label_studio import region_mask, to_percent, to_pixels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12_001), st.floats(0, 1))
def test_pixels_survive_the_way_through_percent_at_any_size(side: int, share: float) -> None:
    pixels = share * side
    assert math.isclose(to_pixels(to_percent(pixels, side), side), pixels, abs_tol=1e-9 * side)


REGION = {"type": "polygonlabels", "original_width": 40, "original_height": 30}


@pytest.mark.parametrize("empty", [None, 0, "", [], False])
def test_an_empty_rotation_of_any_form_is_none(empty: Any) -> None:
    value = {"x": 50, "y": 0, "width": 25, "height": 20}
    row = REGION | {"type": "rectangle"}
    assert np.array_equal(
        region_mask(row | {"value": value | {"rotation": empty}}), region_mask(row | {"value": value})
    )


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
def test_a_region_that_cannot_be_read_is_a_data_error(row: Any) -> None:
    with pytest.raises(DataError):
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
