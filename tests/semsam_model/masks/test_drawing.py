"""Photos with masks and prompts drawn on them."""

import base64
import io
from functools import partial

import numpy as np
from PIL import Image

from semsam_model.masks.drawing import (
    BOX,
    GOT,
    NEGATIVE,
    POSITIVE,
    WANTED,
    draw_comparison,
    draw_mask,
    draw_outline,
    draw_prompt,
    resize_mask,
    scaled,
    to_data_url,
)
from semsam_model.types import Box, Click, Prompt
from tests.semsam_model.masks import shapes

GREY = np.full((60, 80, 3), 100, np.uint8)
rectangle = partial(shapes.rectangle, size=GREY.shape[:2])


def is_colour(canvas: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((canvas == colour).all(2))


def test_a_picture_keeps_the_photos_shape_and_its_masks_keep_their_place() -> None:
    canvas = scaled(GREY, 0.5)
    assert canvas.shape == (30, 40, 3)
    np.testing.assert_array_equal(resize_mask(rectangle(10, 20, 30, 60), canvas), rectangle(5, 10, 15, 30)[:30, :40])
    assert scaled(GREY, 0.001).shape == (1, 1, 3)


def test_a_mask_is_tinted_inside_and_nowhere_else() -> None:
    canvas, inside = GREY.copy(), rectangle(10, 20, 30, 60)
    draw_mask(canvas, inside, (200, 0, 100), 0.5)
    assert (canvas[inside] == (150, 50, 100)).all()
    assert (canvas[~inside] == 100).all()


def test_an_outline_lies_on_the_masks_border_and_around_its_hole() -> None:
    canvas, inside = GREY.copy(), rectangle(10, 20, 30, 60) & ~rectangle(15, 30, 20, 40)
    draw_outline(canvas, inside, WANTED, 1)
    drawn = is_colour(canvas, WANTED)
    assert drawn[10, 20:60].all() and drawn[29, 20:60].all() and drawn[14, 30:40].all()
    assert not drawn[rectangle(11, 21, 13, 59)].any() and not drawn[~inside].any()


def test_clicks_have_the_colour_of_their_sign_at_their_place_and_boxes_their_sides() -> None:
    canvas = GREY.copy()
    draw_prompt(canvas, Prompt((Click(40, 20), Click(140, 100, positive=False)), (Box(4, 4, 60, 60),)), 0.5)
    assert tuple(canvas[10, 20]) == POSITIVE
    assert tuple(canvas[50, 70]) == NEGATIVE
    assert tuple(canvas[30, 10]) == BOX


def test_a_comparison_shows_what_was_wanted_and_what_came_if_anything_did() -> None:
    wanted, got = rectangle(5, 5, 25, 35), rectangle(30, 40, 55, 75)
    both = draw_comparison(GREY, wanted, got, Click(20, 15), side=80)
    assert is_colour(both, WANTED).any() and is_colour(both, GOT).any() and is_colour(both, POSITIVE).any()
    assert not is_colour(draw_comparison(GREY, wanted, None, Click(20, 15), side=80), GOT).any()


def test_a_data_url_holds_the_picture() -> None:
    url = to_data_url(scaled(GREY, 0.5))
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,")))) as image:
        assert image.size == (40, 30)
