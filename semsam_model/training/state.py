"""A training run between two steps: models, optimiser, schedule, and their file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from semsam_model.checkpoints.run_weights import OWN_DECODERS, read_network, with_own_decoders
from semsam_model.config import read_model_config
from semsam_model.data.vocabulary import NameTable, Vocabulary
from semsam_model.errors import CheckpointError, ConfigError, TrainingError
from semsam_model.files import atomic_write
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.training.batches import Batch
from semsam_model.training.config import TrainConfig
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.objective import Objective
from semsam_model.training.optimiser import NotFinite, Optimiser, OptimiserSettings, save_state

STATE, WEIGHTS = "state.pt", "model.safetensors"
#: What `init` weights may lack: learned on top of them.
MAY_BE_FRESH = ("name_head.", "decoder.correction_embed", "generic.")
#: Projections to the space of label vectors. Those of `init` start anew where they are for another text encoder.
TEXT_PROJECTIONS = tuple(f"{of}decoder.{kind}_projection" for of in ("", OWN_DECODERS) for kind in ("object", "part"))
#: Parameters that may come from ImageNet and learn with `lr_backbone`.
PRETRAINED = ("backbone.", "name_head.classes.")
#: Logits of "none of these". They must grow to the size of the other logits (scale times cosine), and AdamW moves a
#: parameter by about the learning rate a step: they learn with `lr` times NO_LABEL_RATE.
NO_LABEL_LOGITS = "generic.none"
NO_LABEL_RATE = 30


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict as safetensors, in one move."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(state))


class Run:
    """A training run between two steps: what a resumed run must find again."""

    def __init__(
        self, config: TrainConfig, out: Path, distributed: Distributed, vocabulary: Vocabulary | None = None
    ) -> None:
        """vocabulary: labels of the data; names are learned once `use_names` or `load` gave their vectors.

        Raises ConfigError where config and model do not fit, CheckpointError for weights to start from.
        """
        self.config, self.out, self.distributed, self.vocabulary = config, out, distributed, vocabulary
        self.name_vectors: Tensor | None = None
        torch.manual_seed(config.seed)
        self.model: SemanticSAM = build_model(read_model_config(config.model)).to(distributed.device)
        if config.init_backbone is not None:
            self._start_backbone(Path(config.init_backbone))
        _check_fit(config, self.model)
        #: names of parameters that `init` did not have
        self.fresh: list[str] = [] if config.init is None else _load_init(self.model, Path(config.init))
        self.model.train()
        if config.learn != "everything":
            self.model.requires_grad_(False)
            for parameter in learning(self.model, config.learn):
                parameter.requires_grad_(True)
        self.optimiser = Optimiser(self.model, optimiser_settings(config), distributed)
        self.objective = Objective(self.model, config, distributed)
        self.loss: Callable[[Batch], LossOutput] = distributed.wrap(self.objective)
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

    def use_names(self, vectors: Tensor) -> None:
        """From now on names are trained too. vectors: of the vocabulary's rows, (V, E)."""
        assert self.vocabulary is not None
        self.name_vectors = vectors
        table = NameTable.of(self.vocabulary, vectors).to(self.distributed.device)
        self.objective.prompt_loss.name_table = table

    @property
    def averaged(self) -> SemanticSAM:
        """The model of averaged weights, in evaluation mode."""
        return self.optimiser.averaged

    @property
    def step(self) -> int:
        """Steps done."""
        return self.optimiser.steps

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
        own = [self.config.seed, self.step] + [self.distributed.rank] * (not self.distributed.is_main)
        torch.manual_seed(int(np.random.SeedSequence(own).generate_state(1)[0]))
        try:
            return self.optimiser.step(batches, self.loss, self.progress)
        except NotFinite as error:
            raise self._not_finite(batches[error.batch], error) from None

    def _not_finite(self, batch: Batch, error: NotFinite) -> TrainingError:
        """Processes whose own loss or gradient is not finite save their batch."""
        if math.isfinite(error.values[self.distributed.rank]):
            bad = [str(rank) for rank, value in enumerate(error.values) if not math.isfinite(value)]
            return TrainingError(
                f"step {self.step}: expected a finite loss and gradient, got another one in process {', '.join(bad)}, "
                "which names its photos"
            )
        is_main = self.distributed.is_main
        path = self.out / ("not_finite.pt" if is_main else f"not_finite_{self.distributed.rank}.pt")
        prompts = batch.prompts
        saved = {
            "step": self.step,
            "names": batch.names,
            "images": batch.images,
            "boxes": prompts.boxes,
            "kinds": prompts.kinds,
            "masks": prompts.targets.masks,
            "of_prompt": prompts.targets.of_prompt,
            "labels": prompts.labels,
            "seeds": batch.seeds,
            "number": batch.number,
        }
        save_state(saved, path)
        return TrainingError(
            f"{error}, on {', '.join(batch.names)}; batch saved in {path}. Resume from the last saved state "
            "with a smaller lr or bfloat16: false"
        )

    def save(self) -> None:
        """Write what `load` needs, and the averaged weights; only the first process does."""
        if not self.distributed.is_main:
            return
        state = self.optimiser.state_dict() | {
            "seconds": self.seconds,
            "labels": None if self.name_vectors is None or self.vocabulary is None else _as_json(self.vocabulary),
            "label_vectors": self.name_vectors,
            "processes": self.distributed.world_size,
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        save_state(state, self.out / STATE)
        save_weights(self.averaged, self.out / WEIGHTS)

    def load(self, console: Console) -> None:
        """Go on where `save` left off. Settings may differ from the saved ones, and are named; the model may not."""
        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; resume expects the folder of an earlier run")
        try:
            state = torch.load(path, map_location=self.distributed.device, weights_only=True)
            self.optimiser.load_state_dict(state)
        except Exception as exc:  # torch raises many kinds, all of which mean: not this run's state
            raise CheckpointError(f"{path}: expected the saved state of model {self.config.model}: {exc}") from exc
        if self.config.loss.names > 0:
            if self.vocabulary is None or state.get("labels") != _as_json(self.vocabulary):
                raise CheckpointError(
                    f"{path}: its names were learned with other label lists than the data has; resume with the data of "
                    "that run, or start a new run with `init`"
                )
            self.use_names(state["label_vectors"].cpu())
        self.seconds = float(state["seconds"])
        before, now = json.loads(state["config"]), json.loads(json.dumps(dataclasses.asdict(self.config)))
        before["processes"], now["processes"] = state.get("processes", 1), self.distributed.world_size
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        console.print(f"resumed at step {self.step}" + (f"; changed settings: {'; '.join(changed)}" if changed else ""))


def learning(model: SemanticSAM, learn: str) -> Iterator[nn.Parameter]:
    """The parameters that `learn` of the config trains, where that is not everything."""
    if learn == "generic":
        assert model.generic is not None
        yield from model.generic.parameters()
        return
    yield from model.decoder.parameters()
    if learn == "decoders":  # without the projections of the backbone's maps, which object queries read too
        yield from (p for name, p in model.pixel_decoder.named_parameters() if not name.startswith("input_proj."))


def optimiser_settings(config: TrainConfig) -> OptimiserSettings:
    """Learning rates: of the backbone, of "none of these", and of the rest."""
    return OptimiserSettings(
        lr=config.lr,
        rates=dict.fromkeys(PRETRAINED, config.lr_backbone) | {NO_LABEL_LOGITS: config.lr * NO_LABEL_RATE},
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        lr_final=config.lr_final,
        clip=config.clip,
        ema=config.ema,
    )


def _check_fit(config: TrainConfig, model: SemanticSAM) -> None:
    """Raises ConfigError where a run asks for what its model cannot do."""
    if config.rounds.prompts and not model.config.corrections:
        raise ConfigError(
            f"rounds: prompts {config.rounds.prompts}, but model {config.model} takes no further clicks; "
            "set `corrections: true` in its config, or prompts to 0"
        )
    if config.loss.generic > 0 and model.generic is None:
        raise ConfigError(f"loss.generic: model {config.model} has no object queries; set generic_queries in it")
    if config.reuse.times > 1 and model.generic is not None and model.generic.decoder is not None:
        raise ConfigError(
            f"reuse: times {config.reuse.times}, but object queries of {config.model} have decoders of their "
            "own, which change what was kept; set times to 1"
        )


def _as_json(vocabulary: Vocabulary) -> str:
    return json.dumps([vocabulary.rows, vocabulary.counts])


def _load_init(model: nn.Module, path: Path) -> list[str]:
    """Load a state dict; returns the parameters that stay as initialised: what it lacks and may lack, and projections
    to the space of another text encoder. Object queries' own decoders, where it has none, start as those of clicks.
    """
    found, own = read_network(path), model.state_dict()
    found = with_own_decoders(own, found, found)
    fresh = [name for name in own if name not in found and name.startswith(MAY_BE_FRESH)]
    fresh += [name for name in TEXT_PROJECTIONS if name in found and found[name].shape[1:] != own[name].shape[1:]]
    try:
        model.load_state_dict(found | {name: own[name] for name in fresh})
    except RuntimeError as exc:  # other names or shapes
        raise CheckpointError(f"{path}: expected a state dict of this model as safetensors: {exc}") from exc
    return fresh
