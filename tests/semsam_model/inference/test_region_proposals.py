"""Nodes of the photo's hierarchy of regions as proposals, drawn in the photo's own pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.inference.candidates import PromptCells, Proposal, stability
from semsam_model.inference.proposals import predict_proposals
from semsam_model.inference.region_proposals import NO_TOKEN, obeying, region_proposals
from semsam_model.network.frame import Frame
from semsam_model.network.model import ImageEmbedding
from semsam_model.network.region_hierarchy import RegionHierarchy, region_hierarchy
from semsam_model.types import Box, Click, Prompt
from tests.semsam_model.networks import structured

TINY = read_model_config("tiny")
CONFIG = replace(TINY, regions=6)
SIZE = (96, 128)  # a photo that the tiny model sees at its own size
OUTER, INNER = (16, 16, 96, 80), (32, 32, 64, 64)  # x0, y0, x1, y1


def drawing(scale: int = 1) -> np.ndarray:
    """A rectangle in another on grey, `scale` times as large."""
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    for (x0, y0, x1, y1), colour in ((OUTER, (200, 40, 40)), (INNER, (200, 110, 40))):
        pixels[y0:y1, x0:x1] = colour
    return pixels.repeat(scale, 0).repeat(scale, 1)


def tree(scale: int = 1) -> tuple[Frame, RegionHierarchy]:
    pixels = drawing(scale)
    frame = Frame.of((pixels.shape[0], pixels.shape[1]), CONFIG)
    return frame, region_hierarchy(frame.resize(pixels), np.ones((3, *frame.logits), np.float32))


def covers(mask: np.ndarray, box: tuple[int, int, int, int], scale: int) -> bool:
    """Whether the mask is the rectangle, give or take an outline of half a cell."""
    x0, y0, x1, y1 = (side * scale for side in box)
    drawn = np.zeros(mask.shape, bool)
    drawn[y0:y1, x0:x1] = True
    return bool((mask & drawn).sum() >= 0.93 * (mask | drawn).sum())


def masks(frame: Frame, proposals: list[Proposal]) -> list[np.ndarray]:
    return [frame.enlarge(p.logits) > 0 for p in proposals]


@pytest.mark.parametrize("scale", [1, 3])
def test_a_click_gets_the_nested_rectangles_that_hold_it_where_they_are_in_the_photo(scale: int) -> None:
    frame, hierarchy = tree(scale)
    found = masks(frame, region_proposals(frame, hierarchy, Prompt((Click(48 * scale, 48 * scale),)), 6))
    assert all(mask[46 * scale : 50 * scale, 46 * scale : 50 * scale].any() for mask in found)
    for box in (OUTER, INNER):
        (same,) = [mask for mask in found if covers(mask, box, scale)]
        rows, columns = np.nonzero(same)
        middle = (box[0] + box[2]) / 2 * scale, (box[1] + box[3]) / 2 * scale
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(middle, abs=0.5 * scale)


def test_no_mask_holds_a_negative_click_where_one_without_it_holds_the_positive() -> None:
    frame, hierarchy = tree()
    found = masks(frame, region_proposals(frame, hierarchy, Prompt((Click(48, 48), Click(80, 48, positive=False))), 6))
    assert any(covers(mask, INNER, 1) for mask in found)
    assert not any(mask[48, 80] for mask in found)


def test_several_clicks_are_held_by_every_mask() -> None:
    frame, hierarchy = tree()
    found = masks(frame, region_proposals(frame, hierarchy, Prompt((Click(48, 48), Click(80, 48))), 6))
    assert any(covers(mask, OUTER, 1) for mask in found)
    assert all(mask[48, 48] and mask[48, 80] for mask in found)


def test_a_box_gets_the_rectangle_that_fills_it() -> None:
    frame, hierarchy = tree()
    found = region_proposals(frame, hierarchy, Prompt((), (Box(30, 33, 66, 65),)), 6)
    assert any(covers(mask, INNER, 1) for mask in masks(frame, found))


@pytest.mark.parametrize(
    ("clicks", "wanted"),
    [
        ((Click(48, 48), Click(80, 48, positive=False)), INNER),
        ((Click(80, 48), Click(48, 48)), OUTER),
    ],
)
def test_a_mask_obeys_its_clicks_afterwards(clicks: tuple[Click, ...], wanted: tuple[int, int, int, int]) -> None:
    frame, hierarchy = tree()
    x0, y0, x1, y1 = (side // 4 for side in (OUTER if wanted is INNER else INNER))
    logits = np.full(frame.logits, -4, np.float32)
    logits[y0:y1, x0:x1] = 4
    prompt = Prompt(clicks)
    cells = PromptCells(
        *(tuple(frame.cell_of(c.x, c.y) for c in of) for of in (prompt.positives, prompt.negatives)), boxes=()
    )
    before = Proposal(logits, 0, 3, 0.5, stability(logits))
    after = obeying(frame, hierarchy, prompt, cells, before)
    assert cells.obeyed(before) < cells.obeyed(after) == 2


def test_the_model_proposes_regions_beside_its_own_masks_and_older_configs_do_not() -> None:
    network = structured(CONFIG)
    pixels, prompt = drawing(), Prompt((Click(48, 48),))
    embedding = network.encode(pixels)
    assert embedding.hierarchy is not None
    assert embedding.nbytes == embedding.features.nbytes + embedding.hierarchy.nbytes
    assert embedding.to("cpu").hierarchy is embedding.hierarchy
    found = [p for _, p in predict_proposals(network, embedding, prompt).pairs]
    own = [p for p in found if p.token != NO_TOKEN]
    assert 0 < len(found) - len(own) <= 6
    assert all(p.persistence is None for p in own)
    assert all(p.persistence is not None and 0 <= p.persistence <= 1 for p in found if p.token == NO_TOKEN)
    assert all(0 <= p.border <= 1 for p in found)
    network.config = TINY
    bare: ImageEmbedding = network.encode(pixels)
    assert bare.hierarchy is None
    alone = [p for _, p in predict_proposals(network, bare, prompt).pairs]
    for with_regions, without in zip(own, alone, strict=True):
        np.testing.assert_array_equal(with_regions.logits, without.logits)
    assert torch.equal(bare.features.mask_features, embedding.features.mask_features)
