"""What a training run is made of: one frozen dataclass, filled from configs/train/NAME.yaml, unknown keys refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from semsam_model.config import check_fields, read_yaml
from semsam_model.errors import ConfigError
from semsam_model.training.batches import SamplingConfig, Stage
from semsam_model.training.losses.masks import LossConfig
from semsam_model.training.replay import ReuseConfig
from semsam_model.training.simulated_corrections import RoundsConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on but the data and the device."""

    model: str
    """Name or YAML file of the model config"""
    stages: tuple[Stage, ...]
    """Stretches of optimiser steps at one image size, in order"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    seed: int = 0
    init: str | None = None
    """Weights of the whole model to start from (a run's model.safetensors)"""
    init_backbone: str | None = None
    """ImageNet weights of the backbone to start from (safetensors)"""
    text_encoder: str | None = None
    """Folder or hub name of the encoder of labels; the installed package when null. Only where names are learned"""
    learn: str = "everything"
    """everything, or generic: only what object queries add; clicks and their names stay bit for bit (needs init)"""
    lr: float = 4e-4
    lr_backbone: float = 5e-5
    lr_final: float = 0.01
    """Share of the learning rates that is left at the end of the cosine"""
    warmup: int = 100
    """Steps of linear warm-up"""
    weight_decay: float = 0.05
    """Of matrices and kernels; none for norms, biases and embeddings"""
    clip: float = 1.0
    """Largest norm of the whole gradient"""
    accumulate: int = 1
    """Batches a step"""
    bfloat16: bool = True
    """Autocast to bfloat16; losses stay float32"""
    ema: float = 0.999
    """Decay of the averaged weights; ramps up over the first steps"""
    time_limit_minutes: float | None = None
    """Stop cleanly after this much training time, counted over resumed runs"""
    anneal: str = "steps"
    """What the cosine runs against: steps, or time (needs time_limit_minutes) where the number of steps is unknown"""
    threads: int | None = None
    """Threads of the arithmetic; torch's choice when null"""
    workers: int = 1
    """Processes that prepare batches; 0 prepares them in the loop"""
    log_every: int = 20
    save_every: int = 200
    probe_every: int = 200
    """Steps between validation figures and pictures"""
    probe_per_source: int = 3
    """Validation photos a source for them"""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        checks = (
            (len(self.stages) > 0, "stages: expected at least one"),
            (self.learn in ("everything", "generic"), f"learn {self.learn!r}: expected everything or generic"),
            (
                self.learn == "everything" or (self.init is not None and self.loss.generic > 0),
                "learn: generic needs init, the weights to build on, and loss.generic above 0",
            ),
            (
                self.learn == "generic" or self.reuse.times == 1,
                f"reuse: times {self.reuse.times} needs learn: generic; whatever else learns changes what was kept",
            ),
            (self.anneal in ("steps", "time"), f"anneal {self.anneal!r}: expected steps or time"),
            (self.anneal == "steps" or self.time_limit_minutes is not None, "anneal: time needs time_limit_minutes"),
            (
                self.time_limit_minutes is None or self.time_limit_minutes > 0,
                "time_limit_minutes: expected more than 0",
            ),
            (
                self.lr > 0 and self.lr_backbone >= 0 and self.clip > 0,
                "lr, lr_backbone, clip: expected positive numbers",
            ),
            (0 <= self.ema < 1 and 0 <= self.lr_final <= 1, "ema: expected 0 <= ema < 1, lr_final: 0..1"),
            (
                min(self.accumulate, self.log_every, self.save_every, self.probe_every, self.probe_per_source) >= 1,
                "accumulate, log_every, save_every, probe_every, probe_per_source: expected at least 1",
            ),
            (self.warmup >= 0 and self.workers >= 0 and self.seed >= 0, "warmup, workers, seed: expected at least 0"),
        )
        for good, message in checks:
            if not good:
                raise ConfigError(f"training config: {message}")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def from_dict(cls, values: object, where: str = "training config") -> TrainConfig:
        """Checked construction from plain values. Raises ConfigError naming the key."""
        known = check_fields(cls, values, where)
        parts: dict[str, type] = {
            "sampling": SamplingConfig,
            "loss": LossConfig,
            "rounds": RoundsConfig,
            "reuse": ReuseConfig,
        }
        for name, part in parts.items():
            if name in known:
                known[name] = part(**check_fields(part, known[name], f"{where}: {name}"))
        known["stages"] = tuple(Stage(**check_fields(Stage, s, f"{where}: stages")) for s in known["stages"])
        return cls(**known)


def read_train_config(path: Path) -> TrainConfig:
    """Read a training YAML file, unknown keys refused. Raises ConfigError."""
    return TrainConfig.from_dict(read_yaml(path), str(path))
