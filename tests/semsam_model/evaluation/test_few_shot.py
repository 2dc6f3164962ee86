"""Few examples and replay, measured on synthetic scenes with a network that knows nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from semsam_model.config import read_model_config
from semsam_model.data.samples import Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import DataError
from semsam_model.evaluation.few_shot import few_shot_curve, few_shot_ranks, label_set, named_regions, region_label
from semsam_model.evaluation.replay import replay
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from tests.semsam_model.networks import structured


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(replace(read_model_config("tiny"), name_features=True, text_dim=384))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [*synthetic_samples(6, seed=2, size=(64, 64))]


@pytest.mark.slow
def test_an_example_that_is_asked_about_is_known(model: SemanticSAM, samples: list[Sample]) -> None:
    labels = label_set(samples, TextEncoder())
    asked = named_regions(model, samples, labels)
    assert len(asked.lessons) >= 10 and {each.label for each in asked.lessons} <= set(labels.values)
    everything = few_shot_ranks(asked, asked, 1000, draws=1)
    nothing = few_shot_ranks(asked, asked, 0)
    assert everything.shape == nothing.shape == (1, len(asked.lessons), 2)
    assert (everything[0, :, 1] == 1).mean() > 0.9 > (nothing[0, :, 1] == 1).mean()
    assert (everything[..., 0] <= everything[..., 1]).all(), "among fewer labels no rank is worse"


def test_the_curve_rises_in_top_three_and_counts_every_mask_once(model: SemanticSAM, samples: list[Sample]) -> None:
    curve = few_shot_curve(model, samples, TextEncoder(), counts=(0, 2), draws=2)
    named = [r for s in samples for i, r in enumerate(s.regions) if region_label(r) and s.mask(i).sum() >= 64]
    assert curve["together"]["0"]["n"] == curve["together"]["2"]["n"] == len(named)
    for by_k in curve.values():
        assert all(0 <= row["top1"] <= row["top3"] <= 100 for row in by_k.values())
    assert curve["together"]["0"]["spread"] == 0, "nothing is drawn where nothing is an example"


@pytest.mark.slow
@pytest.mark.parametrize("label_first", [False, True])
def test_a_replay_begins_with_the_model_alone_and_counts_every_region(
    model: SemanticSAM, samples: list[Sample], label_first: bool
) -> None:
    result = replay(model, samples[:3], TextEncoder(), label_first=label_first)
    named = [r for s in samples[:3] for i, r in enumerate(s.regions) if region_label(r) and s.mask(i).sum() >= 64]
    assert result.accepts == len(named) == result.total()["to"]
    assert all(result.alone[measure][0] == result.learned[measure][0] for measure in ("first", "iou", "label"))
    assert result.alone != result.learned
    rows = result.curve()
    assert [row["from"] for row in rows[1:]] == [row["to"] for row in rows[:-1]]
    assert result.total()["iou_learned"] == pytest.approx(100 * np.mean(result.learned["iou"]), abs=0.06)


def test_one_label_is_nothing_to_tell_apart(model: SemanticSAM, samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="at least two labels"):
        label_set([], TextEncoder())
