"""How a fine-tuning job learns: configs/finetune.yaml as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from semsam_model.config import check_fields, config_root, read_yaml
from semsam_model.errors import ConfigError
from semsam_model.training.batches import SamplingConfig
from semsam_model.training.losses.masks import LossConfig
from semsam_model.training.simulated_corrections import RoundsConfig

Learn = Literal["heads", "decoder", "everything"]
#: Beginnings of the names of parameters that learn.
LEARNS: dict[str, tuple[str, ...]] = {
    "heads": (
        "decoder.mask_head.",
        "decoder.iou_head.",
        "decoder.object_projection",
        "decoder.part_projection",
        "name_head.",
    ),
    "decoder": ("decoder.", "name_head."),
    "everything": ("",),
}
#: Learn with `lr_features`: they know more than a project's photos can tell.
FEATURES = ("backbone.", "pixel_decoder.", "name_head.classes.")


@dataclass(frozen=True)
class FineTuneConfig:
    """How a job learns. The values of configs/finetune.yaml are those that were measured (docs/finetune.md)."""

    learn: Learn = "decoder"
    """heads, decoder (with heads), or everything: the last encodes photos at every step, and takes many times longer"""
    steps: int = 300
    batch: int = 2
    """Photos a step"""
    size: int | None = None
    """Side of a view, pixels, a multiple of 32; null = the size that the model sees photos at"""
    views: int = 8
    """Views of a photo; each is encoded once"""
    lr: float = 2e-4
    lr_features: float = 2e-5
    """Of backbone and pixel decoder, where everything learns, and of the class features of the name head"""
    warmup: int = 20
    """Steps of linear warm-up; a half cosine down follows"""
    weight_decay: float = 0.02
    clip: float = 1.0
    """Largest norm of the gradient"""
    ema: float = 0.99
    """Decay of the averaged weights"""
    scenes: int = 32
    """Made scenes mixed in"""
    replay_share: float = 0.25
    """Chance that a photo of a batch is one of them, or of other earlier data"""
    names: float = 1.0
    """Weight of the names' loss, where there are labels; 0: masks alone"""
    ranker_photos: int = 24
    """Photos of the project, and as many of the earlier data, that the order of candidates is learned from anew at the
    end; 0: it stays"""
    save_every: int = 20
    cache_bytes: int = 1_500_000_000
    """Memory for encoded views; more views than fit are encoded again"""
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rounds: RoundsConfig = field(default_factory=lambda: RoundsConfig(prompts=4, clicks=3))
    """Correction rounds, so that further clicks are not forgotten; prompts 0: none. Only a model config with
    `corrections` has them"""
    loss: LossConfig = field(default_factory=lambda: LossConfig(points=512, match_points=768))

    def __post_init__(self) -> None:
        checks = (
            (self.learn in get_args(Learn), f"learn {self.learn!r}: expected heads, decoder or everything"),
            (
                min(self.steps, self.batch, self.views, self.save_every) >= 1,
                "steps, batch, views, save_every: expected at least 1",
            ),
            (
                self.size is None or (self.size >= 64 and self.size % 32 == 0),
                "size: expected a multiple of 32, from 64",
            ),
            (
                self.lr > 0 and self.lr_features >= 0 and self.clip > 0,
                "lr, lr_features, clip: expected positive numbers",
            ),
            (0 <= self.ema < 1 and 0 <= self.replay_share < 1, "ema, replay_share: expected 0 <= value < 1"),
            (
                min(self.warmup, self.scenes, self.names, self.ranker_photos, self.weight_decay, self.seed) >= 0,
                "warmup, scenes, names, ranker_photos, weight_decay, seed: expected at least 0",
            ),
        )
        for good, message in checks:
            if not good:
                raise ConfigError(f"fine-tuning: {message}")

    @classmethod
    def from_dict(cls, values: object, where: str = "fine-tuning") -> FineTuneConfig:
        """Checked construction from plain values. Raises ConfigError naming the key."""
        known = check_fields(cls, values, where)
        for name, part in (("sampling", SamplingConfig), ("rounds", RoundsConfig), ("loss", LossConfig)):
            if name in known:
                known[name] = part(**check_fields(part, known[name], f"{where}: {name}"))
        return cls(**known)


def read_finetune_config(path: Path | None = None) -> tuple[FineTuneConfig, dict[str, Any]]:
    """configs/finetune.yaml, or another file: how to learn, and the plain values of its section `gate`.

    Raises ConfigError, also for unknown keys.
    """
    path = path or config_root() / "finetune.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"finetune", "gate"}:
        raise ConfigError(f"{path}: expected the sections finetune and gate")
    return FineTuneConfig.from_dict(content.get("finetune") or {}, f"{path}: finetune"), content.get("gate") or {}
