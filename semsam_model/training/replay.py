"""Replay, where object queries are trained alone: an image is encoded once and trained on several times.

Everything below the queries is frozen then, and takes most of the time of a step. Its outputs for the last images are
kept, in half precision, and each step trains on some of them beside the new ones. Each is drawn as often as another in
the mean, and not beside its own neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from semsam_model.network.decoder import LayerOutput
from semsam_model.network.model import SemanticSAM
from semsam_model.network.object_queries import SeedOutput
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.config import ReplayConfig
from semsam_model.training.losses.object_queries import ObjectQueryTargets


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image as object queries learn from it."""

    features: Features  #: a batch of one
    seeds: SeedOutput
    targets: ObjectQueryTargets


@dataclass(frozen=True, eq=False)
class _Kept:
    """In half precision, boxes apart; without the mask logits, which are made again."""

    features: Features
    decoded: LayerOutput
    names: tuple[Tensor, Tensor]
    targets: ObjectQueryTargets


class ReplayBuffer:
    """The images of the last steps; the oldest one gives way to a new one."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._kept: deque[_Kept] = deque(maxlen=config.images)

    def with_earlier(self, new: Sequence[EncodedImage], model: SemanticSAM, seed: int) -> list[EncodedImage]:
        """The new images and, for each, `times` - 1 earlier ones while there are any; the new ones are kept."""
        more = (self.config.times - 1) * len(new)
        if not more:
            return list(new)
        rng = np.random.default_rng([seed, 3])
        chosen = rng.choice(len(self._kept), min(more, len(self._kept)), replace=False)
        again = [_again(self._kept[i], model) for i in chosen]
        self._kept.extend(map(_keep, new))
        return [*new, *again]


def _keep(image: EncodedImage) -> _Kept:
    half = Features(image.features.mask_features.half(), image.features.memory.half(), image.features.shapes)
    decoded = image.seeds.decoded
    halves = {f.name: getattr(decoded, f.name).half() for f in fields(decoded) if f.name != "boxes"}
    of_object, of_part = image.seeds.names
    return _Kept(half, replace(decoded, **halves), (of_object.half(), of_part.half()), image.targets)


@torch.no_grad()
def _again(kept: _Kept, model: SemanticSAM) -> EncodedImage:
    features = replace(
        kept.features, mask_features=kept.features.mask_features.float(), memory=kept.features.memory.float()
    )
    decoded = kept.decoded
    decoded = replace(decoded, **{f.name: getattr(decoded, f.name).float() for f in fields(decoded)})
    logits = model.mask_logits(features, decoded.mask_embedding).flatten(0, 2).float()
    of_object, of_part = kept.names
    return EncodedImage(features, SeedOutput(decoded, logits, (of_object.float(), of_part.float())), kept.targets)
