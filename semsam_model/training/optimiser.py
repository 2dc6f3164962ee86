"""The optimiser step that training and fine-tuning share, and the state file that both go on from.

A step is: the learning rate of the schedule, the gradient of the mean loss of some batches, a check that loss and
gradient are finite, clipping, AdamW, and the moving average of the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from semsam_model.errors import TrainingError
from semsam_model.files import atomic_write
from semsam_model.network.model import SemanticSAM
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import LossOutput

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class OptimiserSettings:
    """What AdamW, its schedule and the average of the weights depend on."""

    lr: float
    rates: Mapping[str, float]  #: prefix of parameter names -> learning rate of those parameters, in place of `lr`
    weight_decay: float  #: of matrices and kernels
    warmup: int  #: steps
    lr_final: float  #: share of the learning rates that is left at the end of the cosine
    clip: float  #: largest norm of the whole gradient
    ema: float  #: decay of the averaged weights
    ema_delay: int = 0  #: steps by which the ramp of `ema` starts later, see `Optimiser.step`


class NotFinite(TrainingError):
    """A loss or a gradient is infinite or not a number; no weight was changed."""

    def __init__(self, step: int, batch: int, values: Sequence[float], rank: int) -> None:
        """batch: number of the batch in the step; values: the loss or the gradient's norm in each process."""
        super().__init__(f"step {step}: expected a finite loss and gradient, got {values[rank]}")
        self.batch, self.values = batch, values


class Optimiser:
    """AdamW on what is trained of a model, with the averaged model; counts its steps."""

    def __init__(self, model: SemanticSAM, settings: OptimiserSettings, distributed: Distributed) -> None:
        """Parameters that do not require a gradient now are never trained."""
        self.model, self.settings, self.distributed = model, settings, distributed
        self.averaged: SemanticSAM = copy.deepcopy(model).eval().requires_grad_(False)
        self.adamw = torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.999), fused=True)
        self.steps = 0

    def step(
        self, batches: Sequence[Batch], loss: Callable[[Batch], LossOutput], progress: float
    ) -> tuple[LossOutput, float]:
        """One step; returns this process's loss of the last batch, and the mean total of all batches and processes.

        loss: a function, or what `Distributed.wrap` returned. progress: share of the schedule that lies behind, 0..1.
        The decay of the average grows as (1 + n) / (10 + n) with the n-th step, up to `ema`, so that the first weights
        are soon forgotten (TensorFlow's ExponentialMovingAverage, num_updates); buffers are copied.
        Raises NotFinite, in every process.
        """
        factor = learning_rate_factor(self.steps, progress, self.settings.warmup, self.settings.lr_final)
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.adamw.zero_grad(set_to_none=True)
        total = 0.0
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with self.distributed.sync_gradients(loss, last):
                result = loss(batch)
                values = self.distributed.gather([float(result.total.detach())])[:, 0]
                if not np.isfinite(values).all():
                    raise NotFinite(self.steps, number, values.tolist(), self.distributed.rank)
                (result.total / len(batches)).backward()
            total += float(values.mean()) / len(batches)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip))
        if not math.isfinite(norm):
            raise NotFinite(self.steps, number, [norm] * self.distributed.world_size, self.distributed.rank)
        self.adamw.step()
        self.steps += 1
        self._average()
        return result, total

    @torch.no_grad()
    def _average(self) -> None:
        updates = self.steps - self.settings.ema_delay
        decay = min(self.settings.ema, (1 + updates) / (10 + updates))
        averages: list[Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], 1 - decay)
        for average, buffer in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """Both models, AdamW's moments and the count of steps."""
        return {
            "model": self.model.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimizer": self.adamw.state_dict(),
            "step": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Learning rates and weight decay stay those of the settings. Raises KeyError, RuntimeError, ValueError."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["ema"])
        self.adamw.load_state_dict(state["optimizer"])
        self.steps = int(state["step"])
        fresh = parameter_groups(self.model, self.settings)
        for group, of_settings in zip(self.adamw.param_groups, fresh, strict=True):
            group.update({key: of_settings[key] for key in ("base_lr", "weight_decay")})


def parameter_groups(model: nn.Module, settings: OptimiserSettings) -> list[dict[str, Any]]:
    """AdamW groups of what requires a gradient: by the prefix of `rates`, each with and without weight decay.

    Only matrices and kernels decay. Embeddings and position tables are bare parameters, so their names do not end in
    `weight`.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = next((prefix for prefix in settings.rates if name.startswith(prefix)), "")
        groups.setdefault((prefix, parameter.ndim >= 2 and name.endswith("weight")), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": settings.rates.get(prefix, settings.lr),
            "lr": 0.0,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (prefix, decays), parameters in groups.items()
    ]


def learning_rate_factor(step: int, progress: float, warmup: int, final: float) -> float:
    """Linear warm-up over so many steps, times a cosine from 1 to `final` over the progress 0..1."""
    warm = min(1.0, (step + 1) / (warmup + 1))
    return warm * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state for `torch.load`, whole or not at all."""
    with atomic_write(path) as temporary:
        torch.save(dict(state), temporary)
