"""Where the refiner looks, and the way there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam_model.network.refiner import SIDE
from semsam_model.network.refiner_frame import OUTSIDE, ROOM, Square, hint_maps
from semsam_model.types import Click

SIZES = st.integers(20, 400)


def blob(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    mask[y : y + int(rng.integers(1, height)), x : x + int(rng.integers(1, width))] = True
    return mask


@given(SIZES, SIZES, st.integers(0, 1000))
def test_the_square_holds_mask_and_clicks_and_does_not_leave_a_photo_that_is_large_enough(
    h: int, w: int, n: int
) -> None:
    mask, click = blob(h, w, n), Click(float(n % w) + 0.5, float(n % h) + 0.5)
    square = Square.around(mask, [click])
    at = square.click(click)
    assert 0 <= at.x < SIDE and 0 <= at.y < SIDE
    rows, columns = np.nonzero(mask)
    assert square.top <= rows.min() and rows.max() < square.top + square.side
    assert square.left <= columns.min() and columns.max() < square.left + square.side
    if square.side <= min(h, w):
        assert 0 <= square.left <= w - square.side and 0 <= square.top <= h - square.side
    spans = [np.ptp([*axis, at]) for axis, at in ((rows, click.y), (columns, click.x))]
    assert square.side >= ROOM * max(spans) - 1


@given(st.integers(10, 300), st.integers(10, 300), st.integers(-40, 9), st.integers(-40, 9))
def test_a_crop_of_its_own_size_comes_back_bit_for_bit(h: int, w: int, left: int, top: int) -> None:
    plane = np.random.default_rng(h).normal(size=(h, w)).astype(np.float32)
    square = Square((h, w), left, top, SIDE)
    everywhere = np.ones((SIDE, SIDE), bool)
    shown = np.s_[max(0, top) : top + SIDE, max(0, left) : left + SIDE]
    pasted = square.paste(square.crop(plane, OUTSIDE), np.zeros_like(plane), everywhere)
    assert np.array_equal(pasted[shown], plane[shown])
    assert not np.delete(pasted[:, shown[1]], np.arange(h)[shown[0]], 0).any()
    assert np.array_equal(square.paste(square.crop(plane, OUTSIDE), plane, everywhere), plane)


@pytest.mark.parametrize("side", [40, 90, SIDE, 300])
def test_a_photo_point_is_found_at_its_place_in_the_crop(side: int) -> None:
    square = Square((400, 500), 60, 30, side)
    ramp = np.mgrid[:400, :500].astype(np.float32) + 0.5  # each pixel's middle, y and x
    click = Click(60 + side * 0.7, 30 + side * 0.3)
    at = square.click(click)
    place = int(at.y), int(at.x)
    step = side / SIDE
    assert square.crop(ramp[0], 0)[place] == pytest.approx(click.y, abs=max(1, step))
    assert square.crop(ramp[1], 0)[place] == pytest.approx(click.x, abs=max(1, step))


def test_what_lies_beyond_the_photo_is_marked() -> None:
    crop = Square((10, 10), -SIDE // 2, 0, SIDE).crop(np.ones((10, 10, 3), np.uint8), np.nan)
    assert np.isnan(crop[:, : SIDE // 2]).all() and np.isnan(crop[10:]).all()
    assert (crop[:10, SIDE // 2 : SIDE // 2 + 10] == 1).all()


def test_clicks_are_disks_of_their_sign_and_the_newest_is_shown_once_more() -> None:
    maps = hint_maps(np.zeros((SIDE, SIDE), np.float32), [Click(20, 30), Click(90, 40, False), Click(60, 100)])
    assert np.allclose(maps[0], 0.5)
    assert maps[1, 30, 20] == maps[1, 100, 60] == maps[2, 40, 90] == 1
    assert maps[1].sum() == 2 * maps[2].sum() == 2 * maps[3].sum() > 0
    assert maps[3, 100, 60] == 1 and maps[3, 30, 20] == 0
