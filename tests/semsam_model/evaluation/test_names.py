"""Measuring names: the same ranks as counted by hand, on synthetic scenes and a tiny network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.samples import Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import ConfigError
from semsam_model.evaluation.clicks import innermost
from semsam_model.evaluation.names import NameReport, NameScores, evaluate_names
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.text_encoder import TextEncoder, normalise_label


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [*synthetic_samples(6, seed=1, size=(96, 96))]


@pytest.fixture(scope="module")
def report(samples: list[Sample]) -> NameReport:
    return evaluate_names(_model(), samples[:2], TextEncoder(), lists=samples)


def _model() -> SemanticSAM:
    torch.manual_seed(0)
    return build_model(replace(read_model_config("tiny"), name_features=True, text_dim=384)).eval()


def test_ranks_are_those_of_cosines_counted_by_hand_within_the_kind(samples: list[Sample], report: NameReport) -> None:
    model, encoder = _model(), TextEncoder()
    named = [(r.granularity == "part", normalise_label(r.name)) for s in samples for r in s.regions if r.name]
    ranks: dict[bool, list[int]] = {False: [], True: []}
    for sample in samples[:2]:
        embedding = model.encode(sample.image())
        for i, region in enumerate(sample.regions):
            mask = sample.mask(i)
            if mask.sum() < 64 or not region.name:
                continue
            part = region.granularity == "part"
            words = sorted({name for kind, name in named if kind == part})
            output = model.decode(embedding, [innermost(mask)])
            # scenes of 96 px are enlarged to the model's 128: compare where both have pixels
            logits = torch.nn.functional.interpolate(output.logits, size=(96, 96), mode="bilinear")[0] > 0
            wanted = torch.from_numpy(mask)
            ious = (logits & wanted).sum((1, 2)) / (logits | wanted).sum((1, 2)).clamp(min=1)
            vector = (output.part_embedding if part else output.object_embedding)[0, int(ious.argmax())]
            order = (encoder.embed(words) @ vector).argsort(descending=True).tolist()
            ranks[part].append(order.index(words.index(normalise_label(region.name))) + 1)
    (kinds,) = report.by_source.values()
    assert kinds["object"].rank == ranks[False]
    assert kinds["part"].rank == ranks[True]


def test_shares_are_in_percent_and_what_a_threshold_costs_is_told() -> None:
    objects = NameScores(4, [1, 2, 3, 4], [True, False, False, False], [0.9, 0.6, 0.3, 0.1], [0.5] * 4)
    parts = NameScores(2, [1, 1], [True, True], [0.55, 0.25], [0.5] * 2)
    report = NameReport({"street": {"object": objects, "part": parts}}, ())
    content = report.to_dict()
    assert content["by_source"]["street"]["object"] == {
        "top1": 25.0,
        "top3": 75.0,
        "together": 25.0,
        "iou": 50.0,
        "chance": 25.0,
        "n": 4,
        "labels": 4,
    }
    assert content["mean_over_sources"]["part"] == {"top1": 100.0, "top3": 100.0, "together": 100.0}
    at_half = next(row for row in content["thresholds"] if row["threshold"] == 0.5)
    assert at_half == {"threshold": 0.5, "named": 50.0, "right": 66.67}


def test_the_right_label_in_one_list_of_both_kinds_is_first_in_its_own_too(report: NameReport) -> None:
    (kinds,) = report.by_source.values()
    for scores in kinds.values():
        assert scores.labels > 1 and len(scores.rank) == len(scores.together) == len(scores.score) > 0
        assert all(rank == 1 for rank, first in zip(scores.rank, scores.together, strict=True) if first)
        assert 1 <= min(scores.rank) <= max(scores.rank) <= scores.labels
        assert np.all(np.array(scores.score) >= 1 / (sum(k.labels for k in kinds.values()) + 1e-6))


def test_a_model_without_names_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="cannot name masks"):
        evaluate_names(build_model(read_model_config("tiny")), samples, TextEncoder())
