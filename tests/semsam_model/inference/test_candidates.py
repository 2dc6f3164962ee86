"""Cleaning, agreement, combination, duplicates, parents: on small logit maps drawn by hand or by hypothesis."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.config import read_model_config
from semsam_model.inference.candidates import (
    CandidateOptions,
    CropPrediction,
    PromptCells,
    Proposal,
    clean,
    combine,
    intersections,
    obeyed,
    parents,
    stability,
)
from semsam_model.network.frame import Frame
from semsam_model.types import LEVEL_TOKENS
from tests.semsam_model.masks.shapes import rectangle

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    elements=st.one_of(st.floats(0.0625, 8, width=32), st.floats(-8, -0.0625, width=32)),
)


def proposal(mask: np.ndarray, predicted_iou: float = 0.5, token: int = 0) -> Proposal:
    level = LEVEL_TOKENS.index(token) + 1
    return Proposal(np.where(mask, 5.0, -5.0).astype(np.float32), token, level, predicted_iou, 1.0)


def view(proposals: Sequence[Proposal], prompt: PromptCells | None = None) -> CropPrediction:
    """A view of a photo whose cells are those of the proposals, one photo pixel each."""
    height, width = proposals[0].logits.shape
    config = replace(read_model_config("tiny"), resize_side="long", resize_pixels=4 * max(height, width))
    return CropPrediction(Frame.of((height, width), config), prompt or PromptCells((), (), ()), tuple(proposals))


def regions(mask: np.ndarray) -> list[int]:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return sorted(stats[1:, cv2.CC_STAT_AREA].tolist())


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(1, 8))
def test_cleaning_leaves_no_region_below_the_limit_except_when_all_are(logits: np.ndarray, least: int) -> None:
    before, after = regions(logits > 0), regions(clean(logits, least) > 0)
    if not before:
        return
    assert after
    assert len(after) == 1 or after[0] >= least


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(1, 8))
def test_cleaning_changes_signs_and_never_magnitudes(logits: np.ndarray, least: int) -> None:
    np.testing.assert_array_equal(np.abs(clean(logits, least)), np.abs(logits))


def test_cleaning_fills_a_pinhole_and_drops_a_speck() -> None:
    mask = rectangle(2, 2, 12, 12)
    mask[6, 6] = False
    mask[18, 28] = True
    np.testing.assert_array_equal(clean(proposal(mask).logits, 6) > 0, rectangle(2, 2, 12, 12))


def test_a_large_hole_and_a_mask_that_is_all_specks_survive() -> None:
    ring = rectangle(2, 2, 14, 14) & ~rectangle(5, 5, 10, 10)
    np.testing.assert_array_equal(clean(proposal(ring).logits, 6) > 0, ring)
    speck = rectangle(4, 4, 5, 6)
    np.testing.assert_array_equal(clean(proposal(speck).logits, 6) > 0, speck)


@settings(max_examples=40, deadline=None)
@given(LOGITS)
def test_stability_is_a_share_and_one_for_confident_logits(logits: np.ndarray) -> None:
    assert 0 <= stability(logits) <= 1
    confident = np.where(logits > 0, 5.0, -5.0)
    assert stability(confident) == (1.0 if (confident > 0).any() else 0.0)


def test_two_clicks_on_two_objects_are_combined_to_their_union() -> None:
    left, right = rectangle(2, 2, 9, 9), rectangle(2, 15, 9, 25)
    (union,) = combine([[proposal(left, 0.8)], [proposal(right, 0.6)]], [], [(4, 4), (4, 20)], [])
    np.testing.assert_array_equal(union.cells, left | right)
    assert union.predicted_iou == 0.6


def test_a_negative_click_removes_what_it_selects_and_keeps_the_rest() -> None:
    whole, part = rectangle(2, 2, 12, 28), rectangle(2, 20, 12, 28)
    (rest,) = combine([[proposal(whole)]], [[proposal(whole, 0.9), proposal(part, 0.5)]], [(4, 4)], [(4, 24)])
    np.testing.assert_array_equal(rest.cells, whole & ~part)
    assert obeyed(rest.cells, [(4, 4)], [(4, 24)]) == 2


def test_a_negative_click_never_removes_a_positive_one() -> None:
    whole = rectangle(2, 2, 12, 28)
    (rest,) = combine([[proposal(whole)]], [[proposal(whole)]], [(4, 4)], [(4, 24)])
    np.testing.assert_array_equal(rest.cells, whole)


def test_the_parent_is_the_smallest_larger_mask_that_holds_it() -> None:
    masks = [rectangle(0, 0, 20, 30), rectangle(4, 4, 6, 6), rectangle(2, 2, 12, 12), rectangle(14, 14, 18, 28)]
    shared = intersections([view([proposal(m) for m in masks])])
    assert parents(shared, [int(m.sum()) for m in masks], CandidateOptions()) == [None, 2, 0, 0]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_mask_half_outside_another_has_no_parent(share: float) -> None:
    inner = rectangle(4, 8, 8, 12)
    outer = rectangle(0, 8 if share == 1.0 else 10, 20, 30)
    sizes = [int(inner.sum()), int(outer.sum())]
    shared = intersections([view([proposal(inner), proposal(outer)])])
    assert parents(shared, sizes, CandidateOptions())[0] == (1 if share == 1.0 else None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_intersections_of_two_crops_are_those_of_the_masks_in_the_photo(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = read_model_config("tiny")
    whole, window = Frame.of((128, 128), config), Frame.of((128, 128), config, (32, 48, 96, 112))
    views = []
    for frame in (whole, window):
        coarse = rng.normal(0, 1, (2, 6, 6)).astype(np.float32)
        logits = [cv2.resize(of, frame.logits[::-1], interpolation=cv2.INTER_CUBIC) for of in coarse]
        views.append(CropPrediction(frame, PromptCells((), (), ()), tuple(Proposal(m, 0, 3, 0.5, 0.5) for m in logits)))
    masks = np.zeros((4, 128, 128), bool)
    for mask, (frame, p) in zip(masks, [(v.frame, p) for v in views for p in v.proposals], strict=True):
        crop, (x0, y0, x1, y1) = frame.mask(p.logits)
        mask[y0:y1, x0:x1] = crop
    flat = masks.reshape(4, -1).astype(np.float32)
    expected, shared = flat @ flat.T, intersections(views)
    np.testing.assert_allclose(shared, expected, atol=0.06 * 64 * 64)  # cells follow a border less closely than pixels
    np.testing.assert_allclose(shared, shared.T)
