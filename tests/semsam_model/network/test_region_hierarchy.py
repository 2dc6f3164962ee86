"""The hierarchy of regions: a tree over superpixels, the same each time, in the frame of the mask logits."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.network.merge_cost import MEASURED, PLAIN, LearnedCost, PlainCost
from semsam_model.network.region_hierarchy import RegionHierarchy, region_hierarchy

CHANNELS = 5


def learned_cost(seed: int = 0) -> LearnedCost:
    rng = np.random.default_rng(seed)
    shapes = (CHANNELS, 2), (CHANNELS, 3), (3 + MEASURED, 4), (4,), (4,), ()
    return LearnedCost(*(np.asarray(rng.normal(size=shape), np.float32) for shape in shapes))


def photo(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy photo and noisy mask features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(CHANNELS, -(-height // 4), -(-width // 4))).astype(np.float32)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), features


def hierarchy(height: int, width: int, seed: int, cost: PlainCost | LearnedCost = PLAIN) -> RegionHierarchy:
    pixels, features = photo(height, width, seed)
    return region_hierarchy(pixels, cost.features_of(features), cost)


def flat(*rectangles: tuple[int, int, int, int, int], size: tuple[int, int] = (128, 160)) -> RegionHierarchy:
    """Of a grey photo with rectangles x0, y0, x1, y1 of some shade; the features say nothing."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for x0, y0, x1, y1, shade in rectangles:
        pixels[y0:y1, x0:x1] = (shade, 255 - shade, 40)
    return region_hierarchy(pixels, np.ones((CHANNELS, size[0] // 4, size[1] // 4), np.float32))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 9), st.sampled_from([PLAIN, learned_cost()]))
def test_superpixels_partition_the_photo_and_every_region_contains_its_children(
    height: int, width: int, seed: int, cost: PlainCost | LearnedCost
) -> None:
    tree = hierarchy(height, width, seed, cost)
    cells = -(-height // 4), -(-width // 4)
    assert tree.superpixels.shape == (3 * cells[0], 3 * cells[1])
    assert set(np.unique(tree.superpixels)) == set(range(len(tree.leaf)))
    assert len(tree.parent) == 2 * len(tree.leaf) - 1
    assert tree.parent[0] == -1 and tree.mask(0).all()
    children = np.arange(1, len(tree.parent))
    parents = tree.parent[children]
    assert (parents < children).all()
    assert (tree.first[parents] <= tree.first[children]).all() and (tree.last[children] <= tree.last[parents]).all()
    assert (tree.height[parents] >= tree.height[children]).all()
    assert (np.bincount(parents, minlength=1) % 2 == 0).all(), "two children, or none"
    sums = np.bincount(parents, tree.area[children])
    inner = np.unique(parents)
    np.testing.assert_array_equal(sums[inner], tree.area[inner])


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 150), st.integers(8, 150), st.integers(0, 9), st.data())
def test_the_regions_under_a_pixel_hold_it_and_each_other(
    height: int, width: int, seed: int, data: st.DataObject
) -> None:
    tree = hierarchy(height, width, seed)
    row = data.draw(st.integers(0, tree.superpixels.shape[0] - 1))
    column = data.draw(st.integers(0, tree.superpixels.shape[1] - 1))
    masks = [tree.mask(node) for node in tree.ancestors(row, column)]
    assert all(mask[row, column] for mask in masks)
    assert all((outer | inner == outer).all() for inner, outer in pairwise(masks))
    assert masks[-1].all()
    for node, mask in zip(tree.ancestors(row, column), masks, strict=True):
        assert tree.area[node] == np.count_nonzero(mask)
        rows, columns = np.nonzero(mask)
        assert tree.boxes[node].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert tree.share(node).sum() * 9 == pytest.approx(tree.area[node])


def test_the_same_photo_gives_the_same_tree() -> None:
    one, other = hierarchy(200, 150, 4), hierarchy(200, 150, 4)
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_the_tree_of_a_square_photo_of_512_pixels_takes_less_than_a_megabyte() -> None:
    tree = hierarchy(512, 512, 0)
    assert tree.nbytes == sum(getattr(tree, field.name).nbytes for field in fields(tree))
    assert len(tree.leaf) >= 300 and tree.nbytes <= 1 << 20


def test_flat_rectangles_are_regions_to_the_pixel_and_persist() -> None:
    rectangles = (16, 24, 64, 88, 10), (96, 8, 144, 56, 200), (104, 16, 120, 32, 60)
    tree = flat(*rectangles)
    for x0, y0, x1, y1, _ in rectangles[:1] + rectangles[2:]:
        drawn = np.zeros(tree.superpixels.shape, bool)
        drawn[y0 * 3 // 4 : y1 * 3 // 4, x0 * 3 // 4 : x1 * 3 // 4] = True
        nodes = tree.ancestors((y0 + y1) * 3 // 8, (x0 + x1) * 3 // 8)
        found = nodes[tree.persistence(nodes).argmax()]
        np.testing.assert_array_equal(tree.mask(found), drawn)


def test_the_border_of_a_rectangle_is_stronger_than_what_lies_inside_it() -> None:
    tree = flat((16, 24, 64, 88, 10))
    around = np.zeros((32, 40), bool)
    around[6:22, 4:16] = True
    beside = np.zeros((32, 40), bool)
    beside[6:22, 24:36] = True
    on_border, on_nothing = tree.strength_along([around, beside])
    assert on_border > 0.5 > on_nothing


def test_a_learned_cost_comes_back_from_its_arrays_and_refuses_others() -> None:
    cost = learned_cost()
    again = LearnedCost.from_arrays(cost.to_arrays(), CHANNELS)
    for name, array in cost.to_arrays().items():
        np.testing.assert_array_equal(array, again.to_arrays()[name])
    with pytest.raises(ValueError, match="borders: output is missing"):
        LearnedCost.from_arrays({k: v for k, v in cost.to_arrays().items() if k != "output"}, CHANNELS)
    with pytest.raises(ValueError, match=r"borders: principal has shape \(5, 2\), expected \(6, 2\)"):
        LearnedCost.from_arrays(cost.to_arrays(), 6)
