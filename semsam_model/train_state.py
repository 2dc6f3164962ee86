"""A training run between two steps: models, optimiser, schedule, and their file."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save
from torch import Tensor, nn

from semsam_model.batches import Batch
from semsam_model.checkpoint import RANKER
from semsam_model.config import read_model_config
from semsam_model.decoder import LayerOutput
from semsam_model.errors import CheckpointError, ConfigError, TrainingError
from semsam_model.generic_losses import generic_loss, with_names
from semsam_model.losses import LossOutput, training_loss
from semsam_model.model import SemanticSAM, build_model
from semsam_model.name_losses import name_loss
from semsam_model.pixel_decoder import Features
from semsam_model.rounds import correct
from semsam_model.train_config import TrainConfig
from semsam_model.vocabulary import NO_LABEL, NameTable, Vocabulary

STATE = "state.pt"
#: What `init` weights may lack: learned on top of them.
MAY_BE_FRESH = ("name_head.", "decoder.correction_embed", "generic.")
#: Parameters that may come from ImageNet and learn with `lr_backbone`.
PRETRAINED = ("backbone.", "name_head.classes.")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict as safetensors, in one move."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(state))
    temporary.replace(path)


class Run:
    """Model, averaged model, optimiser and the count of steps: what a resumed run must find again."""

    def __init__(
        self, config: TrainConfig, out: Path, device: torch.device, vocabulary: Vocabulary | None = None
    ) -> None:
        """vocabulary: labels of the data; names are learned once `learn_names` or `load` gave their vectors."""
        self.config, self.out, self.device, self.vocabulary = config, out, device, vocabulary
        self.name_vectors: Tensor | None = None
        self.name_table: NameTable | None = None
        self.fresh: list[str] = []
        torch.manual_seed(config.seed)
        self.model: SemanticSAM = build_model(read_model_config(config.model)).to(device)
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
            self.model.requires_grad_(False)
            self.model.generic.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), betas=(0.9, 0.999))
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
        self.name_table = NameTable.of(self.vocabulary, vectors).to(self.device)

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

    def forward(self, batch: Batch) -> LossOutput:
        images = self.model.normalise(batch.images.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            if self.config.learn == "generic":
                with torch.no_grad():
                    features = self.model.features(images)
                return self._with_generic(LossOutput(images.new_zeros(()), (), ()), features, batch)
            features = self.model.features(images)
            boxes, kinds = batch.boxes.to(self.device), batch.kinds.to(self.device)
            layers = self.model.prompt(features, boxes, kinds, all_layers=True)
            targets = batch.targets.to(self.device)
            result = training_loss(layers, features.mask_features, targets, self.config.loss)
            if self.name_table is not None:
                result = self._with_names(result, features, layers[-1], batch)
            if self.config.rounds.prompts:
                rounds = self.config.rounds
                rng = np.random.default_rng(int(torch.randint(2**31, ())))  # of this step, as every random number
                again, held_to = correct(self.model, features, boxes, kinds, targets, layers[-1], rounds, rng)
                corrected = training_loss(again, features.mask_features, held_to, self.config.loss)
                result = dataclasses.replace(
                    result, total=result.total + rounds.weight * corrected.total, corrected=corrected
                )
            return self._with_generic(result, features, batch) if batch.generic else result

    def _with_names(self, result: LossOutput, features: Features, last: LayerOutput, batch: Batch) -> LossOutput:
        assert self.name_table is not None
        objects, parts, labels = [], [], []
        for image, match in enumerate(result.matches):
            rows = batch.labels[image].to(self.device)[match.target]
            query, rows = match.query[rows != NO_LABEL], rows[rows != NO_LABEL]
            of_object, of_part = self.model.class_embeddings(features, last, image, query)
            objects.append(of_object)
            parts.append(of_part)
            labels.append(rows)
        names = name_loss(
            torch.cat(objects), torch.cat(parts), torch.cat(labels), self.name_table, self.model.name_scales()
        )
        return dataclasses.replace(result, total=result.total + self.config.loss.names * names.total, names=names)

    def _with_generic(self, result: LossOutput, features: Features, batch: Batch) -> LossOutput:
        frozen = self.config.learn == "generic"
        wanted = [targets.to(self.device) for targets in batch.generic]
        outputs = [self.model.object_queries(features, image, frozen) for image in range(len(wanted))]
        loss = generic_loss(outputs, features.mask_features, features.shapes, wanted)
        if self.name_table is not None:
            assert self.model.generic is not None
            loss = with_names(loss, outputs, wanted, self.name_table, self.model.name_scales(), self.model.generic.none)
        return dataclasses.replace(result, total=result.total + self.config.loss.generic * loss.total, generic=loss)

    def optimise(self, batches: Sequence[Batch]) -> tuple[LossOutput, float]:
        """One step; returns the loss of the last batch and the mean total. Raises TrainingError when not finite."""
        factor = learning_rate_factor(self.config, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            result = self.forward(batch)
            value = float(result.total.detach())
            if not math.isfinite(value):
                raise self._not_finite(batch, value)
            (result.total / len(batches)).backward()
            total += value / len(batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not math.isfinite(float(norm)):
            raise self._not_finite(batch, float(norm))
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

    def _not_finite(self, batch: Batch, value: float) -> TrainingError:
        path = self.out / "not_finite.pt"
        torch.save({"step": self.step, "names": batch.names, "images": batch.images, "boxes": batch.boxes}, path)
        return TrainingError(
            f"step {self.step}: expected a finite loss and gradient, got {value}, on {', '.join(batch.names)}; batch "
            f"saved in {path}. Resume from the last saved state with a smaller lr or bfloat16: false"
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
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        temporary = self.out / (STATE + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.out / STATE)

    def load(self, console: Console) -> None:
        """Go on where `save` left off. Settings may differ from the saved ones, and are named; the model may not."""
        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; resume expects the folder of an earlier run")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
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
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        for group, fresh in zip(self.optimizer.param_groups, parameter_groups(self.model, self.config), strict=True):
            group.update({key: fresh[key] for key in ("base_lr", "weight_decay")})
        console.print(f"resumed at step {self.step}" + (f"; changed settings: {'; '.join(changed)}" if changed else ""))


def _as_json(vocabulary: Vocabulary) -> str:
    return json.dumps([vocabulary.rows, vocabulary.counts])


def _load_whole(model: nn.Module, path: Path) -> list[str]:
    """Load a state dict; returns the parameters that it lacks and may lack, which stay as initialised."""
    try:
        # a packed file holds half precision and a ranker beside the network
        found = {name: value.float() for name, value in load_file(path).items() if not name.startswith(RANKER)}
    except Exception as exc:  # missing file, not safetensors
        raise CheckpointError(f"{path}: expected a state dict of this model as safetensors: {exc}") from exc
    fresh = [name for name in model.state_dict() if name not in found and name.startswith(MAY_BE_FRESH)]
    try:
        model.load_state_dict(found | {name: model.state_dict()[name] for name in fresh})
    except RuntimeError as exc:  # other names or shapes
        raise CheckpointError(f"{path}: expected a state dict of this model as safetensors: {exc}") from exc
    return fresh


def parameter_groups(model: SemanticSAM, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: backbone and the rest, each with and without weight decay.

    Only matrices and kernels decay. Embeddings and position tables are bare parameters, so their names do not end in
    `weight`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (name.startswith(PRETRAINED), parameter.ndim >= 2 and name.endswith("weight"))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": config.lr_backbone if backbone else config.lr,
            "lr": 0.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up by step, times a cosine from 1 to `lr_final` over the progress 0..1."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    return warm * (config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * progress)))
