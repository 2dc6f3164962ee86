"""Prompt decoder: a click or box -> one query for each level token -> mask embedding, IoU, box, class embeddings.

The queries of one prompt attend to each other but not to those of other prompts, so a click's masks do not depend on
which other clicks share its batch (as in training; the published demo let them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.network.deformable import DeformableAttention
from semsam_model.network.pixel_decoder import MEMORY_LEVELS, Features, sine
from semsam_model.types import level_tokens

CLICK_MAPS = (3, 2, 1)  #: memory levels read under a click: strides 8, 16, 32
NEGATIVE, POSITIVE, ABSENT = 0, 1, -1  #: kinds of a further click


@dataclass(frozen=True)
class FurtherClicks:
    """K clicks of each of N prompts, beside the click or box that its queries start from."""

    points: Tensor  #: (B, N, K, 2) x, y, shares of the padded frame
    kinds: Tensor  #: long (B, N, K): POSITIVE, NEGATIVE, or ABSENT where a prompt has fewer


@dataclass(frozen=True)
class LayerOutput:
    """The output of one decoder layer for B images, N prompts, T level tokens."""

    mask_embedding: Tensor  #: (B, N, T, C), dot it with mask features
    predicted_iou: Tensor  #: (B, N, T), no sigmoid: may leave 0..1
    boxes: Tensor  #: (B, N, T, 4) cx, cy, w, h, shares of the padded frame
    object_embedding: Tensor  #: (B, N, T, E), not normalised
    part_embedding: Tensor  #: (B, N, T, E), not normalised
    state: Tensor  #: (B, N, T, C), the input of all heads

    def each(self, change: Callable[[Tensor], Tensor]) -> LayerOutput:
        """The same with every tensor changed."""
        return LayerOutput(*(change(getattr(self, field.name)) for field in fields(self)))


class MLP(nn.Module):
    def __init__(self, width_in: int, hidden: int, width_out: int, layers: int) -> None:
        super().__init__()
        widths = [width_in] + [hidden] * (layers - 1) + [width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """logit of x, with x and 1 - x kept at 1e-5 or more."""
    x = x.clamp(0, 1)
    return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log()


@dataclass(frozen=True)
class _Context:
    """Keys and values that the queries of a prompt attend to beside each other: its further clicks."""

    key: Tensor  #: (B * N, K, C)
    value: Tensor  #: (B * N, K, C)
    absent: Tensor  #: bool (B * N, K)


def box_positions(reference: Tensor, width: int) -> Tensor:
    """Sine embedding of cx, cy, w, h (..., 4) -> (..., 2 * width), order y, x, w, h."""
    yxwh = reference[..., [1, 0, 2, 3]] * (2 * math.pi)
    return sine(yxwh, width // 2).flatten(-2)


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn = DeformableAttention(width, heads, MEMORY_LEVELS, points)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        # published numbering: norm2 follows self-attention, norm1 cross-attention
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, reference: Tensor, features: Features, context: _Context | None = None
    ) -> Tensor:
        """x, positions (B, N, T, C); reference (B, N, T, 4)."""
        b, n, t, c = x.shape
        query = (x + positions).view(b * n, t, c)
        key, value, ignored = query, x.view(b * n, t, c), None
        if context is not None:
            key, value = torch.cat((key, context.key), 1), torch.cat((value, context.value), 1)
            ignored = F.pad(context.absent, (t, 0))
        y, _ = self.self_attn(query, key, value, key_padding_mask=ignored, need_weights=False)
        x = self.norm2(x + y.view(b, n, t, c))
        y = self.cross_attn((x + positions).flatten(1, 2), reference.flatten(1, 2), features.memory, features.shapes)
        x = self.norm1(x + y.view(b, n, t, c))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class PromptDecoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, t = config.width, config.tokens
        self.content = nn.Parameter(torch.empty(c).normal_())
        self.kind_embed = nn.Parameter(torch.empty(2, c).normal_())  # row 0 click, row 1 box
        self.level_tokens = nn.Parameter(torch.empty(t, c).normal_())
        self.layers = nn.ModuleList(
            DecoderLayer(c, config.heads, config.points, config.ffn) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(c)
        self.position_head = MLP(2 * c, c, c, 2)
        self.box_head = MLP(c, c, 4, 3)
        self.mask_head = MLP(c, c, c, 3)
        self.iou_head = MLP(c, c, 1, 3)
        self.object_projection = nn.Parameter(torch.empty(c, config.text_dim).normal_(std=0.02))
        self.part_projection = nn.Parameter(torch.empty(c, config.text_dim).normal_(std=0.02))
        for parameter in self.box_head.layers[-1].parameters():  # at first a box is the prompt's own
            nn.init.zeros_(parameter)
        self.token_size: nn.Parameter | None = None
        if config.learned_boxes:  # logit of each token's first box side: from a speck to most of the image
            sides = torch.empty(t)
            sides[list(level_tokens(t))] = torch.logspace(math.log10(0.8), math.log10(0.04), t)
            self.token_size = nn.Parameter(inverse_sigmoid(sides))
        self.correction_embed: nn.Parameter | None = None
        if config.corrections:
            self.correction_embed = nn.Parameter(torch.empty(2, c).normal_())  # row NEGATIVE, row POSITIVE
        self.click_box = config.click_box
        self.click_projections: nn.ModuleList | None = None
        if config.click_features:
            self.click_projections = nn.ModuleList(nn.Linear(c, c) for _ in range(1 + len(CLICK_MAPS)))

    def forward(
        self,
        features: Features,
        boxes: Tensor,
        kinds: Tensor,
        all_layers: bool = False,
        further: FurtherClicks | None = None,
    ) -> list[LayerOutput]:
        """boxes (B, N, 4) cx, cy, w, h, shares of the padded frame; kinds (B, N) long, 0 click, 1 box.

        further: only where the config has `corrections`. Returns the last layer's output, or every layer's in order.
        """
        t = self.level_tokens.shape[0]
        content = self.content + self.kind_embed[kinds]  # (B, N, C)
        if self.click_projections is not None:
            content = content + self._features_under(features, boxes[..., :2])
        x = content[:, :, None] + self.level_tokens  # (B, N, T, C)
        reference = boxes[:, :, None].expand(-1, -1, t, -1)
        if self.token_size is not None:
            own = self.token_size.sigmoid()[:, None].expand(t, 2)
            side = torch.where(kinds[:, :, None, None] == 0, own, reference[..., 2:])
            reference = torch.cat((reference[..., :2], side), -1)
        reference = inverse_sigmoid(reference).sigmoid()
        context = None if further is None else self._context(features, further)
        outputs = []
        for i, layer in enumerate(self.layers):
            positions = self.position_head(box_positions(reference, x.shape[-1]).to(x.dtype))
            x = layer(x, positions, reference, features, context)
            if all_layers or i == len(self.layers) - 1:
                outputs.append(self._heads(x, reference))
            reference = (self.box_head(x).float() + inverse_sigmoid(reference)).sigmoid().detach()
        return outputs

    def _heads(self, x: Tensor, reference: Tensor) -> LayerOutput:
        # The norm is applied twice, as trained: once when the layer's state is kept, once before the heads.
        h = self.norm(self.norm(x))
        return LayerOutput(
            mask_embedding=self.mask_head(h),
            predicted_iou=self.iou_head(h)[..., 0],
            boxes=(self.box_head(h).float() + inverse_sigmoid(reference)).sigmoid(),
            object_embedding=h @ self.object_projection,
            part_embedding=h @ self.part_projection,
            state=h,
        )

    def _context(self, features: Features, further: FurtherClicks) -> _Context:
        """For each further click its kind and the features under it, and its place; the same in every layer."""
        assert self.correction_embed is not None
        value = self.correction_embed[further.kinds.clamp(min=0)]  # (B, N, K, C)
        if self.click_projections is not None:
            value = value + self._features_under(features, further.points.flatten(1, 2)).view_as(value)
        place = torch.cat((further.points, torch.full_like(further.points, self.click_box)), -1)
        key = value + self.position_head(box_positions(place, value.shape[-1]).to(value.dtype))
        absent = further.kinds == ABSENT
        return _Context(key.flatten(0, 1), value.flatten(0, 1), absent.flatten(0, 1))

    def _features_under(self, features: Features, points: Tensor) -> Tensor:
        """Points (B, N, 2) -> (B, N, C): bilinear samples of the mask features and three memory levels, projected."""
        assert self.click_projections is not None
        maps = [features.mask_features, *(features.level(i) for i in CLICK_MAPS)]
        grid = (2 * points - 1)[:, None]  # (B, 1, N, 2)
        samples = []
        for projection, level in zip(self.click_projections, maps, strict=True):
            sample = F.grid_sample(level.float(), grid.float(), align_corners=False, padding_mode="border")
            samples.append(projection(sample[:, :, 0].transpose(1, 2).to(self.content.dtype)))
        return torch.stack(samples).sum(0)
