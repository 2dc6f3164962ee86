"""How a fine-tuning job learns: configs/finetune.yaml as a value."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from semsam_model.config import (
    STRICT,
    Count,
    NonNegative,
    NonNegativeInt,
    Positive,
    config_root,
    parse_config,
    read_yaml,
)
from semsam_model.errors import ConfigError
from semsam_model.training.config import Decay, LossConfig, SamplingConfig, SimulatedCorrectionsConfig

Gate = TypeVar("Gate")
Learn = Literal["heads", "decoder", "everything"]
#: Prefixes of the names of parameters that are trained.
TRAINED: dict[str, tuple[str, ...]] = {
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


@dataclass(frozen=True, config=STRICT)
class FineTuneConfig:
    """How a job learns. The values of configs/finetune.yaml are those that were measured (docs/run/fine-tuning.md)."""

    learn: Learn = "decoder"
    """heads, decoder (with heads), or everything: the last encodes photos at every step, and takes many times longer"""
    steps: Count = 300
    batch: Count = 2
    """Photos a step"""
    size: Annotated[int, Field(ge=64, multiple_of=32)] | None = None
    """Side of a view, pixels; null = the size that the model sees photos at"""
    views: Count = 8
    """Views of a photo; each is encoded once"""
    lr: Positive = 2e-4
    lr_features: NonNegative = 2e-5
    """Of backbone and pixel decoder, where everything learns, and of the class features of the name head"""
    warmup: NonNegativeInt = 20
    """Steps of linear warm-up; a half cosine down follows"""
    weight_decay: NonNegative = 0.02
    clip: Positive = 1.0
    """Largest norm of the gradient"""
    ema: Decay = 0.99
    """Decay of the averaged weights"""
    scenes: NonNegativeInt = 32
    """Synthetic scenes mixed in"""
    replay_share: Decay = 0.25
    """Chance that a photo of a batch is one of them, or of other earlier data"""
    names: NonNegative = 1.0
    """Weight of the names' loss, where there are labels; 0: masks alone"""
    ranker_photos: NonNegativeInt = 24
    """Photos of the project, and as many of the earlier data, that the ranker is fitted to at the end; 0: it stays"""
    save_every: Count = 20
    cache_bytes: int = 1_500_000_000
    """Memory for encoded views; more views than fit are encoded again"""
    seed: NonNegativeInt = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rounds: SimulatedCorrectionsConfig = field(default_factory=lambda: SimulatedCorrectionsConfig(prompts=4, clicks=3))
    """Simulated corrections, so that further clicks are not forgotten; prompts 0: none. Only a model config with
    `corrections` has them"""
    loss: LossConfig = field(default_factory=lambda: LossConfig(points=512, match_points=768))


def read_finetune_config(gate: type[Gate], path: Path | None = None) -> tuple[FineTuneConfig, Gate]:
    """configs/finetune.yaml, or another file: its sections `finetune` and `gate`, the latter as a config of that type.

    Raises ConfigError, also for unknown keys.
    """
    path = path or config_root() / "finetune.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) - {"finetune", "gate"}:
        raise ConfigError(f"{path}: expected the sections finetune and gate")
    config = parse_config(FineTuneConfig, content.get("finetune") or {}, f"{path}: finetune")
    return config, parse_config(gate, content.get("gate") or {}, f"{path}: gate")
