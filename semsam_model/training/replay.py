"""Replay, where object queries are trained alone: an image is encoded once and trained on several times.

Everything below the queries is frozen then, and takes most of the time of a step. Its outputs for the last images are
kept, in half precision, and each step trains on some of them, drawn at random, beside the new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

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


class ReplayBuffer:
    """The images of the last steps; the oldest one gives way to a new one."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self._kept: deque[EncodedImage] = deque(maxlen=config.images)

    def with_earlier(self, new: Sequence[EncodedImage], model: SemanticSAM, seed: int) -> list[EncodedImage]:
        """The new images and, for each, `times` - 1 earlier ones while there are any; the new ones are kept."""
        more = (self.config.times - 1) * len(new)
        if not more:
            return list(new)
        rng = np.random.default_rng([seed, 3])
        chosen = rng.choice(len(self._kept), min(more, len(self._kept)), replace=False)
        again = [_restored(self._kept[i], model) for i in chosen]
        self._kept.extend(map(_halved, new))
        return [*new, *again]


def _halved(image: EncodedImage) -> EncodedImage:
    """In half precision, boxes apart; without backbone maps, and without mask logits, which are made again."""
    features = replace(image.features, maps=()).each(Tensor.half)
    decoded = replace(image.seeds.decoded.each(Tensor.half), boxes=image.seeds.decoded.boxes)
    of_object, of_part = image.seeds.names
    seeds = SeedOutput(decoded, torch.empty(0), (of_object.half(), of_part.half()))
    return EncodedImage(features, seeds, image.targets)


@torch.no_grad()
def _restored(kept: EncodedImage, model: SemanticSAM) -> EncodedImage:
    features, decoded = kept.features.each(Tensor.float), kept.seeds.decoded.each(Tensor.float)
    logits = model.mask_logits(features, decoded.mask_embedding).flatten(0, 2).float()
    of_object, of_part = kept.seeds.names
    return EncodedImage(features, SeedOutput(decoded, logits, (of_object.float(), of_part.float())), kept.targets)
