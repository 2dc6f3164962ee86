"""The losses of object queries: what they are held to, and what is left out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.vocabulary import NameTable
from semsam_model.network.model import SemanticSAM
from semsam_model.network.object_queries import query_logits
from semsam_model.training.losses.object_queries import (
    BOXES,
    IOU,
    MASKS,
    ObjectQueryLoss,
    ObjectQueryTargets,
    at_logits,
    object_query_loss,
    token_targets,
    with_names,
)
from semsam_model.training.prompts import mask_boxes
from tests.semsam_model.networks import QUERIES, masks_nothing, structured

TINY = read_model_config("tiny")
SHAPES = ((1, 1), (2, 2), (4, 4), (8, 8))


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(QUERIES)


def targets(*spans: tuple[int, int, int, int], kinds: tuple[int, ...] | None = None) -> ObjectQueryTargets:
    masks = torch.zeros(len(spans), 32, 32, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, spans, strict=True):
        mask[top:bottom, left:right] = True
    count = len(spans)
    return ObjectQueryTargets(
        masks,
        torch.from_numpy(mask_boxes(masks.numpy())),
        torch.tensor(kinds or (0,) * count),
        torch.full((count,), -1),
        torch.ones(3, dtype=torch.bool),
        torch.ones(count, 3, dtype=torch.bool),
    )


def test_every_mask_has_a_middle_at_a_level_of_its_size() -> None:
    shapes = ((2, 2), (4, 4), (8, 8), (16, 16))
    wanted = targets((0, 31, 0, 31), (4, 6, 9, 11), (0, 12, 20, 32), kinds=(0, 1, 2))
    levels = token_targets(wanted.masks, wanted.kinds, shapes).split([4, 16, 64, 256])
    positive = [[int((level[:, kind] == 1).sum()) for level in levels] for kind in range(3)]
    assert positive[0][0] > 0
    assert positive[0][3] == 0
    assert positive[1][:3] == [0, 0, 0]
    assert positive[1][3] >= 1
    assert positive[2][1] > 0
    elsewhere = token_targets(wanted.masks, wanted.kinds, shapes)
    assert set(elsewhere.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_what_is_not_annotated_is_no_mistake_where_annotation_is_not_complete(model: SemanticSAM) -> None:
    images = torch.randn(1, 3, 128, 128)
    features = model.features(images)
    output = model.object_queries(features, 0)
    wanted = targets((2, 20, 2, 20))
    nothing_else = dataclasses.replace(wanted, complete=torch.zeros(3, dtype=torch.bool))
    sure = dataclasses.replace(output, token_scores=output.token_scores + 9)
    losses = [
        [float(object_query_loss([o], [features], [t]).tokens.detach()) for o in (output, sure)]
        for t in (wanted, nothing_else)
    ]
    assert losses[0][1] > losses[0][0]
    assert losses[1][1] < losses[1][0]


@pytest.mark.parametrize("column", [MASKS, BOXES, IOU])
def test_a_mask_that_feeds_no_loss_adds_nothing_to_it(model: SemanticSAM, column: int) -> None:
    features = model.features(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    output = model.object_queries(features, 0)
    leaves = [v.detach().requires_grad_() for v in (output.token_scores, output.proposals.scores, output.scores)]
    proposals = dataclasses.replace(output.proposals, scores=leaves[1])
    output = dataclasses.replace(output, token_scores=leaves[0], proposals=proposals, scores=leaves[2])
    logits = query_logits(output, features.mask_features[0]).detach() > 0
    wanted = dataclasses.replace(targets((2, 20, 2, 20), (0, 32, 0, 32)), masks=logits[:2])  # what queries really find
    wanted = dataclasses.replace(wanted, boxes=torch.from_numpy(mask_boxes(wanted.masks.numpy())))
    supervised = wanted.supervised.clone()
    supervised[:, column] = False
    dumb = dataclasses.replace(wanted, supervised=supervised, complete=wanted.complete & (column != IOU))

    def loss(*held_to: ObjectQueryTargets) -> ObjectQueryLoss:
        return object_query_loss([output] * len(held_to), [features] * len(held_to), held_to)

    terms = {MASKS: ("mask_bce", "mask_dice"), BOXES: ("box",), IOU: ("tokens", "proposals", "queries")}
    alone, both, silent = loss(wanted).figures(), loss(wanted, dumb).figures(), loss(dumb).figures()
    for other, names in terms.items():
        for name in names:
            assert alone[name] > 0
            assert silent[name] == (0 if other == column else alone[name])
            assert both[name] == pytest.approx((alone[name] + silent[name]) / 2, rel=1e-5)
    loss(dumb).total.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.any()) is (column != IOU) for leaf in leaves)


def test_what_looks_like_a_mask_without_a_score_is_neither_right_nor_wrong(model: SemanticSAM) -> None:
    features = model.features(torch.randn(1, 3, 128, 128))
    output = model.object_queries(features, 0)
    scores = output.token_scores.detach().requires_grad_()
    wanted = targets((0, 32, 0, 16), (4, 12, 20, 30))
    wanted.supervised[0, IOU] = False
    one = object_query_loss([dataclasses.replace(output, token_scores=scores)], [features], [wanted])
    one.tokens.backward()
    assert scores.grad is not None
    finest = scores.grad[-16 * 16 :, 0].view(16, 16)  # stride 8
    assert not finest[:, :8].any() and finest[:, 8:].all()


def test_a_photo_without_queries_still_teaches_where_things_are() -> None:
    blind = masks_nothing(structured(dataclasses.replace(QUERIES, name_features=True))).train()
    features = blind.features(torch.randn(1, 3, 128, 128))
    output = blind.object_queries(features, 0)
    assert len(output.chosen) == 0
    wanted = targets((2, 20, 2, 20))
    named = dataclasses.replace(wanted, labels=torch.zeros(1, dtype=torch.long))
    loss = object_query_loss([output], [features], [named])
    zeros = torch.zeros(2, dtype=torch.long)
    table = NameTable(torch.eye(2, TINY.text_dim), zeros, zeros, torch.ones(2))
    loss = with_names(loss, [output], [named], table, blind.name_scales(), output.scores.new_zeros(2))
    loss.total.backward()
    figures = loss.figures()
    assert figures["tokens"] > 0 and figures["mask_bce"] == figures["mask_dice"] == figures["box"] == 0
    assert blind.generic is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in blind.generic.token_score.parameters())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in blind.parameters())


def test_masks_at_stride_four_are_the_cells_mostly_covered() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4, :3] = masks[0, 4:, 4:6] = True
    assert at_logits(masks)[0].tolist() == [[True, False], [False, False]]


def test_a_frozen_network_gets_no_gradient_and_the_queries_all_of_it() -> None:
    network = structured(dataclasses.replace(QUERIES, generic_layers=1)).train()
    with torch.no_grad():
        features = network.features(torch.randn(1, 3, 128, 128))
    assert network.generic is not None
    scores = network.generic.tokens(features)
    with torch.no_grad():
        (seeds,) = network.seed_outputs(features, [scores])
    output = network.generic(features, scores, seeds)
    object_query_loss([output], [features], [targets((2, 20, 2, 20))]).total.backward()
    touched = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert touched >= {"generic"}
    assert "decoder" not in touched
