"""Prompts drawn from masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.network.frame import BOX, CLICK
from semsam_model.training.config import SamplingConfig
from semsam_model.training.losses.matching import NO_TARGET
from semsam_model.training.prompts import draw_prompts, mask_boxes


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_prompts_mean_the_masks_they_touch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((9, 20, 20)) < 0.5
    config = SamplingConfig(prompts=30, max_targets=4)
    drawn = draw_prompts(masks, ["object"] * 3 + ["part"] * 6, config, 0.005, rng)
    tight = mask_boxes(masks)
    for box, kind, row in zip(drawn.boxes, drawn.kinds, drawn.targets, strict=True):
        named = row[row != NO_TARGET].tolist()
        assert row[0] != NO_TARGET
        assert len(set(named)) == len(named)
        if kind == BOX:
            assert len(named) == 1
            assert np.abs(box - tight[named[0]]).max() <= config.box_noise + 1e-6
        else:
            assert kind == CLICK
            assert box[2:].tolist() == pytest.approx([0.005, 0.005])
            touched = masks[:, int(box[1] * 20), int(box[0] * 20)]
            assert touched[named].all()
            assert len(named) == min(4, touched.sum())


def test_many_parts_do_not_drown_one_object() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((101, 20, 20), bool)
    masks[0] = True
    for index in range(1, 101):
        masks[index, index // 10, index % 10] = True
    config = SamplingConfig(prompts=400, box_share=0)
    first = draw_prompts(masks, ["object"] + ["part"] * 100, config, 0.005, rng).targets[:, 0]
    assert 0.4 < (first == 0).mean() < 0.6
    counts = np.bincount(first, minlength=101)[1:]
    assert counts.max() - counts.min() <= 1


def test_boxes_are_tight() -> None:
    masks = np.random.default_rng(0).random((6, 30, 50)) < 0.002
    masks[:, 7, 9] = True
    for mask, (cx, cy, w, h) in zip(masks, mask_boxes(masks), strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min() / 50, y.min() / 30, (x.max() + 1) / 50, (y.max() + 1) / 30]
        assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx(expected, abs=1e-6)


def test_a_mask_is_drawn_in_proportion_to_its_weight() -> None:
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :16], masks[1, 16:] = True, True
    config = SamplingConfig(prompts=4000, box_share=0.0)
    drawn = draw_prompts(masks, ["part", "part"], config, 0.01, np.random.default_rng(0), [0.25, 0.75])
    assert np.mean(drawn.targets[:, 0] == 1) == pytest.approx(0.75, abs=0.03)
