"""What a training run is made of, filled from configs/train/NAME.yaml; unknown keys are refused."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from semsam_model.config import STRICT, Count, NonNegative, NonNegativeInt, Positive, Share, parse_config, read_yaml

LossMode = Literal["many_to_many", "many_to_one"]
IouTarget = Literal["mask_iou", "soft_dice"]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Stage:
    """A stretch of training at one image size."""

    steps: Count
    size: Annotated[int, Field(ge=32, multiple_of=32)]
    """Side of the square, pixels"""
    batch: Count
    """Images a forward pass"""


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """How a photo becomes a training image and prompts."""

    prompts: Count = 24
    """Per image; they cost little beside the image itself"""
    box_share: Share = 0.25
    """Share of the prompts that are boxes"""
    box_noise: Decay = 0.2
    """Of half a box's size for its centre, of its size for its size"""
    max_targets: Count = 6
    """Masks a click may mean"""
    scale_min: Positive = 0.6
    """1: the longer side fills the square"""
    scale_max: Positive = 1.6
    min_area: Count = 16
    """Masks smaller than this after scaling are dropped, pixels"""
    flip: bool = True
    jitter: Decay = 0.2
    """Brightness and contrast; a quarter of it per colour channel"""
    turn: Share = 0.0
    """Share of the photos of sources with `turns: true` that are turned by a right angle, one of four"""
    mosaic: Share = 0.0
    """Share of the images that are four photos in a square"""
    paste: Share = 0.0
    """Share of the images that objects of another photo are pasted onto, with their parts"""
    paste_objects: Count = 4
    """Most objects pasted onto an image"""
    paste_scale_min: Positive = 0.2
    """Of pasted objects; 1: the longer side of the photo that they come from would fill the square"""
    paste_scale_max: Positive = 2.0
    colour: Share = 0.0
    """Share of the images whose hue, saturation and gamma change; one in ten of them becomes grey"""
    blur: Share = 0.0
    """Share of the images that are blurred"""
    jpeg: Share = 0.0
    """Share of the images that are compressed as JPEG"""
    generic_images: Count | None = None
    """Images of a batch that object queries learn from; all when null"""
    sources: dict[str, NonNegative] = field(default_factory=dict)
    """Relative share of a source; sources not named here keep the weight that the mixture gives them"""

    def __post_init__(self) -> None:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min {self.scale_min}: expected at most scale_max, {self.scale_max}")
        if self.paste_scale_min > self.paste_scale_max:
            raise ValueError(
                f"paste_scale_min {self.paste_scale_min}: expected at most paste_scale_max, {self.paste_scale_max}"
            )


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Weights and choices. Defaults are the published ones but for `iou_target`, `unmatched_iou` and the points."""

    mode: LossMode = "many_to_many"
    mask_bce: float = 5.0
    mask_dice: float = 5.0
    box_l1: float = 5.0
    box_giou: float = 2.0
    iou: float = 1.0
    names: NonNegative = 0.0
    """Of the names' cross-entropies, on the last layer only; 0: no names are learned, and no text encoder is needed"""
    generic: NonNegative = 0.0
    """Of the object queries, where the model has them; 0: they learn nothing"""
    points: Count = 1024
    """Per mask; published: 12544 at 1024 pixels"""
    match_points: Count = 2048
    """Shared by all masks of an image"""
    oversample: Annotated[float, Field(ge=1)] = 3.0
    """Points drawn, for each one of `points`, to choose the uncertain ones from (PointRend)"""
    importance: Share = 0.75
    """Share of `points` that are chosen so; the others are uniform"""
    iou_target: IouTarget = "mask_iou"
    """mask_iou: IoU of the binary masks at stride 4, a plain target. soft_dice: published, 1 - dice loss at the
    uncertain points, through which gradients also reach the masks"""
    unmatched_iou: bool = True
    """With mask_iou: unmatched queries of the last layer learn the IoU with the best of their prompt's masks, so that a
    query that is not meant for a prompt learns a low predicted IoU. Not in partially annotated images"""


@dataclass(frozen=True, config=STRICT)
class SimulatedCorrectionsConfig:
    """How much of a step learns from further clicks on prompts whose mask was wrong."""

    prompts: NonNegativeInt = 0
    """Prompts an image that are corrected; 0: none. Only for a model config with `corrections`"""
    clicks: Count = 4
    """Most further clicks of such a prompt; their number is drawn anew for each batch, 1 to this"""
    deepest: Share = 0.5
    """Share of the clicks that go to the deepest wrong place; the others go to any wrong cell"""
    weight: NonNegative = 0.5
    """Of the corrected prompts' losses beside those of first predictions"""


@dataclass(frozen=True, config=STRICT)
class ReplayConfig:
    """How often an image is learned from; only with `learn: generic`, and a resumed run begins with nothing kept."""

    times: Count = 1
    """In the mean, the first time included"""
    images: Count = 400
    """Kept by each process; about 5 MB each at 384 pixels"""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Everything a run depends on but the data and the device."""

    model: str
    """Name or YAML file of the model config"""
    stages: tuple[Stage, ...]
    """Stretches of optimiser steps at one image size, in order"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rounds: SimulatedCorrectionsConfig = field(default_factory=SimulatedCorrectionsConfig)
    reuse: ReplayConfig = field(default_factory=ReplayConfig)
    seed: NonNegativeInt = 0
    init: str | None = None
    """Weights of the whole model to start from (a run's model.safetensors)"""
    init_backbone: str | None = None
    """ImageNet weights of the backbone to start from (safetensors)"""
    text_encoder: str | None = None
    """Folder or hub name of the encoder of labels; the installed package when null. Only where names are learned"""
    learn: Literal["everything", "decoders", "decoder", "generic"] = "everything"
    """everything; or on top of init, decoders: the prompt decoder and the pixel decoder of clicks, so that the
    backbone, its projections, names and object queries that have decoders of their own stay bit for bit; decoder: the
    prompt decoder alone, so that image features stay too; generic: only what object queries add, so that clicks and
    their names stay"""
    lr: Positive = 4e-4
    lr_backbone: NonNegative = 5e-5
    lr_final: Share = 0.01
    """Share of the learning rates that is left at the end of the cosine"""
    warmup: NonNegativeInt = 100
    """Steps of linear warm-up"""
    weight_decay: float = 0.05
    """Of matrices and kernels; none for norms, biases and embeddings"""
    clip: Positive = 1.0
    """Largest norm of the whole gradient"""
    accumulate: Count = 1
    """Batches a step"""
    bfloat16: bool = True
    """Autocast to bfloat16, but on processors that would emulate it; losses stay float32"""
    ema: Decay = 0.999
    """Decay of the averaged weights; ramps up over the first steps"""
    time_limit_minutes: Positive | None = None
    """Stop cleanly after this much training time, counted over resumed runs"""
    anneal: Literal["steps", "time"] = "steps"
    """What the cosine runs against: steps, or time (needs time_limit_minutes) where the number of steps is unknown"""
    threads: int | None = None
    """Threads of the arithmetic; torch's choice when null"""
    workers: NonNegativeInt = 1
    """Processes that prepare batches; 0 prepares them in the loop"""
    log_every: Count = 20
    save_every: Count = 200
    probe_every: Count = 200
    """Steps between validation figures and previews"""
    probe_per_source: Count = 3
    """Validation photos a source for them"""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: expected at least one")
        if self.learn == "generic" and (self.init is None or not self.loss.generic):
            raise ValueError("learn: generic needs init, the weights to build on, and loss.generic above 0")
        if self.learn in ("decoders", "decoder") and (self.init is None or self.loss.generic):
            raise ValueError(f"learn: {self.learn} needs init, the weights to build on, and loss.generic 0")
        if self.learn != "generic" and self.reuse.times != 1:
            raise ValueError(
                f"reuse: times {self.reuse.times} needs learn: generic; whatever else learns changes what was kept"
            )
        if self.anneal == "time" and self.time_limit_minutes is None:
            raise ValueError("anneal: time needs time_limit_minutes")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def read_train_config(path: Path) -> TrainConfig:
    """Read a training YAML file, unknown keys refused. Raises ConfigError."""
    return parse_config(TrainConfig, read_yaml(path), str(path))
