"""The objective against figures recorded from the published criterion, and its invariants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semsam_model.losses import LossConfig, LossOutput, training_loss
from semsam_model.matching import NO_TARGET, Targets

FIXTURE = Path(__file__).parent.parent / "fixtures" / "parity_loss.npz"
PUBLISHED = LossConfig(points=128, match_points=128, iou_target="soft_dice", unmatched_iou=False)


@dataclass
class Layer:
    mask_embedding: Tensor
    predicted_iou: Tensor
    boxes: Tensor


@dataclass
class Recorded:
    arrays: dict[str, np.ndarray]
    meta: dict
    layers: list[Layer]
    features: Tensor

    def targets(self, of_prompt: list[list[int]]) -> Targets:
        width = max(map(len, of_prompt))
        padded = [row + [NO_TARGET] * (width - len(row)) for row in of_prompt]
        masks, boxes = torch.from_numpy(self.arrays["gt_masks"]), torch.from_numpy(self.arrays["gt_boxes"])
        return Targets([masks], [boxes], torch.tensor(padded)[None], [False])

    def replay(self, *names: str) -> Iterator[Tensor]:
        return (torch.from_numpy(self.arrays[name]) for name in names)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(FIXTURE) as file:
        arrays = {name: file[name] for name in file.files}
    # Unit embeddings pick one channel each, so the recorded logits can be the features themselves.
    features = torch.from_numpy(np.concatenate([arrays["aux0_pred_masks"], arrays["final_pred_masks"]], 1))
    unit = torch.eye(36).view(1, 2, 3, 6, 36)
    layers = [
        Layer(
            unit[:, index],
            torch.from_numpy(arrays[f"{name}_pred_ious"]),
            torch.from_numpy(arrays[f"{name}_pred_boxes"]).view(1, 3, 6, 4),
        )
        for index, name in enumerate(("aux0", "final"))
    ]
    return Recorded(arrays, json.loads(str(arrays["meta"])), layers, features)


def assert_equals_published(result: LossOutput, published: dict[str, float]) -> None:
    names = {
        "mask_bce": "loss_mask_bce",
        "mask_dice": "loss_mask_dice",
        "box_l1": "loss_bbox",
        "box_giou": "loss_giou",
        "iou": "iou_score_loss",
    }
    for suffix, layer in (("_0", result.layers[1]), ("_1", result.layers[0])):
        for ours, theirs in names.items():
            assert float(getattr(layer, ours)) == pytest.approx(published[theirs + suffix], abs=2e-6), ours + suffix


def test_many_to_many_equals_the_published_criterion(recorded: Recorded) -> None:
    points = recorded.replay("m2m_rand0", "m2m_rand1", "m2m_rand2", "m2m_rand3", "m2m_rand4")
    targets = recorded.targets(recorded.meta["level_target_inds"])
    result = training_loss(recorded.layers, recorded.features, targets, PUBLISHED, lambda *_: next(points))
    assert_equals_published(result, recorded.meta["m2m_losses"])
    assert next(points, None) is None


def test_many_to_one_equals_the_published_criterion(recorded: Recorded) -> None:
    points = recorded.replay("mo1_rand0", "mo1_rand1", "mo1_rand2", "mo1_rand3")
    targets = recorded.targets([[mask] for mask in recorded.meta["mo1_gt_per_click"]])
    config = replace(PUBLISHED, mode="many_to_one")
    result = training_loss(recorded.layers, recorded.features, targets, config, lambda *_: next(points))
    assert_equals_published(result, recorded.meta["mo1_losses"])
