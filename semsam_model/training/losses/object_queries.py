"""What object queries are held to: all annotated masks of an image, each in the granularity it was annotated in.

    tokens     focal loss; positive are the cells in the inner half of a mask, at the stride that fits its size
    proposals  binary cross-entropy of each score with the IoU with the best mask of the granularity, or of their boxes
               where those fit better, for a query can still correct the mask; 0 below half
    queries    matched one to one (Hungarian) to the masks: scores as above, but only the matched query of a mask is
               worth something; mask, dice and box loss of what is matched; names against the source's own list

A photo does not show everything that it contains: where a source does not annotate a granularity, or not all of it,
what is not annotated is not negative. A mask that does not feed a loss, by the settings of its source, is matched like
others and adds nothing to it: the outline where masks are not fed, the box, and the scores where IoU is not; what looks
like such a mask is then neither positive nor negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from semsam_model.data.vocabulary import NameTable
from semsam_model.network.deformable import Shapes
from semsam_model.network.frame import LOGIT_STRIDE
from semsam_model.network.object_queries import ObjectQueryOutput, query_logits, query_scores
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.distributed import Share, alone
from semsam_model.training.losses.matching import generalised_iou
from semsam_model.training.losses.names import Abstaining, NameLoss, name_loss
from semsam_model.types import GRANULARITIES

#: Sides (root of the area) of the masks that a memory level of stride s answers for, in units of s. Levels overlap.
FITTING = (1.5, 6.0)
#: A mask is worth the IoU only from here on.
LEAST_IOU = 0.5
MASKS, BOXES, IOU = range(3)  #: columns of GenericTargets.fed
TERMS = ("tokens", "proposals", "queries", "mask_bce", "mask_dice", "box")
GAMMA = 2.0  #: of the focal loss
SCORE_SCALE = 5.0  #: of the mean cross-entropy of scores, most of which are easy
LEAST_MATCH = 0.2  #: pairs with a smaller IoU teach a query nothing about its mask


@dataclass(frozen=True, eq=False)
class GenericTargets:
    """All annotated masks of one image, G of them, at stride 4."""

    masks: Tensor  #: bool (G, H/4, W/4)
    boxes: Tensor  #: (G, 4) cx, cy, w, h, shares of the padded frame
    kinds: Tensor  #: long (G,), index into GRANULARITIES
    labels: Tensor  #: long (G,), rows of the vocabulary, or NO_LABEL
    complete: Tensor  #: bool (3,): whatever is not annotated is not there
    fed: Tensor  #: bool (G, 3): whether it teaches masks, boxes, IoU

    def to(self, device: torch.device | str) -> GenericTargets:
        values = self.masks, self.boxes, self.kinds, self.labels, self.complete, self.fed
        return GenericTargets(*(value.to(device) for value in values))


def at_logits(masks: Tensor) -> Tensor:
    """bool (G, S, S) -> (G, S/4, S/4): cells that are mostly covered."""
    g, h, w = masks.shape
    return (
        masks.view(g, h // LOGIT_STRIDE, LOGIT_STRIDE, w // LOGIT_STRIDE, LOGIT_STRIDE).sum((2, 4)) * 2
        > LOGIT_STRIDE**2
    )


def token_targets(masks: Tensor, kinds: Tensor, shapes: Shapes) -> Tensor:
    """float (S, 3): 1 in the middle of a mask of a size that fits the level, -1 elsewhere inside masks, else 0.

    masks bool (G, h, w). Every mask that is not empty has at least one positive cell.
    """
    height, width = masks.shape[-2:]
    wanted = [np.zeros((len(GRANULARITIES), h, w), np.float32) for h, w in shapes]
    for mask, kind in zip(masks.cpu().numpy(), kinds.tolist(), strict=True):
        area = int(mask.sum())
        if not area:
            continue
        depth = cv2.distanceTransform(np.pad(mask, 1).view(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        side = area**0.5
        strides = [width / w for _, w in shapes]
        fits = [FITTING[0] <= side / stride < FITTING[1] for stride in strides]
        if not any(fits):
            fits[-1 if side < FITTING[0] * strides[-1] else 0] = True
        inner = int(depth.argmax())
        for level, (h, w) in enumerate(shapes):
            rows = ((np.arange(h) + 0.5) * height / h).astype(int)
            columns = ((np.arange(w) + 0.5) * width / w).astype(int)
            at = depth[np.ix_(rows, columns)]
            here = wanted[level][kind]
            here[(at > 0) & (here == 0)] = -1
            if fits[level]:
                here[at > 0.5 * depth.flat[inner]] = 1
                here[inner // width * h // height, inner % width * w // width] = 1
    return torch.from_numpy(np.concatenate([level.reshape(len(GRANULARITIES), -1) for level in wanted], 1).T.copy())


def mask_ious(first: Tensor, second: Tensor) -> Tensor:
    """bool (P, h, w) and (G, h, w) -> (P, G)"""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


@dataclass(frozen=True, eq=False)
class GenericLoss:
    """Unweighted terms, scalars, means over the batch; and what was matched, for the names."""

    tokens: Tensor
    proposals: Tensor
    queries: Tensor
    mask_bce: Tensor
    mask_dice: Tensor
    box: Tensor
    named: tuple[tuple[Tensor, Tensor], ...]  #: of each image: queries (n,) and the masks (n,) that they are good for
    names: NameLoss | None = None

    @property
    def total(self) -> Tensor:
        masks = self.tokens + self.proposals + self.queries + self.mask_bce + 2 * self.mask_dice + self.box
        return masks if self.names is None else masks + self.names.total

    def figures(self) -> dict[str, float]:
        """Name -> value, for the log."""
        terms = [self.tokens, self.proposals, self.queries, self.mask_bce, self.mask_dice, self.box]
        found = dict(zip(TERMS, (float(term.detach()) for term in terms), strict=True))
        if self.names is not None:
            found |= {
                "object_name": float(self.names.object_name.detach()),
                "part_name": float(self.names.part_name.detach()),
            }
            found |= {
                k: v
                for k, v in (("object_top1", self.names.object_top1), ("part_top1", self.names.part_top1))
                if v is not None
            }
        return found


def generic_loss(
    outputs: Sequence[ObjectQueryOutput], features: Sequence[Features], targets: Sequence[GenericTargets]
) -> GenericLoss:
    """Loss of the object queries of some images; features: of each, a batch of one."""
    terms, named = [], []
    for output, seen, wanted in zip(outputs, features, targets, strict=True):
        tokens = _token_loss(output.token_scores.float(), wanted, seen.shapes)
        near = _box_ious(output.proposals.boxes.float(), wanted.boxes)
        near = torch.maximum(mask_ious(output.proposals.logits > 0, wanted.masks), near)
        scored, unsaid = _worth(near, wanted, wanted.fed[:, IOU]), _worth(near, wanted, ~wanted.fed[:, IOU])
        proposals = _score_loss(output.proposals.scores.float(), scored, unsaid, wanted)
        logits = query_logits(output, seen.mask_features[0])
        ious = mask_ious(logits.detach() > 0, wanted.masks)
        near = torch.maximum(ious, _box_ious(output.boxes.detach(), wanted.boxes))
        scores = query_scores(output, logits)
        query, mask = _match(scores.detach(), near, wanted)
        good = ious[query, mask] >= LEAST_IOU
        mine, unsaid = (torch.zeros_like(scores) for _ in range(2))
        for worth, those in ((mine, good & wanted.fed[mask, IOU]), (unsaid, good & ~wanted.fed[mask, IOU])):
            worth[query[those], wanted.kinds[mask[those]]] = ious[query[those], mask[those]]
        queries = _score_loss(scores, mine, unsaid, wanted)
        outlined, boxed = wanted.fed[mask, MASKS], wanted.fed[mask, BOXES]
        bce, dice = _mask_losses(logits[query[outlined]], wanted.masks[mask[outlined]].float())
        box = _box_loss(output.boxes[query[boxed]], wanted.boxes[mask[boxed]])
        terms.append(torch.stack((tokens, proposals, queries, bce, dice, box)))
        named.append((query[good], mask[good]))
    means = torch.stack(terms).mean(0)
    return GenericLoss(means[0], means[1], means[2], means[3], means[4], means[5], tuple(named))


def _token_loss(scores: Tensor, wanted: GenericTargets, shapes: Shapes) -> Tensor:
    """Focal loss, a sum over the number of positive cells."""
    fed = wanted.fed[:, IOU]
    positive = (token_targets(wanted.masks[fed], wanted.kinds[fed], shapes) > 0).to(scores.device)
    unsaid = (token_targets(wanted.masks[~fed], wanted.kinds[~fed], shapes) != 0).to(scores.device)
    weight = torch.where(positive, 1.0, (wanted.complete & ~unsaid).float())
    probability = scores.sigmoid()
    wrong = torch.where(positive, 1 - probability, probability)
    cross_entropy = F.binary_cross_entropy_with_logits(scores, positive.float(), reduction="none")
    balance = torch.where(positive, 0.75, 0.25)
    return (weight * balance * wrong**GAMMA * cross_entropy).sum() / positive.sum().clamp(min=1)


def _worth(ious: Tensor, wanted: GenericTargets, those: Tensor) -> Tensor:
    """(P, G) -> (P, 3), IoU with the best of those masks (G,) or its box in each granularity, 0 below LEAST_IOU."""
    best = ious.new_zeros(len(ious), len(GRANULARITIES))
    for kind in range(len(GRANULARITIES)):
        chosen = ious[:, those & (wanted.kinds == kind)]
        if chosen.shape[1]:
            best[:, kind] = chosen.amax(1)
    return best * (best >= LEAST_IOU)


def _score_loss(scores: Tensor, worth: Tensor, unsaid: Tensor, wanted: GenericTargets) -> Tensor:
    """Cross-entropy with the worth 0..1. Where the granularity is not complete only what is worth something counts, and
    nowhere what is worth something by a mask that does not feed scores alone.
    """
    known = (worth > 0) | (wanted.complete & (unsaid == 0))
    losses = F.binary_cross_entropy_with_logits(scores, worth, reduction="none")
    return len(GRANULARITIES) * (losses * known).sum() / known.sum().clamp(min=1) * SCORE_SCALE


def _match(scores: Tensor, ious: Tensor, wanted: GenericTargets) -> tuple[Tensor, Tensor]:
    """One to one, dearest first by IoU; what a query already says of its kind decides between equals."""
    likes = scores.sigmoid()[:, wanted.kinds]
    rows, columns = linear_sum_assignment(-(ious + 0.3 * likes * ious).cpu().numpy())
    query, mask = (torch.as_tensor(at, device=ious.device) for at in (rows, columns))
    useful = ious[query, mask] > LEAST_MATCH
    return query[useful], mask[useful]


def _box_ious(boxes: Tensor, wanted: Tensor) -> Tensor:
    """(P, 4) and (G, 4) -> (P, G), as generalised IoU, never below 0."""
    return generalised_iou(boxes[:, None], wanted[None]).clamp(min=0)


def _box_loss(boxes: Tensor, wanted: Tensor) -> Tensor:
    """L1 and generalised IoU of n boxes (n, 4), weighted as the clicks' are; 0 of none."""
    if not len(boxes):
        return boxes.sum()
    l1 = (boxes - wanted).abs().sum(1)
    return (5 * l1 + 2 * (1 - generalised_iou(boxes, wanted))).mean()


def _mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of n masks (n, h, w), means; 0 of none."""
    if not len(logits):
        return logits.sum(), logits.sum()
    flat, truth = logits.flatten(1), masks.flatten(1)
    # cells in and around the mask, and wherever the query sees one: most of a photo is easy
    around = F.max_pool2d(masks[:, None], 5, 1, 2)[:, 0].flatten(1)
    weight = torch.maximum(around, (flat.detach() > 0).float())
    bce = F.binary_cross_entropy_with_logits(flat, truth, weight=weight, reduction="sum") / weight.sum()
    inside = flat.sigmoid()
    dice = 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)
    return bce, dice.mean()


def with_names(
    loss: GenericLoss,
    outputs: Sequence[ObjectQueryOutput],
    targets: Sequence[GenericTargets],
    table: NameTable,
    scales: Tensor,
    none: Tensor,
    share: Share = alone,
) -> GenericLoss:
    """The loss with the names of matched queries whose mask is good enough, held against the lists that
    `Abstaining.draw` gives. scales, none (2,)."""
    objects, parts, labels = [], [], []
    for output, wanted, (query, mask) in zip(outputs, targets, loss.named, strict=True):
        objects.append(output.object_embedding[query])
        parts.append(output.part_embedding[query])
        labels.append(wanted.labels[mask])
    rows = torch.cat(labels)
    drawn = Abstaining.draw(none, len(rows), len(table.vectors))
    names = name_loss(torch.cat(objects), torch.cat(parts), rows, table, scales, drawn, share)
    return replace(loss, names=names)
