"""What a mask's pixels say about its name: image features pooled inside the mask -> the space of label texts.

The query alone carries what a mask looks like well enough to draw it, not to name it: its features are trained on
outlines. The backbone's own features know classes. Both are added up, so a published network is the case without.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.pixel_decoder import LEVELS, Features

HIDDEN = 256
FIRST_SCALE = 20.0  #: of cosines in the softmax, before training
LARGEST_SCALE = 100.0
KINDS = ("object", "part")  #: order of the two projections and scales


class NameHead(nn.Module):
    """Pools the memory at stride 8 and the backbone maps of strides 16 and 32 inside a mask; one projection a kind."""

    def __init__(self, channels: tuple[int, ...], width: int, text_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in (width, *channels))
        total = width + sum(channels)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(total, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, text_dim)) for _ in KINDS
        )
        self.log_scale = nn.Parameter(torch.full((len(KINDS),), math.log(FIRST_SCALE)))

    def scales(self) -> Tensor:
        """(2,) what the cosines of objects and of parts are multiplied with before the softmax over labels."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, features: Features, image: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (n, H/4, W/4) of one image of the batch -> two (n, E), for objects and parts, not normalised.

        No gradient reaches the masks: a name must not redraw them.
        """
        weights = logits.detach().float().sigmoid()[:, None]
        maps = [features.level(LEVELS - 1)[image], *(m[image] for m in features.name_maps)]
        pooled = []
        for norm, level in zip(self.norms, maps, strict=True):
            share = F.adaptive_avg_pool2d(weights, level.shape[-2:]).flatten(1)
            share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
            pooled.append(norm(share.to(level.dtype) @ level.flatten(1).T))
        x = torch.cat(pooled, 1)
        of_object, of_part = (projection(x) for projection in self.projections)
        return of_object, of_part
