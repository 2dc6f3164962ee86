"""Masks that a text names: of object queries, else of a grid of clicks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.inference.candidates import Proposal
from semsam_model.inference.object_queries import (
    candidates_by_word,
    predict_object_queries,
)
from semsam_model.inference.text_prompt import by_clicks, by_queries, candidates_by_text, grid_proposals
from semsam_model.types import Candidate, LabelSet
from tests.semsam_model.inference.queries import embed, invented
from tests.semsam_model.networks import QUERIES, structured

TINY = read_model_config("tiny")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (200, 30, 30)
    return pixels


def words(*values: str) -> LabelSet:
    return LabelSet(values, (None,) * len(values), embed(values))


def test_a_word_has_the_masks_that_it_fits_better_than_the_rest_of_the_list() -> None:
    queries, frame = invented()
    wheels = by_queries(queries, frame, words("wheel", "car"))
    assert [(c.label, c.bbox[:2]) for c in wheels] == [("wheel", (24, 56)), ("wheel", (80, 96))]
    alone = candidates_by_word(queries, frame, ["wheel"], embed)["wheel"]
    assert [c.score for c in wheels] == [c.score for c in alone[:2]]  # scores do not depend on the list
    assert by_queries(queries, frame, words("moon", "car", "wheel")) == []
    (of_car,) = by_queries(queries, frame, words("wheel", "car"), words("car", "wheel"))
    assert of_car.bbox[:2] == (24, 56)
    assert by_queries(queries, frame, words("wheel", "car"), words("moon", "car")) == []


@pytest.mark.slow
def test_what_no_query_is_sure_of_is_looked_for_with_clicks(photo: np.ndarray) -> None:
    named, plain = (structured(dataclasses.replace(config, name_features=True)) for config in (QUERIES, TINY))
    assert named.generic is not None
    embedding = named.encode(photo)
    grid, frame = grid_proposals(named, embedding), embedding.frame
    vector = np.random.default_rng(0).normal(size=16).astype(np.float32)
    lists = [LabelSet(("a", "b"), (None, None), np.stack((v, -v))) for v in (vector, -vector)]
    for unsure in (True, False):
        if not unsure:
            with torch.no_grad():
                named.generic.query_score.layers[-1].get_parameter("bias").add_(6)
        queries = predict_object_queries(named, embedding)
        sure = [by_queries(queries, frame, labels) for labels in lists]
        assert any(sure) != unsure
        for labels, by_query in zip(lists, sure, strict=True):
            found = drawn(candidates_by_text(named, embedding, labels, 0.0))
            assert found == drawn(by_query or by_clicks(grid, frame, labels, 0.0))
    embedding = plain.encode(photo)
    for labels in lists:
        found = drawn(by_clicks(grid_proposals(plain, embedding), embedding.frame, labels, 0.0))
        assert drawn(candidates_by_text(plain, embedding, labels, 0.0)) == found


def test_clicks_find_a_part_only_inside_a_larger_whole() -> None:
    """A big mask named car, a small one named wheel in it, and one beside it."""
    masks = np.zeros((3, 32, 32), bool)
    masks[0, 4:20, 4:28] = masks[1, 14:20, 6:12] = masks[2, 24:30, 20:26] = True
    names = embed(["car", "wheel", "wheel"])
    frame = invented()[1]
    grid = [
        Proposal(np.where(mask, 9.0, -9.0).astype(np.float32), 3, 1, 0.8, 1.0, name_embedding=np.stack((n, n)))
        for mask, n in zip(masks, 8 * names, strict=True)
    ]
    wheel, car = words("wheel", "car"), words("car", "wheel")
    assert {c.bbox[:2] for c in by_clicks(grid, frame, wheel, 0.4)} == {(24, 56), (80, 96)}
    (of_car,) = by_clicks(grid, frame, wheel, 0.4, car)
    assert of_car.bbox[:2] == (24, 56) and of_car.label == "wheel"
    assert by_clicks(grid, frame, car, 0.4, wheel) == by_clicks(grid, frame, car, 0.4, car) == []
    assert by_clicks(grid, frame, words("moon", "car", "wheel"), 0.4) == []


def drawn(candidates: list[Candidate]) -> list[object]:
    return [(c.bbox, c.score, c.label, c.crop.tobytes()) for c in candidates]
