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
from semsam_model.training.losses.pairs import MatchedPairs, pair_logits

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
    then the others from the first on) for the candidates of uncertain points and for the uniform rest, before the next
    image's is called.
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
        pairs = MatchedPairs((layers[-1], *layers[:-1]), mask_features.unbind(), truth, matches)
        of_last, *earlier = _layer_losses(pairs, truth, config, random_points, unmatched, counts)
        losses = (*earlier, of_last)
        total = torch.stack([layer.weighted(config) for layer in losses]).sum()
        return LossOutput(total, losses, tuple(matches))


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
    """(2, 3): how many pairs count for masks, boxes and IoU, on a layer but the last, and on the last; 1 for none."""
    pairs = torch.cat([truth.supervised[match.target + truth.start[b]] for b, match in enumerate(matches)]).sum(0)
    if config.mode == "many_to_one":  # one of a prompt's tokens counts
        pairs = pairs / layer.predicted_iou.shape[2]
    last = pairs.clone()
    for queries in unmatched:
        last[IOU] += queries.sum()
    counts = reduce_mean(torch.stack((pairs, last)))
    return counts.where(counts > 0, torch.ones_like(counts))


def _uncertain_points(pairs: MatchedPairs, config: LossConfig, random_points: Sequence[RandomPoints]) -> Tensor:
    """(L * n, points, 2), as the logits: the most uncertain of a larger draw, then a uniform rest."""
    certain, more = int(config.importance * config.points), int(config.oversample * config.points)
    with torch.no_grad():
        drawn, rest = [], []
        for of_image, match in zip(random_points, pairs.matches, strict=True):
            for _ in pairs.layers:
                drawn.append(of_image(len(match.query), more))
                rest.append(of_image(len(match.query), config.points - certain))
        candidates = torch.cat(drawn)
        doubt = -sample_bilinear(pairs.logits[:, None], candidates).squeeze(1).abs()
        chosen = doubt.topk(certain, dim=1).indices
        return torch.cat((candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), torch.cat(rest)), 1)


def _layer_losses(
    pairs: MatchedPairs,
    truth: TargetMasks,
    config: LossConfig,
    random_points: Sequence[RandomPoints],
    unmatched: Sequence[Tensor],
    counts: Tensor,
) -> list[LayerLoss]:
    """Of each layer, as ordered in `pairs`.

    unmatched: of each image the unmatched queries of the last layer that learn their IoU; counts: see `_counts`.
    """
    terms = _pair_losses(pairs, truth, config, random_points)
    supervised = truth.supervised[pairs.rows]
    counted = {name: term * supervised[:, SUPERVISED_BY[name]] for name, term in terms.items()}
    if config.mode == "many_to_one":
        tokens = pairs.layers[0].predicted_iou.shape[2]
        distance = (terms["mask_bce"] + terms["mask_dice"]).detach()
        nearest = distance.unflatten(1, (-1, tokens)).argmin(2, keepdim=True)
        counted = {n: term.unflatten(1, (-1, tokens)).gather(2, nearest).squeeze(2) for n, term in counted.items()}
    sums = {name: term.sum(1) for name, term in counted.items()}
    if unmatched:
        extra = _unmatched_iou_errors(pairs, truth, unmatched).sum()
        sums["iou"] = torch.cat((sums["iou"][:1] + extra, sums["iou"][1:]))
    of_layers = torch.stack((counts[1], *[counts[0]] * (len(pairs.layers) - 1)))
    means = {name: (total / of_layers[:, SUPERVISED_BY[name]]).unbind() for name, total in sums.items()}
    return [LayerLoss(**{name: mean[layer] for name, mean in means.items()}) for layer in range(len(pairs.layers))]


def _pair_losses(
    pairs: MatchedPairs, truth: TargetMasks, config: LossConfig, random_points: Sequence[RandomPoints]
) -> dict[str, Tensor]:
    """Name of a term of LayerLoss -> its values for n pairs of L layers (L, n)."""
    points = _uncertain_points(pairs, config, random_points)
    logits = sample_bilinear(pairs.logits[:, None], points).squeeze(1)
    target = truth.at(pairs.rows_of_logits, points)
    dice = dice_loss(logits.sigmoid(), target)[pairs.places]
    boxes = truth.boxes[pairs.rows]
    if config.iou_target == "soft_dice":
        outlined = truth.supervised[pairs.rows, MASKS] > 0
        iou_target = (1 - dice).where(outlined, 1 - dice.detach())
    else:
        iou_target = _iou(pairs.logits.detach() > 0, truth.small[pairs.rows_of_logits])[pairs.places]
    return {
        "mask_bce": F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)[pairs.places],
        "mask_dice": dice,
        "box_l1": (pairs.boxes - boxes).abs().sum(2),
        "box_giou": 1 - generalised_iou(pairs.boxes, boxes),
        "iou": (pairs.ious - iou_target).square(),
    }


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """bool (n, h, w) twice -> (n,); two empty masks give 0."""
    inner = (first & second).sum((1, 2))
    return inner / (first | second).sum((1, 2)).clamp(min=1)


def _unmatched_iou_errors(pairs: MatchedPairs, truth: TargetMasks, unmatched: Sequence[Tensor]) -> Tensor:
    """Squared errors of the last layer's IoU of `unmatched` queries against their best mask, over the whole batch."""
    errors = []
    for b, queries in enumerate(unmatched):
        if truth.targets.partial[b]:
            continue
        ious = pairs.layers[0].predicted_iou[b].float()
        with torch.no_grad():
            logits = pair_logits(pairs.layers[0].mask_embedding[b].flatten(0, 1), pairs.mask_features[b])
            start = truth.start[b]
            masks = truth.small[start : start + len(truth.targets.masks[b])]
            table = mask_ious(logits > 0, masks).unflatten(0, ious.shape)
            rows = truth.targets.of_prompt[b]
            of_prompt = table.gather(2, rows.clamp(min=0)[:, None].expand(-1, ious.shape[1], -1))
            best = of_prompt.masked_fill((rows == NO_TARGET)[:, None], 0).amax(2)
        errors.append((ious - best).square().flatten()[queries])
    return torch.cat(errors) if errors else pairs.ious.new_zeros(0)
