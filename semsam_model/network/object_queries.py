"""Object queries: everything in the photo without a click, on top of what clicks have learned.

Two stages, as in Mask DINO, but the first stage proposes masks and not only places:

    tokens     every memory token gets a score for each granularity; the local maxima are the seeds
    proposals  each seed is a click: the prompt decoder answers with one mask a level token, and each gets a first score
    queries    the best of the proposals that differ become the object queries. They see each other and the image
               through decoder layers of their own, and say what they are: a score a granularity and class embeddings;
               they correct the proposal's mask

A click's mask is good long before a query that starts from nothing finds its object, so that a little training of
scores is enough. What queries correct starts at zero.

The pixel decoder and the prompt decoder behind a proposal are those of clicks, or (config: generic_decoder_layers) of
the queries' own, so that what queries learn on few sources does not cost clicks what they know of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.config import ModelConfig
from semsam_model.masks.suppression import suppress
from semsam_model.network.decoder import MLP, DecoderLayer, LayerOutput, PromptDecoder, box_positions, inverse_sigmoid
from semsam_model.network.deformable import Shapes
from semsam_model.network.pixel_decoder import MEMORY_LEVELS, Features, PixelDecoder
from semsam_model.types import GRANULARITIES

HIDDEN = 256
GEOMETRY = 7  #: predicted IoU, IoU that the logits expect, area, box
#: Logit of every score before training: few tokens and few masks are things.
FIRST_LOGIT = -3.0
#: Of two proposals with a larger IoU only the better one becomes a query.
SAME_PROPOSAL = 0.75


@dataclass(frozen=True, eq=False)
class SeedOutput:
    """What the network says to a click at each seed of one image, P masks in all: one a seed and level token."""

    answer: LayerOutput  #: of the prompt decoder
    logits: Tensor  #: (P, H/4, W/4)
    names: tuple[Tensor, Tensor]  #: class embeddings for objects and parts, (P, E) each


@dataclass(frozen=True, eq=False)
class SeedProposals:
    """Every mask that the seeds of one image gave, P of them: one a seed and level token."""

    mask_embedding: Tensor  #: (P, C)
    logits: Tensor  #: (P, H/4, W/4)
    boxes: Tensor  #: (P, 4) cx, cy, w, h, shares of the padded frame
    predicted_iou: Tensor  #: (P,), raw
    scores: Tensor  #: (P, 3), logits


@dataclass(frozen=True, eq=False)
class ObjectQueryOutput:
    """The object queries of one image, Q of them, and what they came from."""

    token_scores: Tensor  #: (S, 3), logits, in the order of the memory
    proposals: SeedProposals
    chosen: Tensor  #: long (Q,), rows of `proposals`, best first
    mask_embedding: Tensor  #: (Q, C), see `query_logits`
    boxes: Tensor  #: (Q, 4) cx, cy, w, h, shares of the padded frame
    box_trust: Tensor  #: (Q,), how much the box draws the mask
    scores: Tensor  #: (Q, 3), logits, before the mask's own say, see `query_scores`
    object_embedding: Tensor  #: (Q, E), not normalised
    part_embedding: Tensor  #: (Q, E), not normalised


class ObjectQueryHead(nn.Module):
    """What is learned for object queries. Methods take one image: a `Features` with a batch of one."""

    def __init__(self, config: ModelConfig, channels: tuple[int, ...]) -> None:
        """channels: of the backbone's maps."""
        super().__init__()
        c, e = config.width, config.text_dim
        self.pixel_decoder: PixelDecoder | None = None  #: of their own, as `decoder`
        self.decoder: PromptDecoder | None = None
        if config.generic_decoder_layers:
            self.pixel_decoder = PixelDecoder(config, channels, projects=False)
            self.decoder = PromptDecoder(
                replace(config, decoder_layers=config.generic_decoder_layers, corrections=False)
            )
        self.queries, self.click_box = config.generic_queries, config.click_box
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
        self.none = nn.Parameter(torch.zeros(2))  # logits of "no label of the list", beside those of objects, of parts
        for last in (
            self.query_score.layers[-1],
            self.mask_change.layers[-1],
            self.box_change.layers[-1],
            self.box_trust,
            self.object_change,
            self.part_change,
        ):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        for scores in (self.token_score, self.proposal_score):
            nn.init.constant_(scores.layers[-1].get_parameter("bias"), FIRST_LOGIT)

    def tokens(self, features: Features) -> Tensor:
        """(S, 3) logits: is the middle of an object, part or region that has this level's size here?"""
        levels = torch.cat([self.level_embed[i].expand(h * w, -1) for i, (h, w) in enumerate(features.shapes)])
        return self.token_score(self.token_norm(features.memory[0]) + levels)

    def describe(self, features: Features, answer: LayerOutput, coarse: Tensor, names: tuple[Tensor, Tensor]) -> Tensor:
        """(P, D): the query's state, the memory of stride 8 pooled inside its mask, its names, its shape.

        coarse (P, cells of stride 8): mask logits.
        """
        inside = coarse.sigmoid()
        pooled = (
            inside @ features.level(MEMORY_LEVELS - 1)[0].flatten(1).T / inside.sum(1, keepdim=True).clamp(min=1e-6)
        )
        area = (coarse > 0).float().mean(1)
        geometry = torch.cat(
            (
                answer.predicted_iou.flatten()[:, None],
                soft_iou(coarse)[:, None],
                (area + 1e-4).log10()[:, None],
                inverse_sigmoid(answer.boxes.flatten(0, 2)) / 4,
            ),
            1,
        )
        return torch.cat(
            (
                self.state_norm(answer.state.flatten(0, 2)),
                self.pooled_norm(pooled),
                *(F.normalize(name, dim=-1) * name.shape[-1] ** 0.5 / 4 for name in names),
                geometry,
            ),
            1,
        )

    def forward(self, features: Features, token_scores: Tensor, seeds: SeedOutput) -> ObjectQueryOutput:
        """What clicks at the seeds select -> object queries. token_scores: of `tokens`, handed on."""
        answer, logits, names = seeds.answer, seeds.logits, seeds.names
        # At stride 8, a cell where any quarter of it is inside: small masks must not vanish. What describes a mask does
        # not redraw it.
        fine = logits.detach()
        rows = torch.maximum(fine[:, ::2], fine[:, 1::2])  # many times as fast as max_pool2d of one channel
        coarse = torch.maximum(rows[..., ::2], rows[..., 1::2]).flatten(1)
        description = self.describe(features, answer, coarse, names)
        scores = self.proposal_score(description)
        embedding = answer.mask_embedding.flatten(0, 2)
        chosen = distinct_proposals(scores.detach(), coarse, self.queries)
        x = (self.content(description[chosen]))[None, None]
        boxes = answer.boxes.flatten(0, 2)
        reference = boxes[chosen].detach()[None, None]
        for layer in self.layers:
            start = reference.detach()
            x = layer(x, self.position_head(box_positions(start, x.shape[-1])), start, features)
            h = self.norm(x)
            reference = (self.box_change(h).float() + inverse_sigmoid(start)).sigmoid()
        h = h[0, 0]
        return ObjectQueryOutput(
            token_scores,
            SeedProposals(embedding, logits, boxes, answer.predicted_iou.flatten(), scores),
            chosen,
            embedding[chosen] + self.mask_change(h),
            reference[0, 0],
            self.box_trust(h)[:, 0],
            scores[chosen] + self.query_score(h),
            names[0][chosen] + self.object_change(h),
            names[1][chosen] + self.part_change(h),
        )


def query_logits(output: ObjectQueryOutput, mask_features: Tensor) -> Tensor:
    """float32 (Q, h, w) for mask features (C, h, w): what the embedding says of a cell, plus how far the cell lies in
    the query's box, as far as the query trusts it.

    Mask features hardly tell a window from the same one beside it; a box does. Depth is 0 on the border and 1 in the
    middle of the shorter side, and goes down to -2 outside.
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
    """float32 (Q, 3), logits of the expected IoU with an annotated mask of the granularity: what the query says,
    times the IoU that its mask logits (Q, h, w) expect. A blurred mask is a bad one, whatever it is of (as the mask
    scores of Mask2Former, Cheng et al. 2022). No gradient reaches the mask.
    """
    sure = soft_iou(logits.detach().flatten(1))
    return inverse_sigmoid(output.scores.float().sigmoid() * sure[:, None])


def soft_iou(logits: Tensor) -> Tensor:
    """(n,) for mask logits (n, cells): IoU of the mask with one that holds each cell with the probability it says."""
    inside, hard = logits.sigmoid(), (logits > 0).float()
    return (inside * hard).sum(1) / torch.maximum(inside, hard).sum(1).clamp(min=1e-6)


def choose_seeds(token_scores: Tensor, shapes: Shapes, count: int) -> Tensor:
    """Rows of the memory (n,), n <= count: the best local maxima (3x3, inside a level), then the best of the rest."""
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
    kept = suppress(range(len(order)), len(order), same.__getitem__, count)
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
