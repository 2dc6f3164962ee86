"""Fits the cost of merging regions to the borders of annotated masks; the network stays as it is.

Trees are built on annotated photos, and every pair of touching regions that could have been merged on the way is a
lesson, from superpixels to halves of the photo:

    a border      some mask holds the one region and not the other
    no border     no mask tells them apart, and one holds both; in a photo that is annotated completely, or none

Other pairs teach nothing: beside the masks of a partly annotated photo anything may be. The first trees are built by
the plain cost, the second by what was learned from the first. All sources weigh the same, borders and others too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample
from semsam_model.errors import DataError, ImageError, Stopped
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.merge_cost import AREA, FEATURES, MEASURED, PLAIN, LearnedCost, PlainCost, measured
from semsam_model.network.model import SemanticSAM
from semsam_model.network.region_hierarchy import CELL, merge, region_pixels, region_sums
from semsam_model.network.superpixels import lab_colours, superpixels, touching
from semsam_model.types import ShouldStop, never_stop

PAIRS, A_ROUND = 600, 200  #: of a photo at most, of a round of merging
APART, TOGETHER = 0.75, 0.15  #: difference of the shares inside a mask that makes a border, that makes none
INSIDE = 0.75  #: share of a region inside a mask that makes it one of the mask's
PRINCIPAL, COMPARED, HIDDEN = 32, 24, 32  #: features compared by each half of the cost; units of the hidden layer
STEPS, BATCH, RATE, DECAY = 1500, 4096, 0.005, 1e-4


@dataclass(frozen=True, eq=False)
class BorderLessons:
    """Pairs of regions of one photo."""

    source: str
    apart: np.ndarray  #: float16 (n, C), difference of the mean mask features
    measured: np.ndarray  #: float32 (n, MEASURED)
    border: np.ndarray  #: bool (n,)


def fit_borders(
    model: SemanticSAM,
    samples: Sequence[Sample],
    *,
    per_source: int | None = 12,
    seed: int = 0,
    on_photo: Callable[[], None] = lambda: None,
    should_stop: ShouldStop = never_stop,
) -> LearnedCost:
    """A cost of merging for this model, the same for the same seed. on_photo, should_stop: called after each photo.

    per_source: photos of each source, evenly spaced. Raises DataError when no mask has a border, Stopped.
    """
    photos: list[_Photo] = []
    for sample in evenly(samples, per_source):
        with contextlib.suppress(DataError, ImageError):
            photos.append(_encoded(model, sample))
        on_photo()
        if should_stop():
            raise Stopped("borders: stopped before all photos were seen")
    if not photos:
        raise DataError("borders: expected at least one photo that can be read, got none")
    principal = principal_directions([photo.mask_features for photo in photos])
    lessons = [photo.lessons(PLAIN, np.random.default_rng([seed, i])) for i, photo in enumerate(photos)]
    cost = fit(lessons, principal, seed=seed)
    lessons += [photo.lessons(cost, np.random.default_rng([seed, i])) for i, photo in enumerate(photos)]
    return fit(lessons, principal, seed=seed)


@dataclass(frozen=True, eq=False)
class _Photo:
    """What trees of one annotated photo are built from, and what they are compared with. float16, to keep many."""

    source: str
    partial: bool
    pixels: np.ndarray  #: of `region_pixels`
    mask_features: np.ndarray  #: float16 (C, h, w)
    masks: np.ndarray  #: packed bits of bool (M, 3 h, 3 w)

    def lessons(self, cost: PlainCost | LearnedCost, rng: np.random.Generator) -> BorderLessons:
        size = self.pixels.shape[:2]
        masks = np.unpackbits(self.masks, axis=1, count=size[0] * size[1]).reshape(-1, *size).astype(bool)
        features = self.mask_features.astype(np.float32)
        return border_lessons(self.source, self.pixels, features, masks, self.partial, cost, rng)


def _encoded(model: SemanticSAM, sample: Sample) -> _Photo:
    rgb = sample.image()
    frame = Frame.of((rgb.shape[0], rgb.shape[1]), model.config)
    resized = frame.resize(rgb)
    pixels = region_pixels(resized)
    features = model.encode_resized(frame, resized).features.mask_features[0]
    height, width = frame.logits
    masks = [_on_regions(frame, mask) for mask in sample.masks()]
    return _Photo(
        sample.source,
        sample.partial,
        pixels,
        features[:, :height, :width].half().cpu().numpy(),
        np.packbits(np.stack(masks).reshape(len(masks), -1), axis=1),
    )


def _on_regions(frame: Frame, mask: np.ndarray) -> np.ndarray:
    """bool (H, W) of the photo -> bool (3 h, 3 w), region pixels that the mask covers most of."""
    share = cv2.resize(mask.astype(np.float32), frame.resized[::-1], interpolation=cv2.INTER_AREA)
    beyond = [cells * LOGIT_STRIDE - side for cells, side in zip(frame.logits, frame.resized, strict=True)]
    share = np.pad(share, ((0, beyond[0]), (0, beyond[1])))
    size = frame.logits[1] * CELL, frame.logits[0] * CELL
    return np.asarray(cv2.resize(share, size, interpolation=cv2.INTER_AREA) > 0.5)


def border_lessons(
    source: str,
    pixels: np.ndarray,
    mask_features: np.ndarray,
    masks: np.ndarray,
    partial: bool,
    cost: PlainCost | LearnedCost,
    rng: np.random.Generator,
) -> BorderLessons:
    """What one photo teaches. pixels: of `region_pixels`. mask_features: (C, h, w). masks: bool (M, 3 h, 3 w)."""
    lab = lab_colours(pixels)
    pieces = superpixels(lab)
    borders = touching(pieces, lab)
    sums = region_sums(pieces, lab, mask_features)
    covered = [np.bincount(pieces[mask], minlength=len(sums)) for mask in masks]
    channels, compared = len(mask_features), cost.features_of(mask_features)
    own = region_sums(pieces, lab, compared)
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def of_first_columns(one: np.ndarray, other: np.ndarray, values: np.ndarray) -> np.ndarray:
        return cost(one[:, : own.shape[1]], other[:, : own.shape[1]], values)

    def keep(nodes: np.ndarray, pairs: np.ndarray, values: np.ndarray) -> None:
        """The other columns are the lessons."""
        in_order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # a sample does not depend on how the merging lists its pairs
        some = in_order[rng.permutation(len(pairs))[:A_ROUND]]
        one, other = (nodes[side, own.shape[1] :] for side in pairs[some].T)
        seen.append((one, other, values[some]))

    merge(np.concatenate([own, sums, np.stack(covered, 1)], 1), borders, of_first_columns, keep)
    one, other, values = (np.concatenate(part) for part in zip(*seen, strict=True))
    inside = one[:, 4 + channels :] / one[:, [AREA]], other[:, 4 + channels :] / other[:, [AREA]]
    difference = np.abs(inside[0] - inside[1]).max(1)
    border = difference >= APART
    none = (difference <= TOGETHER) & (((inside[0] >= INSIDE) & (inside[1] >= INSIDE)).any(1) | (not partial))
    chosen = np.concatenate([rng.permutation(np.flatnonzero(kind))[: PAIRS // 2] for kind in (border, none)])
    one, other, values = one[chosen, : 4 + channels], other[chosen, : 4 + channels], values[chosen]
    apart = one[:, FEATURES] / one[:, [AREA]] - other[:, FEATURES] / other[:, [AREA]]
    return BorderLessons(
        source, apart.astype(np.float16), measured(one, other, values).astype(np.float32), border[chosen]
    )


def principal_directions(mask_features: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (C, PRINCIPAL): the directions that hold most of mask features (C, h, w), which keep their cosines."""
    rows = [features.reshape(len(features), -1).astype(np.float32) for features in mask_features]
    moments = sum((row @ row.T) / row.shape[1] for row in rows)
    directions: np.ndarray = np.linalg.eigh(moments)[1][:, ::-1][:, :PRINCIPAL]  # eigenvalues rise
    return np.ascontiguousarray(directions, np.float32)


def fit(lessons: Sequence[BorderLessons], principal: np.ndarray, *, seed: int = 0) -> LearnedCost:
    """Fit to pairs of regions. Raises DataError where no pair has a border, or every one."""
    lessons = [lesson for lesson in lessons if len(lesson.border)]
    border = torch.from_numpy(np.concatenate([lesson.border for lesson in lessons] or [np.zeros(0, bool)]))
    if not border.any() or border.all():
        raise DataError("borders: expected annotated masks with pixels beside and inside them, got none")
    apart = torch.from_numpy(np.concatenate([lesson.apart for lesson in lessons]))
    known = torch.from_numpy(np.concatenate([lesson.measured for lesson in lessons]))
    weight = _weights(lessons)
    generator = torch.Generator().manual_seed(seed)
    spread, mean, scale = apart.float().square().mean(0).sqrt() + 1e-6, known.mean(0), 1 / (known.std(0) + 1e-6)
    channels = apart.shape[1]
    projection = (torch.randn(channels, COMPARED, generator=generator) * channels**-0.5).requires_grad_()
    hidden = (torch.randn(COMPARED + MEASURED, HIDDEN, generator=generator) * 0.2).requires_grad_()
    hidden_bias = torch.zeros(HIDDEN, requires_grad=True)
    output = (torch.randn(HIDDEN, generator=generator) * HIDDEN**-0.5).requires_grad_()
    output_bias = torch.zeros((), requires_grad=True)
    network = [projection, hidden, hidden_bias, output, output_bias]
    optimizer = torch.optim.Adam(network, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.multinomial(weight, BATCH, replacement=True, generator=generator)
        seen = torch.cat([(apart[rows].float() / spread @ projection).abs(), (known[rows] - mean) * scale], 1)
        logits = torch.tanh(seen @ hidden + hidden_bias) @ output + output_bias
        loss = F.binary_cross_entropy_with_logits(logits, border[rows].float())
        optimizer.zero_grad()
        (loss + DECAY * (hidden.square().sum() + projection.square().sum())).backward()
        optimizer.step()
        schedule.step()
    scaled = hidden.detach().clone()
    scaled[COMPARED:] *= scale[:, None]
    return LearnedCost(
        principal,
        (projection.detach() / spread[:, None]).numpy(),
        scaled.numpy(),
        (hidden_bias.detach() - mean @ scaled[COMPARED:]).numpy(),
        output.detach().numpy(),
        output_bias.detach().numpy(),
    )


def _weights(lessons: Sequence[BorderLessons]) -> torch.Tensor:
    """(n,) chance of each pair to be drawn: the same in sum for each source, and in it for borders and others."""
    total: dict[tuple[str, bool], int] = {}
    for lesson in lessons:
        for kind in (True, False):
            total[lesson.source, kind] = total.get((lesson.source, kind), 0) + int((lesson.border == kind).sum())
    return torch.from_numpy(
        np.concatenate(
            [
                np.where(lesson.border, 1 / max(1, total[lesson.source, True]), 1 / max(1, total[lesson.source, False]))
                for lesson in lessons
            ]
        )
    )
