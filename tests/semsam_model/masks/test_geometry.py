"""Boxes and crops of masks, cleaning, agreement."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.errors import DataError
from semsam_model.masks.codecs import encode_brush_rle, encode_coco_rle
from semsam_model.masks.geometry import (
    EMPTY_BBOX,
    clean_pixels,
    crop_iou,
    crop_mask,
    crops_iou,
    greedy_nms,
    iou,
    mask_rows,
    paste,
    shared_pixels,
    tight_bbox,
)
from tests.semsam_model.masks.shapes import any_mask, rectangle

quick = settings(max_examples=60, deadline=None)


@quick
@given(any_mask)
def test_the_bbox_is_tight_and_its_crop_pastes_back(mask: np.ndarray) -> None:
    crop, (x0, y0, x1, y1) = crop_mask(mask)
    assert np.array_equal(paste(crop, (x0, y0, x1, y1), mask.shape), mask)
    if mask.any():
        assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@quick
@given(any_mask, st.integers(0, 9), st.integers(0, 9))
def test_the_crop_of_a_crop_has_its_box_in_the_photo(mask: np.ndarray, left: int, top: int) -> None:
    whole = np.zeros((30, 30), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    crop, bbox = crop_mask(mask, (left, top))
    np.testing.assert_array_equal(crop, crop_mask(whole)[0])
    assert bbox == tight_bbox(whole)


@quick
@given(st.data())
def test_iou_is_the_share_of_pixels_in_common_with_or_without_crops(data: st.DataObject) -> None:
    a, b = (data.draw(hnp.arrays(bool, (7, 9))) for _ in range(2))
    union = np.count_nonzero(a | b)
    expected = np.count_nonzero(a & b) / union if union else 1.0
    assert iou(a, b) == iou(b, a) == crop_iou(*crop_mask(a), b) == crops_iou(*crop_mask(a), *crop_mask(b)) == expected
    assert shared_pixels(*crop_mask(a), *crop_mask(b)) == np.count_nonzero(a & b)


def test_two_empty_masks_are_the_same_mask() -> None:
    empty = np.zeros((5, 7), bool)
    assert iou(empty, empty) == crop_iou(np.zeros((0, 0), bool), EMPTY_BBOX, empty) == 1
    assert iou(empty, rectangle(0, 0, 1, 1)[:5, :7]) == 0


def test_a_crop_that_does_not_fit_its_bbox_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected bool \(2, 3\)"):
        encode_brush_rle(np.ones((3, 2), bool), (0, 0, 3, 2), (9, 9))
    with pytest.raises(DataError, match="inside a photo of 4 x 9"):
        encode_coco_rle(np.ones((2, 3), bool), (2, 0, 5, 2), (9, 4))


def outlined_sizes(mask: np.ndarray, connectivity: int) -> list[int]:
    """Pixels inside the outline of each region of a mask, whatever lies in its holes; in raster order."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    sizes = []
    for i in range(1, count):
        outline, _ = cv2.findContours((labels == i).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), outline, -1, 1, cv2.FILLED)
        sizes.append(int(filled.sum()))
    return sizes


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))), st.integers(1, 9))
def test_cleaned_pixels_have_no_small_region_or_hole_left(mask: np.ndarray, least: int) -> None:
    bbox = (3, 5, 3 + mask.shape[1], 5 + mask.shape[0])
    got, (x0, y0, x1, y1) = clean_pixels(mask, bbox, least)
    if not mask.any():
        assert got is mask and (x0, y0, x1, y1) == bbox
        return
    assert got.shape == (y1 - y0, x1 - x0)
    assert got[0].any() and got[-1].any() and got[:, 0].any() and got[:, -1].any()
    sizes = outlined_sizes(got, connectivity=8)
    assert len(sizes) == 1 or min(sizes) >= least
    holes = outlined_sizes(np.pad(~got, 1, constant_values=True), connectivity=4)[1:]  # the first is outside
    assert not holes or min(holes) >= least


def test_a_clean_mask_is_returned_as_it_is() -> None:
    mask = rectangle(2, 3, 12, 20)[2:12, 3:20]
    got, bbox = clean_pixels(mask, (3, 2, 20, 12), 50)
    np.testing.assert_array_equal(got, mask)
    assert bbox == (3, 2, 20, 12)


def test_specks_and_pinholes_of_the_photo_go_and_the_box_shrinks() -> None:
    mask = rectangle(2, 2, 12, 12)
    mask[6, 6] = mask[7, 7] = False
    mask[18, 28] = True
    got, bbox = clean_pixels(mask, (0, 0, 30, 20), 6)
    assert bbox == (2, 2, 12, 12) and got.all()


# ---- non-maximum suppression

MATRIX = hnp.arrays(bool, st.integers(0, 9).map(lambda n: (n, n)))


@given(MATRIX, st.randoms(use_true_random=False))
def test_none_kept_repeats_another_and_each_left_out_repeats_a_better_one(matrix: np.ndarray, random: object) -> None:
    same = matrix | matrix.T
    order = list(range(len(same)))
    random.shuffle(order)  # type: ignore[attr-defined]
    kept = greedy_nms(order, len(same), same.__getitem__)
    for place, at in enumerate(order):
        better = [other for other in order[:place] if other in kept]
        assert (at in kept) != same[at, better].any()


@given(MATRIX, st.integers(0, 9))
def test_no_more_than_asked_for_are_kept_and_they_are_the_first(matrix: np.ndarray, most: int) -> None:
    places = range(len(matrix))
    every = greedy_nms(places, len(matrix), matrix.__getitem__)
    assert greedy_nms(places, len(matrix), matrix.__getitem__, most) == every[:most]


def test_what_is_not_in_the_order_is_neither_kept_nor_in_the_way() -> None:
    same = np.ones((3, 3), bool)
    assert greedy_nms([2, 1], 3, same.__getitem__) == [2]


@quick
@given(hnp.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 6))))
def test_products_of_mask_rows_count_shared_pixels(masks: np.ndarray) -> None:
    rows = mask_rows(masks)
    assert np.array_equal(rows @ rows.T, (masks[:, None] & masks).sum((2, 3)))
