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
from dataclasses import dataclass, fields, replace

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
from semsam_model.training.distributed import ReduceMean, no_reduce
from semsam_model.training.losses.matching import BOXES, IOU, MASKS, dice_loss, generalised_iou, mask_ious
from semsam_model.training.losses.names import CandidateLabels, NameLoss, name_loss
from semsam_model.types import GRANULARITIES

#: Sides (root of the area) of the masks that a memory level of stride s answers for, in units of s. Levels overlap.
FITTING = (1.5, 6.0)
#: Scores are held to an IoU with a mask from here on, and to 0 below.
MIN_IOU = 0.5
TERMS = ("tokens", "proposals", "queries", "mask_bce", "mask_dice", "box")
GAMMA = 2.0  #: of the focal loss
SCORE_SCALE = 5.0  #: of the mean cross-entropy of scores, most of which are easy
MIN_MATCH_IOU = 0.2  #: pairs with a smaller IoU give a query no loss of its mask


@dataclass(frozen=True, eq=False)
class ObjectQueryTargets:
    """All annotated masks of one image, G of them, at stride 4."""

    masks: Tensor  #: bool (G, H/4, W/4)
    boxes: Tensor  #: (G, 4) cx, cy, w, h, shares of the padded frame
    kinds: Tensor  #: long (G,), index into GRANULARITIES
    labels: Tensor  #: long (G,), rows of the vocabulary, or NO_LABEL
    complete: Tensor  #: bool (3,): whatever is not annotated is not there
    supervised: Tensor  #: bool (G, 3): whether it counts in the losses of masks, boxes, IoU

    def to(self, device: torch.device | str) -> ObjectQueryTargets:
        return ObjectQueryTargets(*(getattr(self, field.name).to(device) for field in fields(self)))


def at_logits(masks: Tensor) -> Tensor:
    """bool (G, S, S) -> (G, S/4, S/4): cells that are mostly covered."""
    (g, h, w), side = masks.shape, LOGIT_STRIDE
    return masks.view(g, h // side, side, w // side, side).sum((2, 4)) * 2 > side**2


def token_targets(masks: Tensor, kinds: Tensor, shapes: Shapes) -> Tensor:
    """float (S, 3): 1 in the middle of a mask of a size that fits the level, -1 elsewhere inside masks, else 0.

    masks bool (G, h, w). Every mask that is not empty has at least one positive cell.
    """
    height, width = masks.shape[-2:]
    levels = [np.zeros((len(GRANULARITIES), h, w), np.float32) for h, w in shapes]
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
            here = levels[level][kind]
            here[(at > 0) & (here == 0)] = -1
            if fits[level]:
                here[at > 0.5 * depth.flat[inner]] = 1
                here[inner // width * h // height, inner % width * w // width] = 1
    return torch.from_numpy(np.concatenate([level.reshape(len(GRANULARITIES), -1) for level in levels], 1).T.copy())


@dataclass(frozen=True, eq=False)
class ObjectQueryLoss:
    """Unweighted terms, scalars, means over the batch; and what was matched, for the names."""

    tokens: Tensor
    proposals: Tensor
    queries: Tensor
    mask_bce: Tensor
    mask_dice: Tensor
    box: Tensor
    matched: tuple[tuple[Tensor, Tensor], ...]  #: of each image: queries (n,) with a good mask, and the masks (n,)
    names: NameLoss | None = None

    @property
    def total(self) -> Tensor:
        masks = self.tokens + self.proposals + self.queries + self.mask_bce + 2 * self.mask_dice + self.box
        return masks if self.names is None else masks + self.names.total

    def figures(self) -> dict[str, float]:
        """Name -> value, for the log."""
        found = {name: float(getattr(self, name).detach()) for name in TERMS}
        return found if self.names is None else found | self.names.figures()


def object_query_loss(
    outputs: Sequence[ObjectQueryOutput], features: Sequence[Features], targets: Sequence[ObjectQueryTargets]
) -> ObjectQueryLoss:
    """Loss of the object queries of some images; features: of each, a batch of one."""
    images = [_image_loss(*of_image) for of_image in zip(outputs, features, targets, strict=True)]
    terms, matched = zip(*images, strict=True)
    means = torch.stack(terms).mean(0)
    return ObjectQueryLoss(**dict(zip(TERMS, means, strict=True)), matched=matched)


def _image_loss(
    output: ObjectQueryOutput, features: Features, targets: ObjectQueryTargets
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Terms in the order of `TERMS`, (6,); queries (n,) with a good mask, and the masks (n,) they are matched to."""
    tokens = _token_loss(output.token_scores.float(), targets, features.shapes)
    proposals = _proposal_loss(output, targets)
    logits = query_logits(output, features.mask_features[0])
    scores = query_scores(output, logits)
    ious = mask_ious(logits.detach() > 0, targets.masks)
    closeness = torch.maximum(ious, _box_ious(output.boxes.detach(), targets.boxes))
    query, mask = _match(scores.detach(), closeness, targets)
    good = ious[query, mask] >= MIN_IOU
    queries = _query_loss(scores, ious, query[good], mask[good], targets)
    outlined, boxed = targets.supervised[mask, MASKS], targets.supervised[mask, BOXES]
    bce, dice = _mask_losses(logits[query[outlined]], targets.masks[mask[outlined]].float())
    box = _box_loss(output.boxes[query[boxed]], targets.boxes[mask[boxed]])
    return torch.stack((tokens, proposals, queries, bce, dice, box)), (query[good], mask[good])


def _token_loss(scores: Tensor, targets: ObjectQueryTargets, shapes: Shapes) -> Tensor:
    """Focal loss, a sum over the number of positive cells."""
    supervised = targets.supervised[:, IOU]
    positive = (token_targets(targets.masks[supervised], targets.kinds[supervised], shapes) > 0).to(scores.device)
    ignored = (token_targets(targets.masks[~supervised], targets.kinds[~supervised], shapes) != 0).to(scores.device)
    weight = torch.where(positive, 1.0, (targets.complete & ~ignored).float())
    probability = scores.sigmoid()
    wrong = torch.where(positive, 1 - probability, probability)
    cross_entropy = F.binary_cross_entropy_with_logits(scores, positive.float(), reduction="none")
    balance = torch.where(positive, 0.75, 0.25)
    return (weight * balance * wrong**GAMMA * cross_entropy).sum() / positive.sum().clamp(min=1)


def _proposal_loss(output: ObjectQueryOutput, targets: ObjectQueryTargets) -> Tensor:
    """Of the proposals' scores, each held to its IoU with the best mask or box of a granularity."""
    ious = _box_ious(output.proposals.boxes.float(), targets.boxes)
    ious = torch.maximum(mask_ious(output.proposals.logits > 0, targets.masks), ious)
    supervised = targets.supervised[:, IOU]
    expected, ignored = _best_iou(ious, targets, supervised), _best_iou(ious, targets, ~supervised)
    return _score_loss(output.proposals.scores.float(), expected, ignored, targets)


def _query_loss(scores: Tensor, ious: Tensor, query: Tensor, mask: Tensor, targets: ObjectQueryTargets) -> Tensor:
    """Of the queries' scores, held to the IoU where a query (n,) is matched to a mask (n,), and to 0 elsewhere."""
    expected, ignored = (torch.zeros_like(scores) for _ in range(2))
    supervised = targets.supervised[mask, IOU]
    for of_queries, chosen in ((expected, supervised), (ignored, ~supervised)):
        of_queries[query[chosen], targets.kinds[mask[chosen]]] = ious[query[chosen], mask[chosen]]
    return _score_loss(scores, expected, ignored, targets)


def _best_iou(ious: Tensor, targets: ObjectQueryTargets, chosen: Tensor) -> Tensor:
    """ious (P, G), chosen bool (G,) -> (P, 3): with the best chosen mask of a granularity, 0 below MIN_IOU."""
    best = ious.new_zeros(len(ious), len(GRANULARITIES))
    for kind in range(len(GRANULARITIES)):
        of_kind = ious[:, chosen & (targets.kinds == kind)]
        if of_kind.shape[1]:
            best[:, kind] = of_kind.amax(1)
    return best * (best >= MIN_IOU)


def _score_loss(scores: Tensor, expected: Tensor, ignored: Tensor, targets: ObjectQueryTargets) -> Tensor:
    """Cross-entropy of scores with the expected IoU 0..1; all (P, 3).

    Where the granularity is not completely annotated only what has an expected IoU counts. What has an IoU in `ignored`
    alone, with masks that do not feed scores, counts nowhere.
    """
    known = (expected > 0) | (targets.complete & (ignored == 0))
    losses = F.binary_cross_entropy_with_logits(scores, expected, reduction="none")
    return len(GRANULARITIES) * (losses * known).sum() / known.sum().clamp(min=1) * SCORE_SCALE


def _match(scores: Tensor, ious: Tensor, targets: ObjectQueryTargets) -> tuple[Tensor, Tensor]:
    """One to one, so that the sum of IoU is largest; the query's score of the mask's granularity decides between
    equals. Returns queries (n,) and masks (n,), without pairs below MIN_MATCH_IOU.
    """
    of_kind = scores.sigmoid()[:, targets.kinds]
    rows, columns = linear_sum_assignment(-(ious + 0.3 * of_kind * ious).cpu().numpy())
    query, mask = (torch.as_tensor(at, device=ious.device) for at in (rows, columns))
    useful = ious[query, mask] > MIN_MATCH_IOU
    return query[useful], mask[useful]


def _box_ious(boxes: Tensor, targets: Tensor) -> Tensor:
    """(P, 4) and (G, 4) -> (P, G), as generalised IoU, never below 0."""
    return generalised_iou(boxes[:, None], targets[None]).clamp(min=0)


def _box_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """L1 and generalised IoU of n boxes (n, 4), weighted as the clicks' are; 0 of none."""
    if not len(boxes):
        return boxes.sum()
    l1 = (boxes - targets).abs().sum(1)
    return (5 * l1 + 2 * (1 - generalised_iou(boxes, targets))).mean()


def _mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of n masks (n, h, w), means; 0 of none."""
    if not len(logits):
        return logits.sum(), logits.sum()
    flat, truth = logits.flatten(1), masks.flatten(1)
    # cells in and around the mask, and wherever the query sees one: most of a photo is easy
    around = F.max_pool2d(masks[:, None], 5, 1, 2)[:, 0].flatten(1)
    weight = torch.maximum(around, (flat.detach() > 0).float())
    bce = F.binary_cross_entropy_with_logits(flat, truth, weight=weight, reduction="sum") / weight.sum()
    return bce, dice_loss(flat.sigmoid(), truth).mean()


def with_names(
    loss: ObjectQueryLoss,
    outputs: Sequence[ObjectQueryOutput],
    targets: Sequence[ObjectQueryTargets],
    table: NameTable,
    scales: Tensor,
    none: Tensor,
    reduce_mean: ReduceMean = no_reduce,
) -> ObjectQueryLoss:
    """The loss with the names of matched queries whose mask is good enough, held against the lists that
    `CandidateLabels.draw` gives. scales, none (2,)."""
    objects, parts, labels = [], [], []
    for output, of_image, (query, mask) in zip(outputs, targets, loss.matched, strict=True):
        objects.append(output.object_embedding[query])
        parts.append(output.part_embedding[query])
        labels.append(of_image.labels[mask])
    rows = torch.cat(labels)
    drawn = CandidateLabels.draw(none, len(rows), len(table.vectors))
    names = name_loss(torch.cat(objects), torch.cat(parts), rows, table, scales, drawn, reduce_mean)
    return replace(loss, names=names)
