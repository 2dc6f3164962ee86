"""A training run between two steps: models, optimiser, schedule, and their file."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from semsam_model.checkpoints.run_weights import OWN_DECODERS, read_network, with_own_decoders
from semsam_model.config import read_model_config
from semsam_model.data.vocabulary import NameTable, Vocabulary
from semsam_model.errors import CheckpointError, ConfigError, TrainingError
from semsam_model.files import replacing
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.training.batches import Batch
from semsam_model.training.config import TrainConfig
from semsam_model.training.distributed import Processes
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.objective import Objective

STATE = "state.pt"
#: What `init` weights may lack: learned on top of them.
MAY_BE_FRESH = ("name_head.", "decoder.correction_embed", "generic.")
#: What they may have for another text encoder: useless then. Published ones were never trained.
OF_TEXT = tuple(f"{of}decoder.{kind}_projection" for of in ("", OWN_DECODERS) for kind in ("object", "part"))
#: Parameters that may come from ImageNet and learn with `lr_backbone`.
PRETRAINED = ("backbone.", "name_head.classes.")
#: Logits of "none of these", of the size of the other logits (scale times cosine); AdamW moves a parameter by about the
#: learning rate a step, which would never get them there.
NONE = "generic.none"
NONE_RATE = 30


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict as safetensors, in one move."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state))


class Run:
    """Model, averaged model, optimiser and the count of steps: what a resumed run must find again."""

    def __init__(
        self, config: TrainConfig, out: Path, processes: Processes, vocabulary: Vocabulary | None = None
    ) -> None:
        """vocabulary: labels of the data; names are learned once `learn_names` or `load` gave their vectors."""
        self.config, self.out, self.processes, self.vocabulary = config, out, processes, vocabulary
        self.name_vectors: Tensor | None = None
        self.fresh: list[str] = []
        torch.manual_seed(config.seed)
        self.model: SemanticSAM = build_model(read_model_config(config.model)).to(processes.device)
        if config.init_backbone is not None:
            self._start_backbone(Path(config.init_backbone))
        if config.rounds.prompts and not self.model.config.corrections:
            raise ConfigError(
                f"rounds: prompts {config.rounds.prompts}, but model {config.model} takes no further clicks; "
                "set `corrections: true` in its config, or prompts to 0"
            )
        if config.init is not None:
            self.fresh = _load_whole(self.model, Path(config.init))
        self.ema: SemanticSAM = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.train()
        if config.loss.generic > 0 and self.model.generic is None:
            raise ConfigError(f"loss.generic: model {config.model} has no object queries; set generic_queries in it")
        if config.learn == "generic":
            assert self.model.generic is not None
            if config.reuse.times > 1 and self.model.generic.decoder is not None:
                raise ConfigError(
                    f"reuse: times {config.reuse.times}, but object queries of {config.model} have decoders of their "
                    "own, which change what was kept; set times to 1"
                )
            self.model.requires_grad_(False)
            self.model.generic.requires_grad_(True)
        self.objective = Objective(self.model, config, processes)
        self.forward: Callable[[Batch], LossOutput] = processes.wrap(self.objective)
        fused = True if processes.device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), betas=(0.9, 0.999), fused=fused)
        self.step = 0
        self.seconds = 0.0

    def _start_backbone(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; init_backbone expects ImageNet weights of the backbone")
        load = getattr(self.model.backbone, "load_imagenet", None)
        if load is None:
            raise ConfigError(f"init_backbone: model {self.config.model} has no ImageNet loader; use init instead")
        load(path)
        if self.model.name_head is not None:
            self.model.name_head.load_imagenet(path)

    def learn_names(self, vectors: Tensor) -> None:
        """Text vectors (V, E) of the vocabulary's rows."""
        assert self.vocabulary is not None
        self.name_vectors = vectors
        self.objective.name_table = NameTable.of(self.vocabulary, vectors).to(self.processes.device)

    @property
    def progress(self) -> float:
        """Share of the schedule that lies behind, 0..1."""
        if self.config.anneal == "time" and self.config.time_limit_minutes is not None:
            return min(1.0, self.seconds / (60 * self.config.time_limit_minutes))
        return self.step / self.config.steps

    @property
    def size(self) -> int:
        """Image size of the current step."""
        left = self.step
        for stage in self.config.stages:
            if left < stage.steps:
                break
            left -= stage.steps
        return stage.size

    def optimise(self, batches: Sequence[Batch]) -> tuple[LossOutput, float]:
        """One step; returns this process's loss of the last batch, and the mean total of all batches and processes.

        Raises TrainingError, in every process, when a loss or gradient is not finite; the batch is saved then.
        """
        factor = learning_rate_factor(self.step, self.progress, self.config.warmup, self.config.lr_final)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        own = [self.config.seed, self.step] + [self.processes.rank] * (not self.processes.first)
        torch.manual_seed(int(np.random.SeedSequence(own).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            with self.processes.together(self.forward, number == len(batches)):
                result = self.forward(batch)
                values = self.processes.table([float(result.total.detach())])[:, 0]
                if not np.isfinite(values).all():
                    raise self._not_finite(batch, values.tolist())
                (result.total / len(batches)).backward()
            total += float(values.mean()) / len(batches)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not math.isfinite(norm):
            raise self._not_finite(batch, [norm] * self.processes.count)
        self.optimizer.step()
        self.step += 1
        self._average()
        return result, total

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        ours, theirs = self.ema, self.model
        averages: list[Tensor] = list(ours.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in theirs.parameters()], 1 - decay)
        for average, buffer in zip(ours.buffers(), theirs.buffers(), strict=True):
            average.copy_(buffer)

    def _not_finite(self, batch: Batch, values: Sequence[float]) -> TrainingError:
        """values: loss or norm of each process. Those whose own is not finite save their batch."""
        value, step = values[self.processes.rank], f"step {self.step}: expected a finite loss and gradient, got"
        if math.isfinite(value):
            bad = [str(rank) for rank, other in enumerate(values) if not math.isfinite(other)]
            return TrainingError(f"{step} another one in process {', '.join(bad)}, which names its photos")
        path = self.out / ("not_finite.pt" if self.processes.first else f"not_finite_{self.processes.rank}.pt")
        targets = {"masks": batch.targets.masks, "of_prompt": batch.targets.of_prompt, "labels": batch.labels}
        prompts = {"boxes": batch.boxes, "kinds": batch.kinds, "seeds": batch.seeds, "number": batch.number}
        torch.save({"step": self.step, "names": batch.names, "images": batch.images, **prompts, **targets}, path)
        return TrainingError(
            f"{step} {value}, on {', '.join(batch.names)}; batch saved in {path}. Resume from the last saved state "
            "with a smaller lr or bfloat16: false"
        )

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "labels": None if self.name_vectors is None or self.vocabulary is None else _as_json(self.vocabulary),
            "label_vectors": self.name_vectors,
            "processes": self.processes.count,
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        with replacing(self.out / STATE) as temporary:
            torch.save(state, temporary)

    def load(self, console: Console) -> None:
        """Go on where `save` left off. Settings may differ from the saved ones, and are named; the model may not."""
        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; resume expects the folder of an earlier run")
        try:
            state = torch.load(path, map_location=self.processes.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as exc:  # torch raises many kinds, all of which mean: not this run's state
            raise CheckpointError(f"{path}: expected the saved state of model {self.config.model}: {exc}") from exc
        if self.config.loss.names > 0:
            if self.vocabulary is None or state.get("labels") != _as_json(self.vocabulary):
                raise CheckpointError(
                    f"{path}: its names were learned with other label lists than the data has; resume with the data of "
                    "that run, or start a new run with `init`"
                )
            self.learn_names(state["label_vectors"].cpu())
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        before, now = json.loads(state["config"]), json.loads(json.dumps(dataclasses.asdict(self.config)))
        before["processes"], now["processes"] = state.get("processes", 1), self.processes.count
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        for group, fresh in zip(self.optimizer.param_groups, parameter_groups(self.model, self.config), strict=True):
            group.update({key: fresh[key] for key in ("base_lr", "weight_decay")})
        console.print(f"resumed at step {self.step}" + (f"; changed settings: {'; '.join(changed)}" if changed else ""))


def _as_json(vocabulary: Vocabulary) -> str:
    return json.dumps([vocabulary.rows, vocabulary.counts])


def _load_whole(model: nn.Module, path: Path) -> list[str]:
    """Load a state dict; returns the parameters that stay as initialised: what it lacks and may lack, and projections
    to the space of another text encoder. Object queries' own decoders, where it has none, start as those of clicks.
    """
    found, own = read_network(path), model.state_dict()
    found = with_own_decoders(own, found, found)
    fresh = [name for name in own if name not in found and name.startswith(MAY_BE_FRESH)]
    fresh += [name for name in OF_TEXT if name in found and found[name].shape[1:] != own[name].shape[1:]]
    try:
        model.load_state_dict(found | {name: own[name] for name in fresh})
    except RuntimeError as exc:  # other names or shapes
        raise CheckpointError(f"{path}: expected a state dict of this model as safetensors: {exc}") from exc
    return fresh


def parameter_groups(model: SemanticSAM, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups of what learns: backbone, "none of these" and the rest, see `decay_groups`."""
    rates = dict.fromkeys(PRETRAINED, config.lr_backbone) | {NONE: config.lr * NONE_RATE}
    return decay_groups(model, rates, config.lr, config.weight_decay)


def decay_groups(
    model: SemanticSAM, rates: Mapping[str, float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups of what learns: parameters whose names begin with a key of `rates` at its learning rate, and the
    rest at `lr`; each with and without weight decay.

    Only matrices and kernels decay. Embeddings and position tables are bare parameters, so their names do not end in
    `weight`.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        apart = next((prefix for prefix in rates if name.startswith(prefix)), "")
        groups.setdefault((apart, parameter.ndim >= 2 and name.endswith("weight")), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": rates.get(apart, lr),
            "lr": 0.0,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (apart, decays), parameters in groups.items()
    ]


def learning_rate_factor(step: int, progress: float, warmup: int, final: float) -> float:
    """Linear warm-up over so many steps, times a cosine from 1 to `final` over the progress 0..1."""
    warm = min(1.0, (step + 1) / (warmup + 1))
    return warm * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
