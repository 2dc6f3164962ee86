"""Pixel decoder: backbone maps -> mask features at stride 4 and the memory that prompts attend to (Mask DINO's design).

Encoder levels run from high to low resolution (strides 8, 16, 32, 64); the memory handed on runs from low to high
(64, 32, 16, 8), the order in which trained prompt decoders index it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.network.deformable import CHUNK, DeformableAttention, Shapes

MEMORY_LEVELS = 4  #: maps of the memory, of strides 64, 32, 16, 8


@dataclass(frozen=True)
class Features:
    """The encoded images of a batch: all that prompts need."""

    mask_features: Tensor  #: (B, C, H/4, W/4)
    memory: Tensor  #: (B, S, C), levels of stride 64, 32, 16, 8 one after another, each row-major
    shapes: Shapes  #: (h, w) of the memory levels
    #: backbone maps (B, C_i, h_i, w_i) for names and object queries, the last of stride 32
    maps: tuple[Tensor, ...] = ()

    def only(self, image: int, count: int = 1) -> Features:
        """Images `image` to `image + count` of the batch, as a batch."""
        return self.each(lambda tensor: tensor[image : image + count])

    def each(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same with every tensor changed."""
        return Features(change(self.mask_features), change(self.memory), self.shapes, tuple(map(change, self.maps)))

    @property
    def nbytes(self) -> int:
        return self.mask_features.nbytes + self.memory.nbytes + sum(m.nbytes for m in self.maps)

    def level(self, index: int) -> Tensor:
        """Memory level as a map (B, C, h, w); 0 is stride 64, 3 is stride 8."""
        start = sum(h * w for h, w in self.shapes[:index])
        h, w = self.shapes[index]
        return self.memory[:, start : start + h * w].transpose(1, 2).unflatten(2, (h, w))


def sine_positions(shape: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """DETR sine embedding of a (h, w) grid -> (h * w, width): first half encodes y, second half x."""
    axes = []
    for count in shape:
        at = torch.arange(1, count + 1, device=device, dtype=torch.float32) / (count + 1e-6) * (2 * math.pi)
        axes.append(sine(at, width // 2))
    y, x = axes
    grid = torch.cat((y[:, None].expand(-1, shape[1], -1), x[None].expand(shape[0], -1, -1)), -1)
    return grid.flatten(0, 1)


def sine(angle: Tensor, width: int) -> Tensor:
    """(...,) radians -> (..., width): channel j has frequency 10000^(-2 (j // 2) / width), even sine, odd cosine."""
    channel = torch.arange(width, device=angle.device)
    frequency = 10000.0 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    phase = angle[..., None] / frequency
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), -1).flatten(-2)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, MEMORY_LEVELS, points)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        x = self.norm1(x + self.self_attn(x + positions, reference, x, shapes))
        if torch.is_grad_enabled():
            return self._feed_forward(x)
        # In pieces, so that the wide hidden layer fits into the processor's cache.
        return torch.cat([self._feed_forward(part) for part in x.split(CHUNK, 1)], 1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class PixelDecoder(nn.Module):
    """Four backbone maps -> Features."""

    def __init__(self, config: ModelConfig, channels: tuple[int, ...], projects: bool = True) -> None:
        """channels: of the four backbone maps. projects: False where another pixel decoder's `project` is taken."""
        super().__init__()
        width, heads, points = config.width, config.heads, config.points
        projections = []
        if projects:
            projections = [nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width)) for c in channels[1:]]
            projections.append(nn.Sequential(nn.Conv2d(channels[-1], width, 3, 2, 1), nn.GroupNorm(32, width)))
            self.input_proj = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.empty(MEMORY_LEVELS, width).normal_())
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, points, config.ffn) for _ in range(config.encoder_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], width, 1, bias=False), nn.GroupNorm(32, width))
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width))
        self.mask_features = nn.Conv2d(width, width, 1)
        for projection in projections:
            for parameter in projection[0].parameters():
                nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.xavier_uniform_(parameter)

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps -> the input of `forward`, (B, width, h, w) at strides 8, 16, 32, 64."""
        return [self.input_proj[i](maps[i + 1]) for i in range(3)] + [self.input_proj[3](maps[3])]

    def forward(self, sources: Sequence[Tensor], finest: Tensor) -> Features:
        """sources: of `project`. finest: the backbone map (B, C_0, H/4, W/4)."""
        shapes = tuple((m.shape[2], m.shape[3]) for m in sources)
        device = finest.device
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in sources], 1)  # (B, S, C), high to low resolution
        positions = torch.cat(
            [sine_positions(s, x.shape[-1], device) + self.level_embed[i] for i, s in enumerate(shapes)]
        ).to(x.dtype)
        reference = cell_centres(shapes, device)[None]
        for layer in self.layers:
            x = layer(x, positions, reference, shapes)
        levels = x.split([h * w for h, w in shapes], 1)
        coarser = levels[0].unflatten(1, shapes[0]).permute(0, 3, 1, 2)  # known to be channels last, also for one image
        y = self.lateral(finest)
        y = y + F.interpolate(coarser, y.shape[-2:], mode="bilinear", align_corners=False)
        mask_features = self.mask_features(F.relu(self.fuse(y), inplace=True))
        return Features(mask_features, torch.cat(levels[::-1], 1), shapes[::-1])


def cell_grid(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(h * w, 2) x, y of cell centres, shares of the map."""
    h, w = shape
    y = (torch.arange(h, device=device) + 0.5) / h
    x = (torch.arange(w, device=device) + 0.5) / w
    return torch.stack((x[None].expand(h, -1), y[:, None].expand(-1, w)), -1).flatten(0, 1)


def cell_centres(shapes: Shapes, device: torch.device) -> Tensor:
    """(S, 2) x, y of every memory token, shares of the frame."""
    return torch.cat([cell_grid(shape, device) for shape in shapes])
