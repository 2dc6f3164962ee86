"""Training objective: masks at points, boxes, and the predicted IoU, with deep supervision on every decoder layer.

many_to_many   the six queries of a prompt are matched one-to-one (Hungarian) to the masks the prompt may mean. Matched
               once, on the last layer; earlier layers are held to the same pairs. Unmatched queries get no mask loss.
many_to_one    every query of a prompt is held to the mask the prompt was drawn from, and per layer only the query that
               comes closest is counted.

Mask losses look at random points of which three in four are the most uncertain of a larger draw (PointRend). A mask
that does not feed a loss, by the settings of its source, is matched like others and counts nowhere in that loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.network.decoder import LayerOutput
from semsam_model.training.config import LossConfig
from semsam_model.training.distributed import ReduceMean, no_reduce
from semsam_model.training.losses.matching import (
    BOXES,
    IOU,
    MASKS,
    NO_TARGET,
    Match,
    TargetMasks,
    Targets,
    dice_loss,
    generalised_iou,
    mask_costs,
    mask_ious,
    match_prompts,
    sample_bilinear,
)
from semsam_model.training.losses.names import NameLoss
from semsam_model.training.losses.object_queries import ObjectQueryLoss

#: Term of a layer's loss -> column of `Targets.supervised`: only masks that are supervised in it count in the term.
SUPERVISED_BY = {"mask_bce": MASKS, "mask_dice": MASKS, "box_l1": BOXES, "box_giou": BOXES, "iou": IOU}
#: (rows, points) -> float (rows, points, 2), uniform in 0..1.
RandomPoints = Callable[[int, int], Tensor]


@dataclass(frozen=True, eq=False)
class LayerLoss:
    """Unweighted terms of one decoder layer, scalars."""

    mask_bce: Tensor
    mask_dice: Tensor
    box_l1: Tensor
    box_giou: Tensor
    iou: Tensor

    def weighted(self, config: LossConfig) -> Tensor:
        return sum((getattr(config, term.name) * getattr(self, term.name) for term in fields(self)), torch.zeros(()))


@dataclass(frozen=True, eq=False)
class LossOutput:
    """`total`: weighted sum over terms and layers, scalar with gradients; `layers`: first to last."""

    total: Tensor
    layers: tuple[LayerLoss, ...]
    matches: tuple[Match, ...]  #: of the B images: which query of the last layer is held to which mask
    names: NameLoss | None = None  #: where names are learned; part of `total` then
    corrected: LossOutput | None = None  #: of prompts with further clicks, where such are learned; in `total` too
    object_queries: ObjectQueryLoss | None = None  #: where object queries are learned; part of `total` then


def uniform_points(device: torch.device, seed: int | None = None) -> RandomPoints:
    """Of a generator of its own with a seed, of the common one without."""
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    return lambda rows, points: torch.rand(rows, points, 2, device=device, generator=generator)


def training_loss(
    layers: Sequence[LayerOutput],
    mask_features: Tensor,
    targets: Targets,
    config: LossConfig,
    random_points: Sequence[RandomPoints] | None = None,
    reduce_mean: ReduceMean = no_reduce,
) -> LossOutput:
    """Loss of the decoder layers (first to last) over a batch.

    `mask_features` (B, C, h, w): a mask's logits are its embedding times these. That product runs in the type of
    `mask_features`, everything else in float32, under autocast too.
    `random_points`, one for each image, is called first for the matching points, then for each layer (the last one,
    then the others from the first on) for the candidates of uncertain points and for the uniform rest.
    Terms are means over the pairs that count in them; with `reduce_mean`, over the mean count of the processes, so that
    their losses average to the loss of their batches together.
    """
    random_points = random_points or [uniform_points(mask_features.device)] * len(mask_features)
    with torch.autocast(mask_features.device.type, enabled=False):
        truth = TargetMasks(targets, (mask_features.shape[-2], mask_features.shape[-1]))
        unmatched: list[Tensor] = []
        if config.mode == "many_to_many":
            matches = _match(layers[-1], mask_features, targets, config, random_points)
            if config.iou_target == "mask_iou" and config.unmatched_iou:
                unmatched = _unmatched_queries(layers[-1], truth, matches)
        else:
            matches = _all_to_first(layers[-1], targets)
        counts = _counts(layers[-1], truth, matches, unmatched, config, reduce_mean)
        images = mask_features.unbind()
        last, *earlier = (_Pairs(layer, images, truth, matches) for layer in (layers[-1], *layers[:-1]))
        of_last = _layer_loss(last, truth, config, random_points, unmatched, counts[1])
        losses = (*(_layer_loss(pairs, truth, config, random_points, [], counts[0]) for pairs in earlier), of_last)
        total = torch.stack([layer.weighted(config) for layer in losses]).sum()
        return LossOutput(total, losses, tuple(matches))


class _Pairs:
    """The matched queries of one layer, over the whole batch, beside the masks they are held to."""

    def __init__(
        self, layer: LayerOutput, mask_features: Sequence[Tensor], truth: TargetMasks, matches: Sequence[Match]
    ) -> None:
        # unbound at once: the gradient of each `tensor[b]` would be a whole batch of zeros beside it
        embedding, ious, boxes = layer.mask_embedding.unbind(), layer.predicted_iou.unbind(), layer.boxes.unbind()
        self.layer, self.mask_features, self.matches = layer, mask_features, matches
        images = range(len(matches))
        self.logits = torch.cat(
            [_logits(embedding[b].flatten(0, 1)[matches[b].query], mask_features[b]) for b in images]
        )
        self.ious = torch.cat([ious[b].flatten()[matches[b].query] for b in images]).float()
        self.boxes = torch.cat([boxes[b].flatten(0, 1)[matches[b].query] for b in images]).float()
        self.rows = torch.cat([matches[b].target + truth.start[b] for b in images])


def _logits(embedding: Tensor, features: Tensor) -> Tensor:
    """(n, C) and (C, h, w) -> float32 (n, h, w)"""
    return (embedding.to(features.dtype) @ features.flatten(1)).float().unflatten(1, features.shape[-2:])


def _match(
    layer: LayerOutput,
    mask_features: Tensor,
    targets: Targets,
    config: LossConfig,
    random_points: Sequence[RandomPoints],
) -> list[Match]:
    matches = []
    for b, masks in enumerate(targets.masks):
        with torch.no_grad():
            points = random_points[b](1, config.match_points)
            # Sampling commutes with the product: few points of the features, not of every query's mask.
            features = sample_bilinear(mask_features[b : b + 1].float(), points)[0]
            logits = layer.mask_embedding[b].flatten(0, 1).float() @ features
            truth = sample_bilinear(masks[None].float(), points)[0]
            cross_entropy, dice = mask_costs(logits, truth)
            predicted, expected = layer.boxes[b].flatten(0, 1).float()[:, None], targets.boxes[b].float()[None]
            cost = (
                config.mask_bce * cross_entropy
                + config.mask_dice * dice
                + config.box_l1 * (predicted - expected).abs().sum(-1)
                - config.box_giou * generalised_iou(predicted, expected)
            )
        # A diverged run must reach the caller's check of the loss, not die in the assignment.
        cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
        matches.append(match_prompts(cost.unflatten(0, layer.boxes.shape[1:3]), targets.of_prompt[b]))
    return matches


def _all_to_first(layer: LayerOutput, targets: Targets) -> list[Match]:
    prompts, tokens = layer.predicted_iou.shape[1:]
    query = torch.arange(prompts * tokens, device=targets.of_prompt.device)
    return [Match(query, first.repeat_interleave(tokens)) for first in targets.of_prompt[:, :, 0]]


def _unmatched_queries(layer: LayerOutput, truth: TargetMasks, matches: Sequence[Match]) -> list[Tensor]:
    """bool (N * T,) of each image: unmatched queries that learn what their best mask would be worth."""
    found = []
    for b, match in enumerate(matches):
        rows = truth.targets.of_prompt[b]
        supervised = truth.supervised[truth.start[b] + rows.clamp(min=0), IOU] > 0
        unmatched = (supervised | (rows == NO_TARGET)).all(1).repeat_interleave(layer.predicted_iou.shape[2])
        unmatched[match.query] = False
        found.append(unmatched & (not truth.targets.partial[b]))
    return found


def _counts(
    layer: LayerOutput,
    truth: TargetMasks,
    matches: Sequence[Match],
    unmatched: Sequence[Tensor],
    config: LossConfig,
    reduce_mean: ReduceMean,
) -> Tensor:
    """(2, 3): how many pairs count for masks, boxes and IoU, on a layer but the last, and on the last; at least 1."""
    pairs = torch.cat([truth.supervised[match.target + truth.start[b]] for b, match in enumerate(matches)]).sum(0)
    if config.mode == "many_to_one":  # one of a prompt's tokens counts
        pairs = pairs / layer.predicted_iou.shape[2]
    last = pairs.clone()
    for queries in unmatched:
        last[IOU] += queries.sum()
    counts = reduce_mean(torch.stack((pairs, last)))
    return counts.where(counts > 0, torch.ones_like(counts))


def _uncertain_points(
    logits: Tensor, matches: Sequence[Match], config: LossConfig, random_points: Sequence[RandomPoints]
) -> Tensor:
    """(n, points, 2): the most uncertain of a larger draw, then a uniform rest."""

    def draw(points: int) -> Tensor:
        return torch.cat([of_image(len(m.query), points) for of_image, m in zip(random_points, matches, strict=True)])

    certain = int(config.importance * config.points)
    with torch.no_grad():
        drawn = draw(int(config.oversample * config.points))
        doubt = -sample_bilinear(logits[:, None], drawn).squeeze(1).abs()
        chosen = doubt.topk(certain, dim=1).indices
        rest = draw(config.points - certain)
        return torch.cat((drawn.gather(1, chosen[..., None].expand(-1, -1, 2)), rest), 1)


def _layer_loss(
    pairs: _Pairs,
    truth: TargetMasks,
    config: LossConfig,
    random_points: Sequence[RandomPoints],
    unmatched: Sequence[Tensor],
    counts: Tensor,
) -> LayerLoss:
    """unmatched: of each image the unmatched queries that learn their IoU; counts (3,): of pairs in each loss."""
    terms = _pair_losses(pairs, truth, config, random_points)
    supervised = truth.supervised[pairs.rows]
    counted = {name: term * supervised[:, SUPERVISED_BY[name]] for name, term in terms.items()}
    if config.mode == "many_to_one":
        tokens = pairs.layer.predicted_iou.shape[2]
        distance = (terms["mask_bce"] + terms["mask_dice"]).detach()
        nearest = distance.unflatten(0, (-1, tokens)).argmin(1, keepdim=True)
        counted = {n: term.unflatten(0, (-1, tokens)).gather(1, nearest).squeeze(1) for n, term in counted.items()}
    sums = {name: term.sum() for name, term in counted.items()}
    if unmatched:
        sums["iou"] = sums["iou"] + _unmatched_iou_errors(pairs, truth, unmatched).sum()
    return LayerLoss(**{name: total / counts[SUPERVISED_BY[name]] for name, total in sums.items()})


def _pair_losses(
    pairs: _Pairs, truth: TargetMasks, config: LossConfig, random_points: Sequence[RandomPoints]
) -> dict[str, Tensor]:
    """Name of a term of LayerLoss -> its values for n pairs (n,)."""
    points = _uncertain_points(pairs.logits, pairs.matches, config, random_points)
    logits = sample_bilinear(pairs.logits[:, None], points).squeeze(1)
    target = truth.at(pairs.rows, points)
    dice = dice_loss(logits.sigmoid(), target)
    boxes = truth.boxes[pairs.rows]
    if config.iou_target == "soft_dice":
        outlined = truth.supervised[pairs.rows, MASKS] > 0
        iou_target = (1 - dice).where(outlined, 1 - dice.detach())
    else:
        iou_target = _iou(pairs.logits.detach() > 0, truth.small[pairs.rows])
    return {
        "mask_bce": F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1),
        "mask_dice": dice,
        "box_l1": (pairs.boxes - boxes).abs().sum(1),
        "box_giou": 1 - generalised_iou(pairs.boxes, boxes),
        "iou": (pairs.ious - iou_target).square(),
    }


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """bool (n, h, w) twice -> (n,); two empty masks give 0."""
    inner = (first & second).sum((1, 2))
    return inner / (first | second).sum((1, 2)).clamp(min=1)


def _unmatched_iou_errors(pairs: _Pairs, truth: TargetMasks, unmatched: Sequence[Tensor]) -> Tensor:
    """Squared errors of the predicted IoU of `unmatched` queries against their best mask, over the whole batch."""
    errors = []
    for b, queries in enumerate(unmatched):
        if truth.targets.partial[b]:
            continue
        ious = pairs.layer.predicted_iou[b].float()
        with torch.no_grad():
            logits = _logits(pairs.layer.mask_embedding[b].flatten(0, 1), pairs.mask_features[b])
            start = truth.start[b]
            masks = truth.small[start : start + len(truth.targets.masks[b])]
            table = mask_ious(logits > 0, masks).unflatten(0, ious.shape)
            rows = truth.targets.of_prompt[b]
            of_prompt = table.gather(2, rows.clamp(min=0)[:, None].expand(-1, ious.shape[1], -1))
            best = of_prompt.masked_fill((rows == NO_TARGET)[:, None], 0).amax(2)
        errors.append((ious - best).square().flatten()[queries])
    return torch.cat(errors) if errors else pairs.ious.new_zeros(0)
