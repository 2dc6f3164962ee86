"""The step that training and fine-tuning share, against the same step written out."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import read_model_config
from semsam_model.network.model import build_model
from semsam_model.training.config import Stage, TrainConfig
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.optimiser import (
    NotFinite,
    Optimiser,
    OptimiserSettings,
    learning_rate_factor,
    parameter_groups,
    save_state,
)
from semsam_model.training.state import optimiser_settings

CONFIG = TrainConfig(model="tiny", stages=(Stage(6, 64, 2),), warmup=2)
SETTINGS = optimiser_settings(CONFIG)
ALONE = Distributed(torch.device("cpu"))
STEPS = 4
REGRESSION = OptimiserSettings(
    lr=0.1, rates={"slow.": 0.01}, weight_decay=0.2, warmup=1, lr_final=0.1, clip=0.5, ema=0.9, ema_delay=0
)
Batch = tuple[Tensor, Tensor]


class Regression(nn.Module):
    """Parameters of every group, and buffers that change in training."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(3, 4, bias=False)  # the norm takes a bias away
        self.norm = nn.BatchNorm1d(4)
        self.fast = nn.Linear(4, 1)
        self.embedding = nn.Parameter(torch.ones(2, 4))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, batch: Batch) -> LossOutput:
        x, y = batch
        predicted = self.fast(self.norm(self.slow(x)) * self.embedding.mean(0))[:, 0] + self.frozen
        return LossOutput(F.mse_loss(predicted, y), (), ())


def regression() -> Regression:
    torch.manual_seed(0)
    return Regression().train()


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator), 5 * torch.randn(8, generator=generator)


def optimiser(model: nn.Module, **changes: object) -> Optimiser:
    return Optimiser(model, dataclasses.replace(REGRESSION, **changes), ALONE)


def step(taken: Optimiser, *batches: Batch) -> float:
    return taken.step(batches, taken.model, taken.steps / STEPS)[1]


def written_out(model: Regression, settings: OptimiserSettings) -> dict[str, Tensor]:
    """Averaged weights after STEPS steps of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in averages.items()}
    for number in range(STEPS):
        model.zero_grad()
        model(batch(number)).total.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.sqrt(sum((g.square().sum() for g in gradients.values()), torch.zeros(())))
        factor = learning_rate_factor(number, number / STEPS, settings.warmup, settings.lr_final)
        updates = number + 1 - settings.ema_delay
        decay = min(settings.ema, (1 + updates) / (10 + updates))
        for name, parameter in model.named_parameters():
            if name in gradients:
                gradient = gradients[name] * min(1.0, settings.clip / (float(norm) + 1e-6))
                rate = factor * (settings.rates["slow."] if name.startswith("slow.") else settings.lr)
                shrink = settings.weight_decay if name in ("slow.weight", "fast.weight") else 0.0
                first, second = moments[name]
                first.lerp_(gradient, 0.1)
                second.lerp_(gradient.square(), 0.001)
                corrected = (first / (1 - 0.9 ** (number + 1)), second / (1 - 0.999 ** (number + 1)))
                with torch.no_grad():
                    parameter.mul_(1 - rate * shrink)
                    parameter.sub_(rate * corrected[0] / (corrected[1].sqrt() + 1e-8))
            averages[name].lerp_(parameter.detach(), 1 - decay)
    return averages


@pytest.mark.parametrize("ema_delay", [0, 1])
def test_steps_equal_those_written_out(ema_delay: int) -> None:
    ours, theirs = optimiser(regression(), ema_delay=ema_delay), regression()
    losses = [step(ours, batch(number)) for number in range(STEPS)]
    averages = written_out(theirs, ours.settings)
    assert losses[0] == pytest.approx(float(regression()(batch(0)).total.detach()))
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(ours.model.get_parameter(name), parameter, atol=1e-6), name
        assert torch.allclose(ours.averaged.get_parameter(name), averages[name], atol=1e-6), name
    assert torch.equal(ours.model.frozen, torch.ones(1))


def test_the_averaged_model_has_the_buffers_of_the_last_step() -> None:
    taken = optimiser(regression())
    before = taken.averaged.norm.running_mean.clone()
    step(taken, batch(0))
    assert not torch.equal(taken.averaged.norm.running_mean, before)
    for name, buffer in taken.model.named_buffers():
        assert torch.equal(taken.averaged.get_buffer(name), buffer), name
    assert not taken.averaged.training and taken.model.training


def test_a_step_on_several_batches_has_the_gradient_of_their_mean() -> None:
    several, whole = optimiser(regression().eval()), optimiser(regression().eval())
    total = step(several, batch(0), batch(1))
    together = tuple(torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True))
    assert total == pytest.approx(step(whole, together), rel=1e-6)
    for name, parameter in whole.model.named_parameters():
        assert torch.allclose(several.model.get_parameter(name), parameter, atol=1e-6), name


def test_a_loss_that_is_no_number_changes_nothing_and_its_batch_is_named() -> None:
    taken = optimiser(regression().eval())
    before = copy.deepcopy(taken.model.state_dict())
    broken = (batch(1)[0] * torch.nan, batch(1)[1])
    with pytest.raises(NotFinite, match="step 0: expected a finite loss and gradient, got nan") as caught:
        step(taken, batch(0), broken, batch(2))
    assert caught.value.batch == 1
    assert taken.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in taken.model.state_dict().items())


def test_steps_after_a_saved_state_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    whole, first = optimiser(regression()), optimiser(regression())
    for number in range(2):
        step(first, batch(number))
    save_state(first.state_dict(), tmp_path / "state.pt")
    rest = optimiser(regression())
    rest.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert rest.steps == 2
    for number in range(STEPS):
        step(whole, batch(number))
    for number in range(2, STEPS):
        step(rest, batch(number))
    for ours, theirs in ((whole.model, rest.model), (whole.averaged, rest.averaged)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_a_loaded_state_takes_the_learning_rates_and_decay_of_the_new_settings() -> None:
    saved, changed = optimiser(regression()), optimiser(regression(), lr=0.3, weight_decay=0.0)
    changed.load_state_dict(saved.state_dict())
    assert {group["base_lr"] for group in changed.adamw.param_groups} == {0.3, 0.01}
    assert {group["weight_decay"] for group in changed.adamw.param_groups} == {0.0}


def test_every_parameter_is_trained_once_and_only_matrices_decay() -> None:
    model = build_model(read_model_config("tiny"))
    groups = parameter_groups(model, SETTINGS)
    in_groups = [id(p) for group in groups for p in group["params"]]
    assert sorted(in_groups) == sorted({id(p) for p in model.parameters()})
    decays = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        bare = parameter.ndim < 2 or not name.endswith("weight")
        assert decays[id(parameter)] is not bare, name
        assert rates[id(parameter)] == (CONFIG.lr_backbone if name.startswith("backbone") else CONFIG.lr), name
    assert not decays[id(model.decoder.level_tokens)]
    assert not decays[id(model.decoder.norm.weight)]


def test_the_logit_of_none_of_these_learns_fast_enough_to_get_anywhere() -> None:
    model = build_model(dataclasses.replace(read_model_config("tiny"), generic_queries=4))
    assert model.generic is not None
    rates = {id(p): group["base_lr"] for group in parameter_groups(model, SETTINGS) for p in group["params"]}
    assert rates[id(model.generic.none)] == pytest.approx(30 * CONFIG.lr)
    assert rates[id(model.generic.level_embed)] == CONFIG.lr


def test_the_learning_rate_warms_up_and_falls_to_its_last_share() -> None:
    factors = [learning_rate_factor(step, step / 100, CONFIG.warmup, CONFIG.lr_final) for step in range(101)]
    assert factors[0] < factors[1] < factors[2]
    assert factors[2] == pytest.approx(1, abs=0.01)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(CONFIG.lr_final)
