"""Regions of the photo's hierarchy beside the masks of a grid of clicks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from semsam_model.config import read_model_config
from semsam_model.inference.automatic import PUBLISHED, AutomaticOptions, automatic_masks
from semsam_model.inference.candidates import Proposal
from semsam_model.inference.region_proposals import NO_TOKEN
from semsam_model.inference.uncovered_regions import COVERED, uncovered_regions
from semsam_model.network.model import build_model
from semsam_model.network.region_hierarchy import RegionHierarchy, region_hierarchy

TINY = read_model_config("tiny")

RECTANGLES = (16, 16, 48, 80, (200, 40, 40)), (64, 12, 112, 40, (40, 160, 40)), (68, 56, 116, 88, (30, 60, 220))
NOTHING_SURE = AutomaticOptions(grid=2, least_iou=1e9)  # no mask of the network is kept


def drawing() -> np.ndarray:
    """Rectangles x0, y0, x1, y1 of flat colours on grey."""
    pixels = np.full((96, 128, 3), 90, np.uint8)
    for x0, y0, x1, y1, colour in RECTANGLES:
        pixels[y0:y1, x0:x1] = colour
    return pixels


def hierarchy() -> RegionHierarchy:
    return region_hierarchy(drawing(), np.ones((3, 24, 32), np.float32))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def drawn(number: int, size: tuple[int, int], step: int = 1) -> np.ndarray:
    x0, y0, x1, y1 = (side // step for side in RECTANGLES[number][:4])
    inside = np.zeros(size, bool)
    inside[y0:y1, x0:x1] = True
    return inside


def test_flat_rectangles_are_added_once_each() -> None:
    found = [p.cells for p in uncovered_regions(hierarchy(), [], 100)]
    for number in range(len(RECTANGLES)):
        assert sum(iou(cells, drawn(number, cells.shape, 4)) >= COVERED for cells in found) == 1


def test_a_region_that_a_mask_covers_is_not_added() -> None:
    tree = hierarchy()
    first = drawn(0, (24, 32), 4)
    logits = np.where(first, 9, -9).astype(np.float32)
    kept = Proposal(logits, 0, 1, predicted_iou=0.9, stability=1.0)
    found = [p.cells for p in uncovered_regions(tree, [kept], 100)]
    assert found and all(iou(cells, first) < COVERED for cells in found)
    assert len(found) == len(uncovered_regions(tree, [], 100)) - 1


def test_the_most_persistent_come_first_and_the_budget_is_kept() -> None:
    tree = hierarchy()
    every = [p.predicted_iou for p in uncovered_regions(tree, [], 100)]
    assert every == sorted(every, reverse=True)
    assert [p.predicted_iou for p in uncovered_regions(tree, [], 2)] == every[:2]
    assert uncovered_regions(tree, [], 0) == []


def test_a_grid_of_clicks_finds_what_the_network_does_not() -> None:
    model = build_model(replace(TINY, regions=6)).eval()
    found = automatic_masks(model, model.encode(drawing()), NOTHING_SURE)
    assert all(mask.click is None and mask.candidate.token == NO_TOKEN for mask in found)
    for number in range(len(RECTANGLES)):
        best = max(iou(mask.candidate.mask, drawn(number, mask.candidate.mask.shape)) for mask in found)
        assert best >= 0.9


def test_without_a_hierarchy_and_by_the_published_rule_nothing_is_added() -> None:
    model = build_model(replace(TINY, regions=6)).eval()
    embedding = model.encode(drawing())
    assert automatic_masks(model, replace(embedding, hierarchy=None), NOTHING_SURE) == []
    assert automatic_masks(model, embedding, replace(PUBLISHED, grid=2, least_iou=1e9)) == []
