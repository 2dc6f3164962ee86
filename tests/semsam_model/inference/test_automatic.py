"""The grid of clicks: independent of how it is cut into batches, and what it keeps of masks that repeat each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from semsam_model.config import read_model_config
from semsam_model.errors import ConfigError
from semsam_model.inference.automatic import PUBLISHED, AutomaticOptions, GridMask, automatic_masks, grid_masks
from semsam_model.inference.candidates import Proposal
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import LEVEL_TOKENS, Click
from tests.semsam_model.networks import structured

LOOSE = AutomaticOptions(grid=5, least_iou=-10, least_stability=0, min_region=1)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(read_model_config("tiny"))


@pytest.fixture(scope="module")
def embedding(model: SemanticSAM) -> ImageEmbedding:
    coarse = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    return model.encode(np.kron(coarse, np.ones((15, 17, 1), np.uint8)))


def same(a: Sequence[GridMask], b: Sequence[GridMask]) -> bool:
    """But for what the order of sums in a product of matrices may change: a pixel on an outline."""
    return len(a) == len(b) and all(
        x.click == y.click
        and x.candidate.token == y.candidate.token
        and np.count_nonzero(x.candidate.mask ^ y.candidate.mask) <= 2
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("batch", [1, 7])
def test_the_size_of_a_batch_changes_nothing(model: SemanticSAM, embedding: ImageEmbedding, batch: int) -> None:
    whole = automatic_masks(model, embedding, LOOSE)
    assert len(whole) > 5
    assert same(whole, automatic_masks(model, embedding, replace(LOOSE, batch=batch)))


def test_levels_and_the_budget_are_kept(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    whole = automatic_masks(model, embedding, LOOSE)
    few = automatic_masks(model, embedding, replace(LOOSE, most=3))
    assert len(few) == 3 and same(few, whole[:3])
    second = automatic_masks(model, embedding, replace(LOOSE, levels=(2,)))
    assert second and {f.candidate.level for f in second} == {2}
    assert [f.candidate.rank for f in whole] == list(range(1, len(whole) + 1))
    with pytest.raises(ConfigError, match="expected some of 1 to 6"):
        AutomaticOptions(levels=(7,))


def test_what_is_unsure_or_unsteady_is_left_out(model: SemanticSAM, embedding: ImageEmbedding) -> None:
    whole = automatic_masks(model, embedding, LOOSE)
    middle = float(np.median([f.candidate.predicted_iou for f in whole]))
    surer = automatic_masks(model, embedding, replace(LOOSE, least_iou=middle))
    assert surer and all(f.candidate.predicted_iou > middle for f in surer)
    middle = float(np.median([f.candidate.stability for f in whole]))
    stable = automatic_masks(model, embedding, replace(LOOSE, least_stability=middle))
    assert stable and all(f.candidate.stability >= middle for f in stable)
    assert min(f.candidate.stability for f in whole) < middle


def drawn(cells: np.ndarray, token: int, predicted_iou: float) -> Proposal:
    logits = np.where(cells, 8.0, -8.0).astype(np.float32)
    return Proposal(logits, token, LEVEL_TOKENS.index(token) + 1, predicted_iou, 1.0)


def test_a_part_that_fills_the_box_of_its_whole_survives_masks_and_not_boxes(embedding: ImageEmbedding) -> None:
    h, w = embedding.frame.logits
    whole = np.zeros((h, w), bool)
    whole[2:18, 2:18] = True
    ring = whole.copy()
    ring[5:15, 5:15] = False

    def decode(clicks: Sequence[Click]) -> list[list[Proposal]]:
        return [[drawn(whole, 3, 0.95), drawn(ring, 1, 0.9), drawn(whole, 2, 0.8)] for _ in clicks]

    by_masks = grid_masks(decode, embedding.frame, replace(LOOSE, grid=2))
    assert [f.candidate.token for f in by_masks] == [3, 1]
    assert by_masks[1].candidate.parent == 1
    by_boxes = grid_masks(decode, embedding.frame, replace(PUBLISHED, grid=2))
    assert [f.candidate.token for f in by_boxes] == [3]


def test_masks_of_one_level_repeat_each_other_sooner_than_masks_of_two(embedding: ImageEmbedding) -> None:
    h, w = embedding.frame.logits
    first, second = np.zeros((h, w), bool), np.zeros((h, w), bool)
    first[2:18, 2:18] = second[2:18, 2:15] = True  # IoU 0.81

    def kept(tokens: tuple[int, int]) -> int:
        proposals = [drawn(first, tokens[0], 0.9), drawn(second, tokens[1], 0.8)]
        return len(grid_masks(lambda _: [proposals], embedding.frame, replace(LOOSE, grid=1)))

    assert kept((3, 3)) == 1
    assert kept((3, 1)) == 2
