"""Name head: image features pooled inside a mask -> a class embedding in the space of label vectors.

The query of a mask holds what is needed to draw it, not to name it, because it is trained on outlines. The features of
the backbone tell classes apart. The class embeddings of both are added; published networks have those of the query
alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from semsam_model.errors import CheckpointError
from semsam_model.network.pixel_decoder import MEMORY_LEVELS, Features
from semsam_model.types import KINDS

HIDDEN = 256
CLASS_FEATURES = 1280  #: of MobileNetV2, before its classifier
FIRST_SCALE = 20.0  #: of cosines in the softmax, before training
LARGEST_SCALE = 100.0


class NameHead(nn.Module):
    """Pools the memory at stride 8 and the backbone maps of strides 16 and 32 inside a mask; one projection a kind.

    `classes` is the last layer before MobileNetV2's ImageNet classifier, applied to the pooled map of stride 32.
    """

    def __init__(self, channels: tuple[int, ...], width: int, text_dim: int) -> None:
        super().__init__()
        self.classes = nn.Linear(channels[-1], CLASS_FEATURES)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in (width, *channels, CLASS_FEATURES))
        total = width + sum(channels) + CLASS_FEATURES
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(total, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, text_dim)) for _ in KINDS
        )
        self.log_scale = nn.Parameter(torch.full((len(KINDS),), math.log(FIRST_SCALE)))

    def load_imagenet(self, path: Path) -> None:
        """Start `classes` from the same ImageNet file as the backbone. Raises CheckpointError."""
        found = load_file(path)
        try:
            self.classes.load_state_dict(
                {"weight": found["head.weight"].flatten(1).float(), "bias": found["head.bias"].float()}
            )
        except (KeyError, RuntimeError) as exc:
            raise CheckpointError(f"{path}: expected head.weight and head.bias of MobileNetV2 1.0: {exc}") from exc

    def scales(self) -> Tensor:
        """(2,) factors of the cosines of objects and of parts in the softmax over labels."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, features: Features, image: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (n, H/4, W/4) of one image of the batch -> two (n, E), for objects and parts, not normalised.

        No gradient reaches the masks: training names must not change them.
        """
        x = self.pool(features, image, logits)
        of_object, of_part = (projection(x) for projection in self.projections)
        return of_object, of_part

    def pool(self, features: Features, image: int, logits: Tensor) -> Tensor:
        """What `projections` take, (n, D): features pooled inside each mask, each kind of them normalised."""
        weights = logits.detach().float().sigmoid()[:, None]
        maps = [features.level(MEMORY_LEVELS - 1)[image], *(m[image] for m in features.maps[-2:])]
        pooled = []
        for level in maps:
            height, width = level.shape[-2:]
            share = F.adaptive_avg_pool2d(weights, (height, width)).flatten(1)
            share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
            pooled.append(share.to(level.dtype) @ level.flatten(1).T)
        pooled.append(F.relu6(self.classes(pooled[-1])))
        return torch.cat([norm(part) for norm, part in zip(self.norms, pooled, strict=True)], 1)
