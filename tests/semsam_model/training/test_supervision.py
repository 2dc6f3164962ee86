"""A source teaches the losses that its settings name, and no other."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from semsam_model.config import parse_config
from semsam_model.data.mixture import Mixture, MixtureConfig, read_mixture
from semsam_model.data.samples import Annotation, Sample
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import LossConfig, SamplingConfig, Stage
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import training_loss
from semsam_model.training.state import Run
from tests.semsam_model.houses import FILL
from tests.semsam_model.training.losses.test_masks import EVENLY, random_case
from tests.semsam_model.training.test_loop import CONFIG

LOSSES = ("masks", "boxes", "iou")
#: Of a layer's answer what each loss moves.
MOVES = {"masks": "mask_embedding", "boxes": "boxes", "iou": "predicted_iou"}
HEADS = {"masks": "mask_head", "boxes": "box_head", "iou": "iou_head"}


def made(**settings: Any) -> Mixture:
    source = {"name": "made", "kind": "synthetic", "count": 3, "size": 64, "feeds": list(LOSSES), **settings}
    return read_mixture(parse_config(MixtureConfig, {"sources": [source]}, "mixture"))


def batches(mixture: Mixture, object_queries: bool = False) -> TrainingBatches:
    stages, config = [Stage(2, 64, 2)], SamplingConfig(prompts=6)
    return TrainingBatches(mixture, stages, config, click_box=0.005, fill=FILL, seed=0, object_queries=object_queries)


@pytest.mark.parametrize("fed", [("masks",), ("boxes",), ("boxes", "iou")])
def test_heads_that_a_source_does_not_feed_get_exactly_no_gradient(fed: tuple[str, ...], tmp_path: Path) -> None:
    run = Run(CONFIG, tmp_path, Distributed(torch.device("cpu")))
    run.loss(batches(made(feeds=list(fed)))[0]).total.backward()
    for loss, head in HEADS.items():
        gradients = [p.grad for p in getattr(run.model.decoder, head).parameters()]
        moved = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        assert moved is (loss in fed), (loss, fed)


@pytest.mark.parametrize("fed", [("masks",), ("boxes",), ("boxes", "iou")])
def test_object_queries_are_told_what_a_source_feeds(fed: tuple[str, ...]) -> None:
    for one in batches(made(feeds=list(fed)), object_queries=True)[0].object_queries:
        assert (one.supervised == torch.tensor([loss in fed for loss in LOSSES])).all()
        assert bool(one.complete.any()) is ("iou" in fed)


@pytest.mark.parametrize("missing", LOSSES)
@pytest.mark.parametrize("settings", [{}, {"mode": "many_to_one"}, {"iou_target": "soft_dice", "unmatched_iou": False}])
def test_a_mask_that_feeds_no_loss_changes_nothing_for_its_neighbours(settings: dict[str, Any], missing: str) -> None:
    layers, features, targets = random_case(0)
    config = LossConfig(points=64, match_points=64, **settings)
    dumb = torch.ones(4, 3, dtype=torch.bool)
    dumb[:, LOSSES.index(missing)] = False
    for layer in layers:
        for name in MOVES.values():
            getattr(layer, name).requires_grad_()
    both = training_loss(layers, features, replace(targets, supervised=[torch.ones_like(dumb), dumb]), config, EVENLY)
    term = {"masks": "mask_dice", "boxes": "box_l1", "iou": "iou"}[missing]
    alone = training_loss(
        [replace(x, **{name: getattr(x, name)[:1] for name in MOVES.values()}) for x in layers],
        features[:1],
        dataclasses.replace(
            targets, masks=targets.masks[:1], boxes=targets.boxes[:1], of_prompt=targets.of_prompt[:1], partial=[False]
        ),
        config,
        EVENLY[:1],
    )
    for one, two in zip(both.layers, alone.layers, strict=True):
        assert getattr(one, term).item() == pytest.approx(getattr(two, term).item(), rel=1e-5)
    both.total.backward()
    gradient = getattr(layers[0], MOVES[missing]).grad
    assert gradient is not None and gradient[0].any()
    assert not gradient[1].any()


def test_a_rectangle_that_nobody_outlined_teaches_boxes_alone() -> None:
    mixture = made()
    (sample, *_) = mixture.samples
    rectangles = tuple(dataclasses.replace(region, box_only=True) for region in sample.regions)
    known = Annotation(sample.width, sample.height, rectangles)
    batch = batches(Mixture.of([Sample(sample.photo, "drawn", known)]))[0]
    assert batch.prompts.targets.supervised is not None
    assert all(fed.tolist() == [[False, True, False]] * len(fed) for fed in batch.prompts.targets.supervised)
