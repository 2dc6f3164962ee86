"""What a model added teaches masks, at a low weight, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.config import read_model_config
from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Annotation, Sample
from semsam_model.data.vocabulary import NO_LABEL, NameTable, Vocabulary
from semsam_model.training.batches import Batch, TrainingBatches
from semsam_model.training.config import LossConfig, SamplingConfig, SimulatedCorrectionsConfig, Stage
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import training_loss
from semsam_model.training.objective import PromptLoss
from semsam_model.training.prompts import draw_prompts
from semsam_model.training.state import Run
from tests.semsam_model.added import read_houses, write_houses
from tests.semsam_model.houses import FILL
from tests.semsam_model.networks import structured
from tests.semsam_model.training.losses.test_masks import EVENLY, random_case
from tests.semsam_model.training.test_loop import CONFIG
from tests.semsam_model.training.test_scenes import EVERYTHING, SAMPLES, batches

WEIGHT = 0.25
#: Two objects and two parts, of which the houses show one each.
VOCABULARY = Vocabulary(
    tuple(("houses", *row) for row in ((0, "barn"), (0, "house"), (1, "door"), (1, "window"))), (1,) * 4
)


def without(sample: Sample) -> Sample:
    """The sample without what a model added."""
    annotation = sample.annotation
    kept = tuple(region for region in annotation.regions if not region.added)
    return replace(sample, annotated=replace(annotation, regions=kept))


def with_added(sample: Sample) -> Sample:
    """A painted photo, partial, whose doors and trees a model added."""
    annotation = sample.annotation
    regions = tuple(
        replace(region, name=None, added=True) if region.name in ("door", "tree") else region
        for region in annotation.regions
    )
    return replace(sample, annotated=Annotation(annotation.width, annotation.height, regions, partial=True))


PARTIAL = [with_added(sample) if sample.source == "farm" else sample for sample in SAMPLES]
#: Photos of many shapes, each with something annotated in any crop.
AUGMENTED = replace(EVERYTHING, jitter=0.3, colour=0.5, jpeg=0.5)


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_marks_survive_mosaics_turns_and_pasting(seed: int) -> None:
    batch = batches(AUGMENTED, seed, PARTIAL, SAMPLES)[seed % 6]
    assert batch.prompts.targets.supervised is not None
    for labels, supervised in zip(batch.prompts.labels, batch.prompts.targets.supervised, strict=True):
        for label, row in zip(labels.tolist(), supervised.tolist(), strict=True):
            assert row == ([WEIGHT, 0, 0] if label == NO_LABEL else [1, 1, 1])


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_pixels_and_object_queries_are_as_if_nothing_had_been_added(seed: int) -> None:
    first = batches(AUGMENTED, seed, PARTIAL, SAMPLES)[seed % 6]
    second = batches(AUGMENTED, seed, [without(sample) for sample in PARTIAL], SAMPLES)[seed % 6]
    assert first.names == second.names and torch.equal(first.images, second.images)
    for one, two in zip(first.object_queries, second.object_queries, strict=True):
        for field in ("masks", "boxes", "kinds", "labels", "complete", "supervised"):
            assert torch.equal(getattr(one, field), getattr(two, field)), field


def test_half_of_the_prompts_are_drawn_from_what_was_added() -> None:
    masks = np.zeros((3, 32, 32), bool)
    masks[0, :8], masks[1, 10:20], masks[2, 22:] = True, True, True
    kinds, config = ("object", "part", "region"), SamplingConfig(prompts=400)
    rng = np.random.default_rng
    drawn = draw_prompts(masks, kinds, config, 0.005, rng(0), added=np.array([False, True, True]))
    counts = np.bincount(drawn.targets[:, 0], minlength=3) / 400
    assert counts == pytest.approx([0.5, 0.25, 0.25], abs=0.07)
    plain = draw_prompts(masks, kinds, config, 0.005, rng(0))
    same = draw_prompts(masks, kinds, config, 0.005, rng(0), added=np.zeros(3, bool))
    assert np.array_equal(plain.targets, same.targets) and np.array_equal(plain.boxes, same.boxes)


def house_batch(mixture: Mixture) -> Batch:
    config = SamplingConfig(prompts=16, scale_min=1, scale_max=1, flip=False, jitter=0)
    return TrainingBatches(
        mixture,
        [Stage(1, 64, 2)],
        config,
        click_box=0.005,
        fill=FILL,
        seed=0,
        vocabulary=VOCABULARY,
    )[0]


def test_a_weight_of_zero_gives_exactly_the_loss_without_them(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    run = Run(CONFIG, tmp_path / "run", Distributed(torch.device("cpu")))
    losses = []
    for mixture in (read_houses(tmp_path, added_weight=0), read_houses(tmp_path, added=False), read_houses(tmp_path)):
        losses.append(run.loss(house_batch(mixture)).total.item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("mode", ["many_to_many", "many_to_one"])
def test_a_mask_counts_in_the_mean_by_its_weight(mode: str) -> None:
    layers, features, targets = random_case(0)
    config = LossConfig(mode=mode, points=64, match_points=64)  # type: ignore[arg-type]

    def loss(weight: float) -> tuple[float, float]:
        """Of masks, and how much counts in it."""
        rows = [torch.ones(len(masks), 3) for masks in targets.masks]
        rows[1][:, 0] = weight
        result = training_loss(layers, features, replace(targets, supervised=rows), config, EVENLY)
        tokens = layers[0].predicted_iou.shape[2] if mode == "many_to_one" else 1
        count = sum(float(row[match.target, 0].sum()) for row, match in zip(rows, result.matches, strict=True))
        return result.layers[-1].mask_dice.item(), count / tokens

    sums = {weight: mean * count for weight in (0.0, WEIGHT, 1.0) for mean, count in [loss(weight)]}
    assert sums[WEIGHT] == pytest.approx(sums[0.0] + WEIGHT * (sums[1.0] - sums[0.0]), rel=1e-4)
    assert sums[0.0] < sums[WEIGHT] < sums[1.0]


def test_names_boxes_and_predicted_ious_do_not_see_what_was_added_and_masks_do(tmp_path: Path) -> None:
    write_houses(tmp_path, 2)
    mixture = read_houses(tmp_path)
    batch, model = house_batch(mixture), structured(read_model_config("tiny"))
    table = NameTable.of(VOCABULARY, torch.eye(model.config.text_dim)[:4])
    loss = PromptLoss(model, LossConfig(names=1.0, points=64), SimulatedCorrectionsConfig(), table)
    features = model.features(model.normalise(batch.images))
    result, last = loss.first_predictions(model.decoder, features, batch.prompts)
    heads = {name: getattr(last, name) for name in ("object_embedding", "part_embedding", "boxes", "predicted_iou")}
    for tensor in (*heads.values(), last.mask_embedding):
        tensor.retain_grad()
    result.total.backward()
    assert batch.prompts.targets.supervised is not None
    added = annotated = 0
    for image, match in enumerate(result.matches):
        of_model = batch.prompts.targets.supervised[image][match.target, 0] < 1
        for queries, expected in ((match.query[of_model], False), (match.query[~of_model], True)):
            assert last.mask_embedding.grad is not None
            assert last.mask_embedding.grad[image].flatten(0, 1)[queries].any(1).all()
            for name, tensor in heads.items():
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                assert bool(gradient[image].flatten(0, 1)[queries].any()) is expected, name
        added, annotated = added + int(of_model.sum()), annotated + int((~of_model).sum())
    assert added > 10 and annotated > 10
