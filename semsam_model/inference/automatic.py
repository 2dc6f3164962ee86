"""Masks of a whole photo by a grid of clicks: six levels of each click, the sure and distinct ones kept.

The published automatic generator (SAM's, adapted: predicted IoU, stability, non-maximum suppression) with four
differences, each of which `PUBLISHED` turns off:

    filters read the small map of logits, before anything is resized to the photo
    suppression compares masks, not boxes, so that a part that fills its whole's box survives
    a smaller IoU makes masks of one level duplicates than masks of different levels
    regions of the photo's hierarchy, where it has one, come after the masks that leave them uncovered

Clicks do not see each other, so the batch size changes memory and time alone. Of each mask that passes the filters only
bits and scores are kept; the few that become candidates are decoded a second time at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from semsam_model.errors import ConfigError
from semsam_model.inference.candidates import CandidateOptions, Proposal, cleaned
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import promptless_candidates
from semsam_model.inference.proposals import click_grid
from semsam_model.inference.semantic_sam import decode_prompts, named_regions
from semsam_model.inference.uncovered_regions import uncovered_regions
from semsam_model.masks.geometry import greedy_nms, tight_bbox
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import LEVELS, Candidate, Click, LabelSet

Decode = Callable[[Sequence[Click]], Iterable[Sequence[Proposal]]]  #: the proposals for each click
Add = Callable[[Sequence[Proposal]], list[Proposal]]  #: what comes after the masks that were kept

_COMPARED = 256  #: masks compared with those kept at a time


@dataclass(frozen=True)
class AutomaticOptions:
    """How many clicks, and which of their masks are kept."""

    grid: int = 32  #: clicks along each side of the photo, at the centres of equal cells
    levels: tuple[int, ...] = LEVELS  #: 1 = whole ... 6 = smallest part
    least_iou: float = 0.4  #: predicted IoU must be above it (published: 0.88)
    least_stability: float = 0.75  #: share of cells above -1 that are above +1 (published: 0.92)
    duplicates: Literal["masks", "boxes"] = "masks"  #: what is compared (published: boxes, over all levels)
    same_level_iou: float = 0.7  #: of two masks of one level with a larger IoU the better one is kept
    same_iou: float = 0.85  #: of two masks of different levels; published: 0.7 over boxes, whatever the level
    most: int = 150  #: masks kept, the best
    min_region: float = 100.0  #: specks and pinholes below this many model-frame pixels go (published: 10)
    stability_of: Literal["cells", "photo"] = "cells"  #: where stability is measured (published: on the photo)
    batch: int = 64  #: clicks decoded together

    def __post_init__(self) -> None:
        if self.grid < 1 or self.batch < 1 or self.most < 1:
            raise ConfigError(f"grid {self.grid}, batch {self.batch}, most {self.most}: expected at least 1 each")
        if not self.levels or not set(self.levels) <= set(LEVELS):
            raise ConfigError(f"levels {self.levels}: expected some of {LEVELS[0]} to {LEVELS[-1]}")


PUBLISHED = AutomaticOptions(
    least_iou=0.88,
    least_stability=0.92,
    duplicates="boxes",
    same_level_iou=0.7,
    same_iou=0.7,
    most=10_000,
    min_region=10.0,
    stability_of="photo",
)


@dataclass(frozen=True, eq=False)
class GridMask:
    """One mask and the click of the grid that gave it; None for a region of the photo's hierarchy."""

    candidate: Candidate
    click: Click | None


@dataclass(frozen=True, eq=False)
class _Passed:
    """A mask that passed the filters, without its logits."""

    click: int
    token: int
    level: int
    score: float
    stability: float
    bits: np.ndarray  #: packed cells
    box: tuple[int, int, int, int]  #: x0, y0, x1, y1 with the last pixel's own coordinate; cells, or photo pixels


def automatic_masks(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    options: AutomaticOptions | None = None,
    labels: LabelSet | None = None,
    name_threshold: float = 0.0,
) -> list[GridMask]:
    """At most `options.most` masks, best first by predicted IoU (times stability, unless boxes are compared).

    Candidates are ranked, cleaned, their parents linked; with labels (and a model with names) they have `names`, and
    `label` where the best reaches `name_threshold`. Raises ConfigError as `label_scores`.
    """
    options = options or AutomaticOptions()

    def decode(clicks: Sequence[Click]) -> Iterable[Sequence[Proposal]]:
        return decode_prompts(model, embedding, clicks, batch=options.batch)

    def add(kept: Sequence[Proposal]) -> list[Proposal]:
        """Persistent regions of the photo's hierarchy, all of them scored below the network's masks."""
        if embedding.hierarchy is None or options.duplicates == "boxes":
            return []
        regions = uncovered_regions(embedding.hierarchy, kept, options.most - len(kept))
        least = min((p.score for p in kept if p.score is not None), default=1.0)
        scored = [replace(p, score=least * p.predicted_iou) for p in regions]
        return named_regions(model, embedding, scored, kept) if kept else scored

    masks = grid_masks(decode, embedding.frame, options, add)
    if labels is None:
        return masks
    named = name_candidates([mask.candidate for mask in masks], labels, name_threshold)
    return [GridMask(candidate, mask.click) for candidate, mask in zip(named, masks, strict=True)]


def grid_masks(decode: Decode, frame: Frame, options: AutomaticOptions, add: Add | None = None) -> list[GridMask]:
    """`automatic_masks` without names, from what `decode` says of the clicks of the grid."""
    clicks = click_grid(frame, options.grid)
    passed = sorted(_pass(decode(clicks), frame, options), key=lambda k: (-k.score, k.click, k.token))
    cells = frame.logits[0] * frame.logits[1]
    distinct = _by_masks(passed, options, cells) if options.duplicates == "masks" else _by_boxes(passed, options)
    return _decoded(decode, frame, clicks, distinct[: options.most], options, add)


def _pass(decoded: Iterable[Sequence[Proposal]], frame: Frame, options: AutomaticOptions) -> Iterator[_Passed]:
    """What of the proposals for each click is sure and stable enough."""
    for number, proposals in enumerate(decoded):
        for p in proposals:
            if p.level not in options.levels or not p.predicted_iou > options.least_iou:
                continue
            stability, box = _on_photo(p, frame) if options.stability_of == "photo" else (p.stability, _box(p.cells))
            if box is None or not stability >= options.least_stability:
                continue
            score = p.predicted_iou * (stability if options.duplicates == "masks" else 1.0)
            yield _Passed(number, p.token, p.level, score, stability, np.packbits(p.cells), box)


def _box(cells: np.ndarray) -> tuple[int, int, int, int] | None:
    x0, y0, x1, y1 = tight_bbox(cells)
    return (x0, y0, x1 - 1, y1 - 1) if x1 else None


def _on_photo(proposal: Proposal, frame: Frame) -> tuple[float, tuple[int, int, int, int] | None]:
    """Stability and box measured on the mask at the photo's size, as published."""
    sure, unsure = (np.count_nonzero(frame.mask(proposal.logits, at)[0]) for at in (1.0, -1.0))
    crop, (x0, y0, x1, y1) = frame.mask(proposal.logits)
    return sure / max(unsure, 1), (x0, y0, x1 - 1, y1 - 1) if crop.size else None


def _by_masks(passed: Sequence[_Passed], options: AutomaticOptions, cells: int) -> list[_Passed]:
    """Greedy suppression of masks, which compares a stretch of them at a time."""
    kept: list[_Passed] = []
    masks: np.ndarray = np.zeros((0, cells), np.float32)
    for first in range(0, len(passed), _COMPARED):
        part = passed[first : first + _COMPARED]
        rows = np.unpackbits(np.stack([k.bits for k in part]), axis=1, count=cells).astype(np.float32)
        # compared with those kept before, then with each other
        repeats = np.asarray(_repeats(rows, part, masks, kept, options).any(1))
        among = _repeats(rows, part, rows, part, options)
        mine = greedy_nms(np.flatnonzero(~repeats), len(part), among.__getitem__)
        kept += [part[row] for row in mine]
        masks = np.concatenate((masks, rows[mine]))
        if len(kept) >= options.most:
            break
    return kept


def _repeats(
    rows: np.ndarray,
    of_rows: Sequence[_Passed],
    others: np.ndarray,
    of_others: Sequence[_Passed],
    options: AutomaticOptions,
) -> np.ndarray:
    """bool (n, m): whether a mask repeats another."""
    both = rows @ others.T
    iou = both / np.maximum(rows.sum(1)[:, None] + others.sum(1) - both, 1)
    same_level = np.array([k.level for k in of_rows])[:, None] == np.array([k.level for k in of_others], int)
    return iou > np.where(same_level, options.same_level_iou, options.same_iou)


def _by_boxes(passed: Sequence[_Passed], options: AutomaticOptions) -> list[_Passed]:
    """Greedy over boxes, whatever the level (SAM's generator)."""
    boxes = np.array([k.box for k in passed], np.float64).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def repeats(row: int) -> np.ndarray:
        low, high = np.maximum(boxes[row, :2], boxes[:, :2]), np.minimum(boxes[row, 2:], boxes[:, 2:])
        both = (high - low).clip(min=0).prod(1)
        return both > options.same_iou * np.maximum(areas[row] + areas - both, 1e-9)

    return [passed[row] for row in greedy_nms(range(len(passed)), len(passed), repeats)]


def _decoded(
    decode: Decode,
    frame: Frame,
    clicks: Sequence[Click],
    chosen: Sequence[_Passed],
    options: AutomaticOptions,
    add: Add | None,
) -> list[GridMask]:
    """The chosen masks in photo pixels."""
    again = sorted({k.click for k in chosen})
    wanted = {(k.click, k.token) for k in chosen}
    decoded = zip(again, decode([clicks[i] for i in again]), strict=True)
    found = {(i, p.token): p for i, proposals in decoded for p in proposals if (i, p.token) in wanted}
    proposals: list[Proposal] = []
    kept: list[Click | None] = []
    for k in chosen:
        proposal = cleaned(found[k.click, k.token], options.min_region / LOGIT_STRIDE**2)
        # a mask may be so small that no photo pixel's centre lies in it
        if frame.mask(proposal.logits)[0].size:
            proposals.append(replace(proposal, stability=k.stability, score=float(np.clip(k.score, 0, 1))))
            kept.append(clicks[k.click])
    for region in add(proposals) if add is not None else ():
        if frame.mask(region.logits)[0].size:
            proposals.append(region)
            kept.append(None)
    candidates = promptless_candidates(proposals, frame, CandidateOptions(min_region=options.min_region))
    return [GridMask(candidate, click) for candidate, click in zip(candidates, kept, strict=True)]
