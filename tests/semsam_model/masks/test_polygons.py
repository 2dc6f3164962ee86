"""Masks -> polygons -> masks."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.errors import DataError
from semsam_model.masks.geometry import crop_mask, iou
from semsam_model.masks.polygons import (
    DEFAULT_MAX_VERTICES,
    decode_polygons,
    encode_polygon,
    join_rings,
    mask_to_rings,
)
from tests.semsam_model.masks.shapes import any_mask, blobs, disc

quick = settings(max_examples=60, deadline=None)


@quick
@given(any_mask | blobs())
def test_outlines_within_budget_are_exact_and_joined_too(mask: np.ndarray) -> None:
    crop, bbox = crop_mask(mask)
    rings = mask_to_rings(crop, bbox, max_vertices=20_000)
    assert np.array_equal(decode_polygons([ring.points for ring in rings], mask.shape), mask)
    assert np.array_equal(decode_polygons([join_rings(rings)], mask.shape), mask)


@quick
@given(any_mask | blobs())
def test_rings_are_one_for_each_part_and_each_hole(mask: np.ndarray) -> None:
    rings = mask_to_rings(*crop_mask(mask), max_vertices=20_000)
    parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    outside = cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=8)[0] - 1
    assert sum(not ring.hole for ring in rings) == parts
    assert sum(ring.hole for ring in rings) == outside - 1
    for ring in rings:  # y points down, so a positive shoelace sum is clockwise as seen
        x, y = ring.points.T
        assert (x @ np.roll(y, -1) - y @ np.roll(x, -1) < 0) == ring.hole


@quick
@given(blobs(), st.integers(12, 60))
def test_a_polygon_keeps_its_vertex_budget_and_the_photo(mask: np.ndarray, budget: int) -> None:
    points = encode_polygon(*crop_mask(mask), max_vertices=budget)
    assert 3 <= len(points) <= budget
    assert points.min() >= 0 and (points <= np.array(mask.shape[::-1])).all()
    assert decode_polygons([points], mask.shape).any()


@quick
@given(st.floats(60, 140), st.floats(60, 140), st.floats(35, 55), st.floats(8, 20))
def test_a_ring_with_a_hole_and_an_island_survives_sixty_vertices(
    cx: float, cy: float, radius: float, hole: float
) -> None:
    mask = disc(203, 301, cx, cy, radius) & ~disc(203, 301, cx + 4, cy - 3, hole) | disc(203, 301, 240, 150, 25)
    points = encode_polygon(*crop_mask(mask), max_vertices=60)
    back = decode_polygons([points], mask.shape)
    assert iou(mask, back) > 0.95
    assert not back[int(cy - 3), int(cx + 4)] and back[150, 240]


@quick
@given(st.integers(3, 60), st.integers(3, 60), st.integers(30, 60), st.integers(30, 60))
def test_a_simplified_polygon_is_not_shifted(x: int, y: int, width: int, height: int) -> None:
    mask = np.zeros((131, 127), bool)
    mask[y : y + height, x : x + width] = disc(height, width, width / 2, height / 2, min(width, height) / 2)
    back = decode_polygons([encode_polygon(*crop_mask(mask), max_vertices=24)], mask.shape)
    for axis in (0, 1):
        assert abs(np.nonzero(mask)[axis].mean() - np.nonzero(back)[axis].mean()) < 0.35


def test_a_mask_of_the_whole_photo_is_its_four_corners() -> None:
    points = encode_polygon(*crop_mask(np.ones((5, 7), bool)))
    assert sorted(map(tuple, points.tolist())) == [(0, 0), (0, 5), (7, 0), (7, 5)]


def test_parts_and_holes_are_joined_by_the_shortest_bridges() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:25, 5:25] = True
    mask[10:13, 9:14] = False  # nearest vertices: (9, 10) and (5, 5)
    mask[2:4, 27:30] = True  # nearest vertices: (27, 4) and (25, 5)
    rings = mask_to_rings(*crop_mask(mask))
    joined = join_rings(rings)

    def length(points: np.ndarray) -> float:
        return float(np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1).sum())

    bridges = length(joined) - sum(length(ring.points) for ring in rings)
    assert np.isclose(bridges, 2 * (np.hypot(4, 5) + np.hypot(2, 1)))


def large_blob() -> np.ndarray:
    """bool (2100, 2800), wavy, with a hole, touching the left edge."""
    y, x = np.mgrid[:2100, :2800]
    angle = np.arctan2(y - 1000, x - 900)
    return (np.hypot(y - 1000, x - 900) < 950 + 60 * np.sin(9 * angle)) & (np.hypot(y - 900, x - 1000) > 200)


@pytest.mark.slow
def test_a_large_mask_over_budget_stays_close_and_reaches_its_box() -> None:
    mask = large_blob()
    crop, bbox = crop_mask(mask)
    points = encode_polygon(crop, bbox)
    assert len(points) <= DEFAULT_MAX_VERTICES
    assert iou(mask, decode_polygons([points], mask.shape)) > 0.99
    assert np.abs(np.array([*points.min(axis=0), *points.max(axis=0)]) - bbox).max() < 3


@pytest.mark.parametrize("budget", [16, 40, 90, 200])
def test_strides_end_at_the_tolerance_that_single_steps_find(budget: int) -> None:
    crop, bbox = crop_mask(large_blob()[::4, ::4])
    found, wanted = (mask_to_rings(crop, bbox, budget, stride=stride) for stride in (5, 1))
    assert len(found) == len(wanted)
    for ring, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ring.points, other.points)


def test_an_empty_mask_has_no_outline() -> None:
    empty = crop_mask(np.zeros((5, 7), bool))
    assert mask_to_rings(*empty) == []
    assert encode_polygon(*empty).shape == (0, 2)


def test_a_thin_diagonal_over_budget_keeps_some_area() -> None:
    line = np.eye(400, dtype=bool) | np.eye(400, k=1, dtype=bool)
    points = encode_polygon(*crop_mask(line), max_vertices=20)
    assert len(points) <= 20
    assert iou(line, decode_polygons([points], line.shape)) > 0.3


@quick
@given(any_mask | blobs())
def test_even_odd_filling_gives_the_same_mask_as_non_zero(mask: np.ndarray) -> None:
    points = encode_polygon(*crop_mask(mask), max_vertices=20_000)
    if not len(points):
        return
    # Even-odd by brute force, at every pixel centre.
    inside = np.zeros(mask.shape, bool)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    for ends in zip(points.tolist(), np.roll(points, -1, axis=0).tolist(), strict=True):
        (ax, ay), (bx, by) = sorted(ends, key=lambda end: end[1])
        if ay != by:
            inside ^= (y > ay) & (y < by) & (x > ax + (y - ay) * (bx - ax) / (by - ay))
    assert np.array_equal(inside, mask)


@quick
@given(st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60)), min_size=3, max_size=3))
def test_a_triangle_holds_the_pixels_whose_centre_it_holds(corners: list[tuple[float, float]]) -> None:
    (ax, ay), (bx, by), (cx, cy) = corners
    y, x = np.mgrid[:40, :43] + 0.5
    sides = np.stack(
        [
            (bx - ax) * (y - ay) - (by - ay) * (x - ax),
            (cx - bx) * (y - by) - (cy - by) * (x - bx),
            (ax - cx) * (y - cy) - (ay - cy) * (x - cx),
        ]
    )
    clear = (abs(sides) > 1e-6).all(axis=0)
    expected = (sides > 0).all(axis=0) | (sides < 0).all(axis=0)
    got = decode_polygons([np.array(corners)], (40, 43))
    assert np.array_equal(got[clear], expected[clear])


@pytest.mark.parametrize("points", [[[1, 2, 3]], [[1, float("nan")]], [1, 2], [[1, 2], [3]], [["a", "b"]]])
def test_a_malformed_polygon_is_refused(points: list) -> None:
    with pytest.raises(DataError, match="polygon"):
        decode_polygons([points], (5, 5))  # type: ignore[list-item]
