"""Swin-T with weights by rule equals what the published code computed with the same weights (tests/fixtures).

Tolerances: features 1e-3 and logits 2e-2 (standard deviation 24 to 33), IoU and boxes 1e-4, mask IoU above 0.9999.
Records kept as float16 are given its rounding on top.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from semsam_model.checkpoints.checkpoint import load
from semsam_model.checkpoints.published import Report
from semsam_model.inference.automatic import PUBLISHED, automatic_masks
from semsam_model.network.frame import Frame
from semsam_model.network.model import DecoderOutput, ImageEmbedding, SemanticSAM
from semsam_model.types import Box, Click
from tests.paths import FIXTURES
from tests.semsam_model.published_rule import CLICKS, picture

FIXTURE = FIXTURES / "parity_swint.npz"
HEIGHT, WIDTH = 427, 640
RESIZED = (640, 959)  #: the published code's masks live in the resized photo, not in the photo
HALF = 2.0**-6  #: half a unit in the last place of float16 between 32 and 64

Records = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def records() -> Records:
    with np.load(FIXTURE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def model(converted_swin_t: Report) -> SemanticSAM:
    return load(converted_swin_t.path)[0]


@pytest.fixture(scope="module")
def maps(model: SemanticSAM, records: Records) -> list[Tensor]:
    rgb = picture()
    assert hashlib.sha256(rgb.tobytes()).hexdigest() == str(records["image_sha256"])
    with torch.inference_mode():
        return model.backbone(Frame.of((HEIGHT, WIDTH), model.config).image(rgb, model.config))


@pytest.fixture(scope="module")
def embedding(model: SemanticSAM) -> ImageEmbedding:
    return model.encode(picture())


@pytest.fixture(scope="module")
def answers(model: SemanticSAM, embedding: ImageEmbedding) -> list[DecoderOutput]:
    return [model.decode(embedding, [click(*at)]) for at in CLICKS]


@pytest.fixture(scope="module")
def grid(model: SemanticSAM, embedding: ImageEmbedding) -> Records:
    """Scores of all masks of a 4x4 grid of clicks at the resized frame, best predicted IoU first."""
    centres = [(i + 0.5) / 4 for i in range(4)]
    frame = Frame.of(RESIZED, model.config)
    rows = []
    for at in [(x, y) for y in centres for x in centres]:
        output = model.decode(embedding, [click(*at)])
        for logits, predicted in zip(output.logits[0].numpy(), output.predicted_iou[0].tolist(), strict=True):
            mask, (x0, y0, x1, y1) = frame.mask(logits)
            sure, unsure = (np.count_nonzero(frame.mask(logits, threshold)[0]) for threshold in (1.0, -1.0))
            # the record's boxes hold the last pixel's own coordinate
            rows.append((predicted, sure / unsure, np.count_nonzero(mask), (x0, y0, x1 - x0 - 1, y1 - y0 - 1), at))
    rows.sort(key=lambda row: -row[0])
    names = ("predicted_iou", "stability_score", "area", "bbox", "point")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def click(x: float, y: float) -> Click:
    return Click(x * WIDTH, y * HEIGHT)


def assert_near(found: Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.float().numpy(), expected.astype(np.float32), rtol=0, atol=tolerance)


def assert_sampled(found: Tensor, records: Records, name: str) -> None:
    assert tuple(found.shape) == tuple(records[f"{name}_shape"])
    assert_near(found.flatten()[:: int(records[f"{name}_stride"])], records[f"{name}_sample"], 1e-3)


def test_the_padded_input_is_the_published_one(model: SemanticSAM, records: Records) -> None:
    assert_sampled(Frame.of((HEIGHT, WIDTH), model.config).image(picture(), model.config), records, "padded_input")


@pytest.mark.parametrize("stage", range(4))
def test_backbone_maps_are_the_published_ones(stage: int, maps: list[Tensor], records: Records) -> None:
    assert_sampled(maps[stage], records, f"backbone_res{stage + 2}")


def test_mask_features_are_the_published_ones(embedding: ImageEmbedding, records: Records) -> None:
    assert_sampled(embedding.features.mask_features, records, "mask_features")


@pytest.mark.parametrize("level", range(4))
def test_memory_levels_are_the_published_ones(level: int, embedding: ImageEmbedding, records: Records) -> None:
    # theirs run from high to low resolution
    assert_sampled(embedding.features.level(3 - level), records, f"multi_scale_{level}")


@pytest.mark.parametrize("index", range(3))
def test_a_click_is_answered_as_published(index: int, answers: list[DecoderOutput], records: Records) -> None:
    output, expected = answers[index], records[f"click{index}_logits_sample"]
    assert_near(output.logits.flatten()[::97], expected, 2e-2 + (HALF if expected.dtype == np.float16 else 0))
    assert_near(output.predicted_iou[0], records[f"click{index}_pred_ious"], 1e-4)
    assert_near(output.boxes[0], records[f"click{index}_pred_boxes"], 1e-4)
    assert output.predicted_iou[0].argsort(descending=True).tolist() == records[f"click{index}_order_by_iou"].tolist()


def test_every_decoder_layer_answers_as_published(
    model: SemanticSAM, embedding: ImageEmbedding, records: Records
) -> None:
    boxes, kinds = embedding.frame.prompts([click(*CLICKS[0])], model.config)
    with torch.inference_mode():
        layers = model.decoder(embedding.features, boxes[None], kinds[None], all_layers=True)
    assert len(layers) == 9
    assert_near(torch.stack([layer.predicted_iou[0, 0] for layer in layers[:-1]]), records["click0_layer_ious"], 1e-4)
    assert_near(torch.stack([layer.boxes[0, 0] for layer in layers[:-1]]), records["click0_layer_boxes"], 1e-4)


def test_three_clicks_together_are_answered_as_each_alone(
    model: SemanticSAM, embedding: ImageEmbedding, answers: list[DecoderOutput], records: Records
) -> None:
    joint = model.decode(embedding, [click(*at) for at in CLICKS])
    assert_near(joint.logits.flatten()[::97], records["joint_logits_sample"], 2e-2 + HALF)
    assert_near(joint.predicted_iou, records["joint_pred_ious"], 1e-4)
    assert_near(joint.boxes, records["joint_pred_boxes"], 1e-4)
    assert_near(joint.logits, torch.cat([alone.logits for alone in answers]).numpy(), 2e-2)


def test_a_box_prompt_is_answered_as_published(model: SemanticSAM, embedding: ImageEmbedding, records: Records) -> None:
    cx, cy, w, h = records["box_prompt"][0].astype(float) * (WIDTH, HEIGHT, WIDTH, HEIGHT)
    output = model.decode(embedding, [Box(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)])
    assert_near(output.logits.flatten()[::97], records["box_logits_sample"], 2e-2 + HALF)
    assert_near(output.predicted_iou[0], records["box_pred_ious"], 1e-4)
    assert_near(output.boxes[0], records["box_pred_boxes"], 1e-4)


@pytest.mark.parametrize("token", range(6))
def test_masks_at_the_resized_frame_are_the_published_ones(
    token: int, model: SemanticSAM, answers: list[DecoderOutput], records: Records
) -> None:
    packed = records["click0_masks_packed"][token]
    expected = np.unpackbits(packed, count=RESIZED[0] * RESIZED[1]).reshape(RESIZED).astype(bool)
    logits = answers[0].logits[0, token]
    by_torch = torch.nn.functional.interpolate(logits[None, None], scale_factor=4, mode="bilinear")[0, 0] > 0
    frame = Frame.of(RESIZED, model.config)
    assert frame.resized == frame.photo
    crop, (x0, y0, x1, y1) = frame.mask(logits.numpy())
    by_frame = np.zeros(RESIZED, bool)
    by_frame[y0:y1, x0:x1] = crop
    for found in (by_torch[: RESIZED[0], : RESIZED[1]].numpy(), by_frame):
        assert (found & expected).sum() / (found | expected).sum() > 0.9999
    assert abs(int(by_frame.sum()) - int(records["click0_areas"][token])) <= 10


def test_scores_of_a_grid_of_clicks_are_the_published_generators(grid: Records, records: Records) -> None:
    np.testing.assert_array_equal(grid["point"], records["grid_point"])  # that is: the same order by predicted IoU
    np.testing.assert_allclose(grid["predicted_iou"], records["grid_predicted_iou"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(grid["stability_score"], records["grid_stability_score"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(grid["area"], records["grid_area"], rtol=0, atol=10)
    # one flipped pixel at the tip of a mask can move its box
    assert (np.abs(grid["bbox"] - records["grid_bbox"]) <= 1).mean() > 0.99


def test_the_published_generators_thresholds_keep_the_same_masks(grid: Records, records: Records) -> None:
    kept = (grid["predicted_iou"] > 0.88) & (grid["stability_score"] >= 0.85)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(grid["point"][kept], records["kept_point"])
    np.testing.assert_allclose(grid["predicted_iou"][kept], records["kept_predicted_iou"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(grid["stability_score"][kept], records["kept_stability_score"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_everything_by_the_published_rule_is_what_the_published_generator_kept(
    model: SemanticSAM, embedding: ImageEmbedding, records: Records
) -> None:
    # the published masks live in the resized photo; random masks fill the frame, so duplicates are not removed
    resized = replace(embedding, frame=Frame.of(RESIZED, model.config))
    options = replace(PUBLISHED, grid=4, least_stability=0.85, same_iou=1.1, batch=5)
    found = automatic_masks(model, resized, options)
    points = [(f.click.x / RESIZED[1], f.click.y / RESIZED[0]) for f in found]
    np.testing.assert_allclose(points, records["kept_point"], rtol=0, atol=1e-6)
    for name, values in (
        ("predicted_iou", [f.candidate.predicted_iou for f in found]),
        ("stability_score", [f.candidate.stability for f in found]),
    ):
        np.testing.assert_allclose(values, records[f"kept_{name}"], rtol=0, atol=1e-4)
