"""Corrections: clicks beside the first one as part of the prompt, and how training comes by them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semsam_model.config import read_model_config
from semsam_model.data.vocabulary import NO_LABEL
from semsam_model.errors import ConfigError
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.proposals import predict_proposals
from semsam_model.network.decoder import ABSENT, NEGATIVE, POSITIVE, FurtherClicks
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.config import SamplingConfig, SimulatedCorrectionsConfig, Stage, TrainConfig
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.matching import NO_TARGET
from semsam_model.training.prompts import PromptBatch, draw_prompts
from semsam_model.training.simulated_corrections import simulate_corrections
from semsam_model.training.state import Run
from semsam_model.types import Box, Click, Prompt
from tests.semsam_model.networks import structured

SIZE = 96


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(dataclasses.replace(read_model_config("tiny"), corrections=True, click_features=True))


@pytest.fixture(scope="module")
def features(model: SemanticSAM) -> Features:
    torch.manual_seed(0)
    coarse = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        return model.features(F.interpolate(coarse, (SIZE, SIZE), mode="nearest"))


@pytest.fixture(scope="module")
def prompts() -> PromptBatch:
    """Two images of nested and separate rectangles with eight drawn prompts each."""
    rng = np.random.default_rng(1)
    masks = np.zeros((4, SIZE, SIZE), bool)
    for mask, (top, left, bottom, right) in zip(
        masks, [(8, 8, 88, 60), (16, 16, 50, 50), (20, 20, 36, 36), (60, 64, 90, 92)], strict=True
    ):
        mask[top:bottom, left:right] = True
    kinds = ["object", "part", "part", "object"]
    drawn = [draw_prompts(masks, kinds, SamplingConfig(prompts=8), 0.005, rng) for _ in range(2)]
    return PromptBatch.of(drawn, [masks] * 2, [np.full(4, NO_LABEL)] * 2, [False, False])


def prompt_with(further: FurtherClicks | None, model: SemanticSAM, features: Features) -> torch.Tensor:
    boxes = torch.tensor([[[0.3, 0.4, 0.005, 0.005], [0.7, 0.6, 0.3, 0.2]]] * 2)
    kinds = torch.tensor([[0, 1]] * 2)
    with torch.no_grad():
        return model.decoder(features, boxes, kinds, further=further)[-1].mask_embedding


def some(kinds: list[int]) -> FurtherClicks:
    points = torch.rand(2, 2, len(kinds), 2, generator=torch.Generator().manual_seed(5))
    return FurtherClicks(points, torch.tensor(kinds).expand(2, 2, -1))


def test_absent_clicks_change_nothing(model: SemanticSAM, features: Features) -> None:
    alone = prompt_with(None, model, features)
    assert torch.allclose(prompt_with(some([ABSENT, ABSENT]), model, features), alone, atol=1e-3)
    with_one = prompt_with(some([POSITIVE]), model, features)
    padded = some([POSITIVE, ABSENT, ABSENT])
    padded.points[:, :, 0] = some([POSITIVE]).points[:, :, 0]
    assert torch.allclose(prompt_with(padded, model, features), with_one, atol=1e-3)


def test_a_further_click_changes_the_answer_and_its_sign_matters(model: SemanticSAM, features: Features) -> None:
    alone, plus, minus = (prompt_with(f, model, features) for f in (None, some([POSITIVE]), some([NEGATIVE])))
    assert (alone - plus).abs().max() > 1e-3
    assert (plus - minus).abs().max() > 1e-3


def test_the_order_of_further_clicks_does_not_matter(model: SemanticSAM, features: Features) -> None:
    clicks = some([POSITIVE, NEGATIVE, NEGATIVE])
    turned = FurtherClicks(clicks.points.flip(2), clicks.kinds.flip(2))
    assert torch.allclose(prompt_with(clicks, model, features), prompt_with(turned, model, features), atol=1e-3)


def test_the_clicks_of_one_prompt_do_not_reach_another(model: SemanticSAM, features: Features) -> None:
    clicks = some([POSITIVE])
    other = FurtherClicks(clicks.points.clone(), clicks.kinds.clone())
    other.points[:, 1] = 1 - other.points[:, 1]
    first, second = prompt_with(clicks, model, features), prompt_with(other, model, features)
    assert torch.allclose(first[:, 0], second[:, 0], atol=1e-3)
    assert not torch.allclose(first[:, 1], second[:, 1], atol=1e-3)


def generators(seed: int) -> list[np.random.Generator]:
    """One for each of two images."""
    return [np.random.default_rng([seed, image]) for image in range(2)]


@pytest.mark.parametrize("deepest", [0.0, 1.0])
def test_the_first_correction_lies_where_the_nearest_level_was_wrong(
    model: SemanticSAM, features: Features, prompts: PromptBatch, deepest: float
) -> None:
    boxes, kinds, held_to = prompts.boxes, prompts.kinds, prompts.targets
    asked: list[FurtherClicks] = []

    def note(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, FurtherClicks]) -> None:
        asked.append(kwargs["further"])

    with torch.no_grad():
        first = model.decoder(features, boxes, kinds)[-1]
    config = SimulatedCorrectionsConfig(prompts=8, clicks=1, deepest=deepest)
    with model.decoder.register_forward_pre_hook(note, with_kwargs=True):
        simulate_corrections(model, features, prompts, first, config, 1, generators(0))
    (clicks,) = asked
    logits = model.mask_logits(features, first.mask_embedding)
    wrong_somewhere = 0
    for image in range(2):
        small = F.adaptive_avg_pool2d(held_to.masks[image][:, None].float(), logits.shape[-2:]).squeeze(1) > 0.5
        for n in range(8):
            wanted = small[held_to.of_prompt[image, n, 0]]
            answers = logits[image, n] > 0
            ious = (answers & wanted).sum((1, 2)) / (answers | wanted).sum((1, 2)).clamp(min=1)
            answer = answers[ious.argmax()]
            kind = int(clicks.kinds[image, n, 0])
            if kind == ABSENT:
                assert torch.equal(answer, wanted)
                continue
            x, y = (clicks.points[image, n, 0] * torch.tensor(logits.shape[-1:-3:-1])).long().tolist()
            assert bool(wanted[y, x]) == (kind == POSITIVE)
            assert bool(answer[y, x]) != bool(wanted[y, x])
            wrong_somewhere += 1
    assert wrong_somewhere > 8


def test_corrected_prompts_are_held_to_masks_that_agree_with_every_click_and_to_the_wanted_one(
    model: SemanticSAM, features: Features, prompts: PromptBatch
) -> None:
    boxes, kinds, held_to = prompts.boxes, prompts.kinds, prompts.targets
    with torch.no_grad():
        first = model.decoder(features, boxes, kinds)[-1]
    config = SimulatedCorrectionsConfig(prompts=8, clicks=3)
    layers, again = simulate_corrections(model, features, prompts, first, config, 3, generators(2))
    assert len(layers) == 2 and layers[-1].mask_embedding.requires_grad
    assert torch.equal(again.of_prompt[..., 0], held_to.of_prompt[..., 0])
    kept, before = again.of_prompt != NO_TARGET, held_to.of_prompt != NO_TARGET
    assert torch.equal(again.of_prompt[kept], held_to.of_prompt[kept])
    assert int(kept.sum()) < int(before.sum())  # some mask of a nest was ruled out by a click


def test_a_model_that_takes_no_further_clicks_is_not_trained_with_rounds() -> None:
    config = TrainConfig(model="tiny", stages=(Stage(1, 64, 1),), rounds=SimulatedCorrectionsConfig(prompts=2))
    with pytest.raises(ConfigError, match="corrections: true"):
        Run(config, Path("unused"), Distributed(torch.device("cpu")))


def test_a_prompt_of_several_clicks_is_also_asked_as_a_whole(model: SemanticSAM) -> None:
    coarse = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    embedding = model.encode(np.kron(coarse, np.ones((15, 17, 1), np.uint8)))
    two = Prompt((Click(70, 50), Click(20, 20, positive=False)))

    def proposals(prompt: Prompt) -> int:
        return len(predict_proposals(model, embedding, prompt, CandidateOptions()).pairs)

    assert proposals(Prompt((Click(70, 50),))) == 6
    assert proposals(two) >= 12
    assert proposals(Prompt((Click(20, 20, positive=False),), (Box(10, 10, 90, 90),))) >= 18
    once = predict_proposals(model, embedding, two, CandidateOptions()).pairs[:6]
    moved = Prompt((Click(70, 50), Click(120, 80, positive=False)))
    assert any(
        (a.cells != b.cells).any()
        for (_, a), (_, b) in zip(
            once, predict_proposals(model, embedding, moved, CandidateOptions()).pairs, strict=False
        )
    )
