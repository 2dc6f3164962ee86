"""Object queries: the masks of a whole photo without a click, built on what the prompt decoder has learned from clicks.

Two stages, as in Mask DINO (Li et al. 2022), but the first stage proposes masks and not only places:

    seeds      every memory token gets a score for each granularity; the local maxima become seeds
    proposals  each seed is decoded as a click: the prompt decoder gives one mask for each level token, and each mask
               gets a first score
    queries    the best distinct proposals become the object queries. They attend to each other and to the image in
               decoder layers of their own. Each outputs a score for each granularity, class embeddings, and a
               correction of the proposal's mask

The decoder of clicks draws good masks long before a query that starts from nothing would find its object, so that a
little training of the scores is enough. All corrections start at zero.

The pixel decoder and the prompt decoder behind a proposal are those of clicks, or (config: generic_decoder_layers)
separate ones, so that training object queries on few sources does not change the answers to clicks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.masks.geometry import greedy_nms
from semsam_model.network.decoder import MLP, DecoderLayer, LayerOutput, PromptDecoder, box_positions, inverse_sigmoid
from semsam_model.network.deformable import Shapes
from semsam_model.network.pixel_decoder import MEMORY_LEVELS, Features, PixelDecoder
from semsam_model.types import GRANULARITIES

HIDDEN = 256
GEOMETRY = 7  #: predicted IoU, IoU that the logits expect, area, box
FIRST_LOGIT = -3.0  #: of every score before training: most tokens and masks are no object
SAME_PROPOSAL = 0.75  #: of two proposals with a larger IoU only the better one becomes a query


@dataclass(frozen=True, eq=False)
class SeedOutput:
    """The decoded clicks at the seeds of one image, P masks in all: one for each seed and level token."""

    decoded: LayerOutput  #: of the prompt decoder, a batch of one image
    logits: Tensor  #: (P, H/4, W/4)
    names: tuple[Tensor, Tensor]  #: class embeddings for objects and parts, (P, E) each


@dataclass(frozen=True, eq=False)
class SeedProposals:
    """The scored masks of one image's seeds, P of them: one for each seed and level token."""

    logits: Tensor  #: (P, H/4, W/4)
    boxes: Tensor  #: (P, 4) cx, cy, w, h, shares of the padded frame
    predicted_iou: Tensor  #: (P,), raw
    scores: Tensor  #: (P, 3), logits


@dataclass(frozen=True, eq=False)
class ObjectQueryOutput:
    """The object queries of one image, Q of them, and the proposals that they were chosen from."""

    token_scores: Tensor  #: (S, 3), logits, in the order of the memory
    proposals: SeedProposals
    chosen: Tensor  #: long (Q,), rows of `proposals`, best first
    mask_embedding: Tensor  #: (Q, C), see `query_logits`
    boxes: Tensor  #: (Q, 4) cx, cy, w, h, shares of the padded frame
    box_trust: Tensor  #: (Q,), weight of the box in the mask, see `query_logits`
    scores: Tensor  #: (Q, 3), logits, without the quality of the mask, see `query_scores`
    object_embedding: Tensor  #: (Q, E), not normalised
    part_embedding: Tensor  #: (Q, E), not normalised


class ObjectQueryHead(nn.Module):
    """The weights of object queries. Methods take one image: a `Features` with a batch of one."""

    def __init__(self, config: ModelConfig, channels: tuple[int, ...]) -> None:
        """channels: of the backbone's maps."""
        super().__init__()
        c, e = config.width, config.text_dim
        self.pixel_decoder: PixelDecoder | None = None  #: None, as `decoder`: the one of clicks is used
        self.decoder: PromptDecoder | None = None
        if config.generic_decoder_layers:
            self.pixel_decoder = PixelDecoder(config, channels, projects=False)
            self.decoder = PromptDecoder(
                replace(config, decoder_layers=config.generic_decoder_layers, corrections=False)
            )
        self.queries = config.generic_queries
        self.level_embed = nn.Parameter(torch.zeros(MEMORY_LEVELS, c))
        self.token_norm = nn.LayerNorm(c)
        self.token_score = MLP(c, c, len(GRANULARITIES), 3)
        described = 2 * c + 2 * e + GEOMETRY
        self.state_norm, self.pooled_norm = nn.LayerNorm(c), nn.LayerNorm(c)
        self.proposal_score = MLP(described, HIDDEN, len(GRANULARITIES), 3)
        self.content = nn.Linear(described, c)
        self.position_head = MLP(2 * c, c, c, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(c, config.heads, config.points, config.ffn) for _ in range(config.generic_layers)
        )
        self.norm = nn.LayerNorm(c)
        self.query_score = MLP(c, c, len(GRANULARITIES), 3)
        self.mask_change = MLP(c, c, c, 3)
        self.box_change = MLP(c, c, 4, 3)
        self.box_trust = nn.Linear(c, 1)
        self.object_change, self.part_change = nn.Linear(c, e), nn.Linear(c, e)
        self.none = nn.Parameter(torch.zeros(2))  # logits of "none of these labels" for the object and the part head
        heads = [head.layers[-1] for head in (self.query_score, self.mask_change, self.box_change)]
        for last in (*heads, self.box_trust, self.object_change, self.part_change):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        for scores in (self.token_score, self.proposal_score):
            nn.init.constant_(scores.layers[-1].get_parameter("bias"), FIRST_LOGIT)

    def tokens(self, features: Features) -> Tensor:
        """(S, 3) logits: whether the middle of an object, part or region of the size of this level lies here."""
        levels = torch.cat([self.level_embed[i].expand(h * w, -1) for i, (h, w) in enumerate(features.shapes)])
        return self.token_score(self.token_norm(features.memory[0]) + levels)

    def describe(
        self, features: Features, decoded: LayerOutput, coarse: Tensor, names: tuple[Tensor, Tensor]
    ) -> Tensor:
        """(P, D): state of the level token, memory of stride 8 pooled inside the mask, class embeddings, geometry.

        coarse (P, cells of stride 8): mask logits.
        """
        inside, stride_8 = coarse.sigmoid(), features.level(MEMORY_LEVELS - 1)[0].flatten(1)
        pooled = self.pooled_norm(inside @ stride_8.T / inside.sum(1, keepdim=True).clamp(min=1e-6))
        state = self.state_norm(decoded.state.flatten(0, 2))
        classes = [F.normalize(name, dim=-1) * name.shape[-1] ** 0.5 / 4 for name in names]
        area = (coarse > 0).float().mean(1)
        figures = [x[:, None] for x in (decoded.predicted_iou.flatten(), soft_iou(coarse), (area + 1e-4).log10())]
        boxes = inverse_sigmoid(decoded.boxes.flatten(0, 2)) / 4
        return torch.cat((state, pooled, *classes, *figures, boxes), 1)

    def forward(self, features: Features, token_scores: Tensor, seeds: SeedOutput) -> ObjectQueryOutput:
        """Decoded seeds -> object queries. token_scores: of `tokens`, part of the output."""
        decoded, logits, names = seeds.decoded, seeds.logits, seeds.names
        # At stride 8 a cell is inside where any quarter of it is, so that small masks do not vanish. No gradient: the
        # description of a mask must not change the mask.
        fine = logits.detach()
        rows = torch.maximum(fine[:, ::2], fine[:, 1::2])  # many times as fast as max_pool2d of one channel
        coarse = torch.maximum(rows[..., ::2], rows[..., 1::2]).flatten(1)
        description = self.describe(features, decoded, coarse, names)
        scores = self.proposal_score(description)
        embedding = decoded.mask_embedding.flatten(0, 2)
        chosen = distinct_proposals(scores.detach(), coarse, self.queries)
        x = (self.content(description[chosen]))[None, None]
        boxes = decoded.boxes.flatten(0, 2)
        reference = boxes[chosen].detach()[None, None]
        for layer in self.layers:
            start = reference.detach()
            x = layer(x, self.position_head(box_positions(start, x.shape[-1])), start, features)
            h = self.norm(x)
            reference = (self.box_change(h).float() + inverse_sigmoid(start)).sigmoid()
        h = h[0, 0]
        return ObjectQueryOutput(
            token_scores,
            SeedProposals(logits, boxes, decoded.predicted_iou.flatten(), scores),
            chosen,
            embedding[chosen] + self.mask_change(h),
            reference[0, 0],
            self.box_trust(h)[:, 0],
            scores[chosen] + self.query_score(h),
            names[0][chosen] + self.object_change(h),
            names[1][chosen] + self.part_change(h),
        )


def query_logits(output: ObjectQueryOutput, mask_features: Tensor) -> Tensor:
    """Mask features (C, h, w) -> mask logits, float32 (Q, h, w): mask embedding times features, plus `box_trust` times
    the depth of the cell in the query's box.

    Mask features hardly differ between a window and the next one of its kind; boxes do. Depth is 0 on the border of
    the box, 1 in the middle of its shorter side, and down to -2 outside.
    """
    height, width = mask_features.shape[-2:]
    logits = (output.mask_embedding.float() @ mask_features.flatten(1).float()).unflatten(1, (height, width))
    centre, half = output.boxes.float().split(2, -1)
    half = (half / 2).clamp(min=1e-3)
    size = half.new_tensor([width, height])
    shorter = (half * size).amin(1)[:, None]  # in cells
    x, y = (
        (half[:, i, None] - ((torch.arange(n, device=half.device) + 0.5) / n - centre[:, i, None]).abs()) * n / shorter
        for i, n in enumerate((width, height))
    )
    depth = torch.minimum(x[:, None], y[:, :, None]).clamp(-2, 1)  # (Q, h, w)
    return logits + output.box_trust.float()[:, None, None] * depth


def query_scores(output: ObjectQueryOutput, logits: Tensor) -> Tensor:
    """float32 (Q, 3), logits of the expected IoU with an annotated mask of each granularity.

    The query's score times the `soft_iou` of its mask logits (Q, h, w), as in Mask2Former (Cheng et al. 2022). No
    gradient reaches the mask.
    """
    sure = soft_iou(logits.detach().flatten(1))
    return inverse_sigmoid(output.scores.float().sigmoid() * sure[:, None])


def soft_iou(logits: Tensor) -> Tensor:
    """Mask logits (n, cells) -> (n,): IoU of each mask with one that holds each cell with its own probability."""
    inside, hard = logits.sigmoid(), (logits > 0).float()
    return (inside * hard).sum(1) / torch.maximum(inside, hard).sum(1).clamp(min=1e-6)


def choose_seeds(token_scores: Tensor, shapes: Shapes, count: int) -> Tensor:
    """Rows of the memory (n,), n <= count: the best local maxima (3x3, within a level), then the best of the rest."""
    best = token_scores.amax(1).sigmoid()
    peaks = []
    for level, (h, w) in zip(best.split([h * w for h, w in shapes]), shapes, strict=True):
        around = F.max_pool2d(level.view(1, 1, h, w), 3, 1, 1).flatten()
        peaks.append(level == around)
    return (best + torch.cat(peaks)).topk(min(count, len(best))).indices


def distinct_proposals(scores: Tensor, logits: Tensor, count: int) -> Tensor:
    """Rows (n,) of at most `count` masks, best first by their best score, no two with an IoU over SAME_PROPOSAL.

    scores (P, 3), logits (P, cells). Empty masks are left out.
    """
    best = scores.amax(1)
    inside = logits > 0
    order = best.argsort(descending=True)
    order = order[inside[order].any(1)]
    masks = inside[order].float()
    both = masks @ masks.T
    area = masks.sum(1)
    same = (both / (area[:, None] + area - both).clamp(min=1) > SAME_PROPOSAL).cpu().numpy()
    kept = greedy_nms(range(len(order)), len(order), same.__getitem__, count)
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
