"""What prompts are held to, and which query of a prompt is held to which of its masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: Entry of `Targets.of_prompt` that stands for "no further mask".
NO_TARGET = -1
#: Columns of `supervised`: the losses that a mask may count in.
MASKS, BOXES, IOU = range(3)


@dataclass(frozen=True, eq=False)
class Targets:
    """Masks of a batch of B images and, for each of N prompts an image, the masks it may mean.

    `masks[b]` bool (G_b, S, S), annotated or added by a model, and `boxes[b]` float (G_b, 4), cx, cy, w, h in 0..1 of
    the padded image, G_b >= 1. `of_prompt` long (B, N, K): rows of `masks[b]`, filled up with `NO_TARGET`; the first is
    the mask the prompt was drawn from, so it is never `NO_TARGET`. `partial[b]`: not everything visible in image b is
    annotated.
    `supervised[b]` (G_b, 3), 0..1: how much a mask counts in the losses of masks, boxes and predicted IoU, in the means
    and in what they are divided by; bool is 0 or 1. None: all count wholly.
    """

    masks: list[Tensor]
    boxes: list[Tensor]
    of_prompt: Tensor
    partial: list[bool]
    supervised: list[Tensor] | None = None

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            [masks.to(device) for masks in self.masks],
            [boxes.to(device) for boxes in self.boxes],
            self.of_prompt.to(device),
            self.partial,
            None if self.supervised is None else [supervised.to(device) for supervised in self.supervised],
        )


class TargetMasks:
    """The annotated masks of a batch in one stack, at full size for the points and at stride 4 for areas."""

    def __init__(self, targets: Targets, size: tuple[int, int]) -> None:
        """size: (h, w) at stride 4."""
        self.targets = targets
        self.masks = torch.cat(targets.masks)
        self.bordered = F.pad(self.masks.view(torch.uint8), (1, 1, 1, 1))
        self.boxes = torch.cat(targets.boxes).float()
        counts = [len(masks) for masks in targets.masks]
        self.start = [sum(counts[:image]) for image in range(len(counts))]
        everything = self.boxes.new_ones(len(self.masks), 3)
        #: (G, 3), 0..1
        self.supervised = everything if targets.supervised is None else torch.cat(targets.supervised).to(everything)
        self.small = F.adaptive_avg_pool2d(self.masks[:, None].float(), size).squeeze(1) > 0.5

    def at(self, rows: Tensor, points: Tensor) -> Tensor:
        """Bilinear values of masks `rows` (n,) at `points` (n, P, 2): (n, P).

        By hand, because n pairs share few masks and grid_sample would need a float copy of the mask for every pair.
        """
        height, width = self.masks.shape[-2:]
        x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, bottom_share = x - left, y - top
        # Flat index of the upper left of four neighbours; the border of zeros shifts rows and columns by one.
        corner = ((rows[:, None] * (height + 2) + top.long() + 1) * (width + 2)) + left.long() + 1
        value = torch.zeros_like(x)
        for down, row_share in ((0, 1 - bottom_share), (1, bottom_share)):
            for right, column_share in ((0, 1 - right_share), (1, right_share)):
                value += self.bordered.take(corner + (down * (width + 2) + right)) * (row_share * column_share)
        return value


@dataclass(frozen=True, eq=False)
class Match:
    """n pairs in one image, ordered by query. `query` long (n,): prompt * tokens + token; `target` long (n,)."""

    query: Tensor
    target: Tensor


def sample_bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """Values of `maps` (M, C, H, W) at `points` (M, P, 2), x and y in 0..1 of the map: (M, C, P). Outside is zero."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False).squeeze(2)


def corners(boxes: Tensor) -> Tensor:
    """cx, cy, w, h -> x0, y0, x1, y1; (..., 4)."""
    centre, size = boxes.split(2, -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of boxes cx, cy, w, h; (..., 4) against (..., 4) with broadcasting: (...). Empty boxes give no NaN."""
    a, b = corners(first), corners(second)
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    tiny = torch.finfo(union.dtype).tiny
    return inner / union.clamp(min=tiny) - (outer - union) / outer.clamp(min=tiny)


def mask_ious(first: Tensor, second: Tensor) -> Tensor:
    """bool (P, h, w) and (G, h, w) -> (P, G)"""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def dice_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Of n masks, probabilities and truth 0..1 (n, P) -> (n,)."""
    return 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)


def mask_costs(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of every pair: logits (Q, P), truth 0..1 (G, P) -> two of (Q, G)."""
    # BCE(x, t) = softplus(x) - t * x, so that all pairs come from one product.
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth.T) / logits.shape[-1]
    probability = logits.sigmoid()
    overlap = 2 * (probability @ truth.T)
    dice = 1 - (overlap + 1) / (probability.sum(-1, keepdim=True) + truth.sum(-1) + 1)
    return cross_entropy, dice


def match_prompts(cost: Tensor, of_prompt: Tensor) -> Match:
    """Cheapest one-to-one assignment, prompt by prompt, of its tokens to its masks.

    `cost` (N, T, G): any query against any mask of the image; `of_prompt` long (N, K) as in `Targets`.
    At most min(T, masks of the prompt) pairs a prompt; the other tokens stay unmatched.
    """
    costs = cost.detach().cpu().numpy()
    allowed = of_prompt.cpu().numpy()
    queries, targets = [], []
    for prompt in range(len(allowed)):
        rows = allowed[prompt][allowed[prompt] != NO_TARGET]
        tokens, chosen = linear_sum_assignment(costs[prompt][:, rows])
        queries.append(prompt * cost.shape[1] + tokens)
        targets.append(rows[chosen])
    device = cost.device
    return Match(
        torch.from_numpy(np.concatenate(queries)).to(device), torch.from_numpy(np.concatenate(targets)).to(device)
    )
