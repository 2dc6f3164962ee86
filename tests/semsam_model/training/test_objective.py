"""The parts of a step's loss, and what they depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from semsam_model.config import read_model_config
from semsam_model.data.mixture import Mixture
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.data.vocabulary import NameTable, Vocabulary
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.batches import Batch, TrainingBatches
from semsam_model.training.config import LossConfig, SamplingConfig, SimulatedCorrectionsConfig, Stage, TrainConfig
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.objective import Objective, PromptLoss
from tests.semsam_model.houses import FILL
from tests.semsam_model.networks import structured

SAMPLES = synthetic_samples(3, seed=4, size=(96, 96), source="made")
VOCABULARY = Vocabulary.of(SAMPLES)
LOSS = LossConfig(points=32, match_points=32, names=0.7)
CORRECTIONS = SimulatedCorrectionsConfig(prompts=2, clicks=3, weight=0.4)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(dataclasses.replace(read_model_config("tiny"), corrections=True))


@pytest.fixture(scope="module")
def table(model: SemanticSAM) -> NameTable:
    vectors = torch.randn(len(VOCABULARY.rows), model.config.text_dim, generator=torch.Generator().manual_seed(1))
    return NameTable.of(VOCABULARY, torch.nn.functional.normalize(vectors, dim=-1))


@pytest.fixture(scope="module")
def batch(model: SemanticSAM) -> Batch:
    stages, config = [Stage(1, 96, 2)], SamplingConfig(prompts=4)
    return TrainingBatches(
        Mixture.of(SAMPLES), stages, config, click_box=model.config.click_box, fill=FILL, seed=0, vocabulary=VOCABULARY
    )[0]


@pytest.fixture(scope="module")
def features(model: SemanticSAM, batch: Batch) -> Features:
    with torch.no_grad():
        return model.features(model.normalise(batch.images))


@torch.no_grad()
def loss_of(loss: PromptLoss, features: Features, batch: Batch) -> LossOutput:
    torch.manual_seed(0)
    rngs = [np.random.default_rng([seed, 1]) for seed in batch.seeds]
    return loss(features, batch.prompts, np.random.default_rng(batch.number), rngs)


def test_the_total_is_that_of_first_predictions_names_and_corrections_by_their_weights(
    model: SemanticSAM, features: Features, batch: Batch, table: NameTable
) -> None:
    result = loss_of(PromptLoss(model, LOSS, CORRECTIONS, table), features, batch)
    assert result.names is not None and result.corrected is not None
    first = sum(layer.weighted(LOSS) for layer in result.layers)
    total = first + 0.7 * result.names.total + 0.4 * result.corrected.total
    assert float(result.total) == pytest.approx(float(total), rel=1e-5)
    assert float(result.names.total) > 0 and float(result.corrected.total) > 0


def test_names_and_corrections_change_nothing_about_first_predictions(
    model: SemanticSAM, features: Features, batch: Batch, table: NameTable
) -> None:
    every = loss_of(PromptLoss(model, LOSS, CORRECTIONS, table), features, batch)
    plain = loss_of(PromptLoss(model, LOSS, dataclasses.replace(CORRECTIONS, prompts=0)), features, batch)
    assert plain.names is None and plain.corrected is None
    for ours, theirs in zip(every.layers, plain.layers, strict=True):
        assert float(ours.weighted(LOSS)) == float(theirs.weighted(LOSS))


def test_a_batch_of_training_costs_what_its_prompts_cost_whatever_the_common_random_numbers(
    model: SemanticSAM, batch: Batch, table: NameTable
) -> None:
    config = TrainConfig(model="tiny", stages=(Stage(1, 96, 2),), loss=LOSS, rounds=CORRECTIONS, bfloat16=False)
    objective = Objective(model, config, Distributed(torch.device("cpu")))
    objective.prompt_loss.name_table = table
    totals = []
    for seed in range(2):
        torch.manual_seed(seed)
        totals.append(float(objective(batch).total.detach()))
    assert totals[0] == totals[1]


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_a_processor_that_would_emulate_bfloat16_computes_in_float32(
    model: SemanticSAM, batch: Batch, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    config = TrainConfig(model="tiny", stages=(Stage(1, 96, 2),), loss=LOSS, rounds=CORRECTIONS)
    asked, full = (
        float(Objective(model, settings, Distributed(torch.device("cpu")))(batch).total.detach())
        for settings in (config, dataclasses.replace(config, bfloat16=False))
    )
    assert (asked == full) == (instructions == "AVX2")
