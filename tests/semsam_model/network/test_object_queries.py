"""Object queries: what they are made of, and that clicks do not depend on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.errors import ConfigError
from semsam_model.inference.object_queries import (
    predict_object_queries,
)
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.network.object_queries import choose_seeds, distinct_proposals, query_logits
from semsam_model.types import Click
from tests.semsam_model.networks import QUERIES, structured

TINY = read_model_config("tiny")
SHAPES = ((1, 1), (2, 2), (4, 4), (8, 8))


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(QUERIES)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (200, 30, 30)
    return pixels


def test_seeds_are_local_maxima_before_anything_else() -> None:
    scores = torch.full((sum(h * w for h, w in SHAPES), 3), -9.0)
    fine = scores[-64:].view(8, 8, 3)
    fine[2, 2, 1], fine[2, 3, 1], fine[6, 6, 0] = 5.0, 4.0, 1.0
    seeds = choose_seeds(scores, SHAPES, 2).tolist()
    assert seeds == [21 + 2 * 8 + 2, 21 + 6 * 8 + 6]


def test_of_proposals_that_are_alike_the_best_remains_and_empty_ones_do_not() -> None:
    logits = torch.full((4, 8, 8), -1.0)
    logits[0, :4], logits[1, :4], logits[2, 4:] = 1.0, 1.0, 1.0
    scores = torch.tensor([[0.0, 0, 0], [0, 2.0, 0], [1.0, 0, 0], [9.0, 0, 0]])
    assert distinct_proposals(scores, logits.flatten(1), 10).tolist() == [1, 2]
    assert distinct_proposals(scores, logits.flatten(1), 1).tolist() == [1]


def test_an_untrained_query_is_the_click_that_proposed_it(model: SemanticSAM, photo: np.ndarray) -> None:
    embedding = model.encode(photo)
    queries = predict_object_queries(model, embedding)
    assert 1 <= len(queries.logits) <= QUERIES.generic_queries
    with torch.inference_mode():
        output = model.object_queries(embedding.features, 0)
    proposed = output.proposals.logits[output.chosen].numpy()
    assert np.allclose(queries.logits, proposed[:, : queries.logits.shape[1], : queries.logits.shape[2]], atol=1e-4)


def test_a_trusted_box_draws_itself_where_the_features_say_nothing(model: SemanticSAM, photo: np.ndarray) -> None:
    with torch.inference_mode():
        output = model.object_queries(model.encode(photo).features, 0)
    box = dataclasses.replace(
        output,
        mask_embedding=torch.zeros(1, QUERIES.width),
        boxes=torch.tensor([[0.5, 0.5, 0.5, 0.25]]),
        box_trust=torch.tensor([4.0]),
    )
    logits = query_logits(box, torch.ones(QUERIES.width, 16, 16))
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[6:10, 4:12] = True
    assert torch.equal(logits[0] > 0, wanted)
    assert logits.max() <= 4


def test_a_model_without_queries_says_so(photo: np.ndarray) -> None:
    plain = build_model(TINY).eval()
    with pytest.raises(ConfigError, match="generic_queries: 0"):
        predict_object_queries(plain, plain.encode(photo))


def test_clicks_do_not_know_of_queries(model: SemanticSAM, photo: np.ndarray) -> None:
    plain = build_model(TINY).eval()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("generic.")}
    plain.load_state_dict(state)
    ours, theirs = (m.decode(m.encode(photo), [Click(60, 40)]) for m in (model, plain))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.object_embedding, theirs.object_embedding)


@pytest.mark.parametrize("name", ["swin_t", "swin_l", "swin_l_many2one"])
def test_published_models_have_none(name: str) -> None:
    assert read_model_config(name).generic_queries == 0


def test_queries_go_through_a_weights_file(model: SemanticSAM, photo: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors", model, QUERIES)
    again, _ = load(tmp_path / "w.safetensors")
    ours, theirs = (predict_object_queries(m, m.encode(photo)) for m in (model, again))
    assert np.array_equal(ours.logits, theirs.logits)
    assert np.array_equal(ours.kinds, theirs.kinds)
