"""Vectors of regions: comparable from photo to photo, and what they tell apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam_model.adaptation.region_features import region_features
from semsam_model.config import read_model_config
from semsam_model.network.model import SemanticSAM, build_model


@pytest.fixture(scope="module", params=[True, False], ids=["names", "no names"])
def model(request: pytest.FixtureRequest) -> SemanticSAM:
    torch.manual_seed(0)
    return build_model(replace(read_model_config("tiny"), name_features=request.param)).eval()


def photo(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)


def square(size: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_of_photos_of_any_size_have_one_length(model: SemanticSAM) -> None:
    lengths = set()
    for size in ((64, 96), (96, 64), (128, 128)):
        embedding = model.encode(photo(size))
        cells = embedding.frame.coverage(square(size, 16, 16, 24))
        rows = region_features(embedding, np.stack([cells, cells]), [])
        lengths.add(rows.shape)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(2, (5 + 2 * 0.49) ** 0.5), rel=1e-4)
    assert len(lengths) == 1


def test_a_mask_is_described_alone_as_in_company_of_others(model: SemanticSAM) -> None:
    embedding = model.encode(photo((96, 96)))
    cells = np.stack([embedding.frame.coverage(square((96, 96), 8 * i, 16, 24)) for i in range(4)])
    together = region_features(embedding, cells, [])
    for i in range(4):
        assert region_features(embedding, cells[i : i + 1], [])[0] == pytest.approx(together[i], abs=1e-5)


def test_nothing_is_said_about_an_empty_mask_and_nothing_is_wrong_with_a_tiny_one(model: SemanticSAM) -> None:
    embedding = model.encode(photo((96, 96)))
    empty, tiny = np.zeros((96, 96), bool), square((96, 96), 50, 50, 1)
    rows = region_features(embedding, np.stack([embedding.frame.coverage(m) for m in (empty, tiny)]), [])
    assert not rows[0].any() and np.isfinite(rows[1]).all() and rows[1].any()


def test_left_and_right_are_told_apart_and_so_is_the_place_in_the_enclosing_object(model: SemanticSAM) -> None:
    embedding = model.encode(photo((96, 96)))
    cells = np.stack([embedding.frame.coverage(square((96, 96), 36, left, 16)) for left in (20, 60)])
    whole = embedding.frame.coverage(square((96, 96), 10, 10, 76)) > 0.5
    apart = region_features(embedding, cells, [])
    inside = region_features(embedding, cells, [whole])
    assert cosine(*apart) < 0.999 and cosine(*inside) < cosine(*apart)
    assert np.abs(apart[0] - inside[0]).max() > 0.01
    larger_than_it = region_features(embedding, cells[:1], [cells[0] > 0.5])
    assert larger_than_it[0] == pytest.approx(apart[0], abs=1e-5), "a mask does not enclose itself"
