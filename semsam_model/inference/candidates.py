"""Proposals of the network, and the rules by which some of them become candidates. NumPy and OpenCV; no torch.

A `Proposal` is the mask of one level token as logits at stride 4. Cleaning, agreement with clicks, combination and
suppression of duplicates work on those small maps. Only candidates are resized to the photo, and cleaned there once
more of what the cells could not show. A region where the bilinear surface is above zero always holds a cell above zero,
so a speck removed from the cells is gone from the photo.

The network may have seen the photo twice: whole, and a magnified crop of it. Each time gives a `CropPrediction` with
its own frame. Masks of several crops are compared by `intersections`, in photo pixels.

What several prompts mean (published weights know one positive click):
  1. each positive click, each box, and each box's centre is decoded alone and gives six proposals;
  2. proposals are ordered by how many clicks they agree with (positive inside, negative outside), then by the ranker's
     score; where the weights have no ranker, by fit to the boxes times predicted IoU;
  3. a proposal that ignores a click which others agree with is no candidate, unless fewer than two would be left;
  4. where no proposal agrees with every click, they are combined, level by level: the union of the positive prompts'
     masks, minus the mask that each ignored negative click selects (the best of its six that holds no positive click).
     Union is the maximum of logits, removal the minimum with the negated logits, so edges stay smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from semsam_model.masks.geometry import mask_rows, tight_bbox
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.types import LEVELS, Prompt

LARGEST = 0.8  #: side of the box, share of the frame's longer side, that the token of level 1 starts from
LEVELS_A_DOUBLING = 1.2  #: the sizes that our tokens start from span 0.8 to 0.04 of the frame in five steps


@dataclass(frozen=True)
class CandidateOptions:
    """How proposals become candidates."""

    same_iou: float = 0.85  #: two masks with a larger IoU are one candidate
    min_region: float = 100.0  #: specks and pinholes below this many model-frame pixels go (published: 100)
    part_of: float = 0.9  #: share of a mask inside a larger one that makes the larger one its parent
    most: int = 6  #: candidates
    least: int = 2  #: candidates that are kept even when they ignore a click that others agree with
    #: Share of the photo's longer side: where a proposal is smaller, a model with `zoom` predicts a magnified crop too.
    magnify_below: float = 0.6


@dataclass(frozen=True, eq=False)
class Proposal:
    """The mask of one level token. A cell is a logit at stride 4 of the unpadded frame of its crop."""

    logits: np.ndarray  #: float32 (h, w)
    token: int
    level: int  #: that the token stands for in its crop: 1 = whole ... 6 = smallest part
    predicted_iou: float
    stability: float
    score: float | None = None  #: 0..1, expected IoU; None: predicted IoU counts
    name_embedding: np.ndarray | None = None  #: (2, E), see Candidate
    names: tuple[tuple[str, float], ...] = ()  #: see Candidate
    label: str | None = None
    region: np.ndarray | None = None  #: (F,), see Candidate
    #: Of a node of the photo's hierarchy of regions, see `RegionHierarchy.persistence`; None: the network proposed it.
    persistence: float | None = None
    border: float = 0.0  #: mean strength of the borders of regions along the outline, 0..1; 0 where there are none

    @property
    def cells(self) -> np.ndarray:
        return self.logits > 0

    @classmethod
    def of_mask(cls, frame: Frame, logits: np.ndarray, token: int, quality: float) -> Proposal:
        """Of an engine without levels: the size of the mask gives one. token: 0, 1, ... in one answer."""
        x0, y0, x1, y1 = tight_bbox(logits > 0)
        height, width = (s / r * LOGIT_STRIDE for s, r in zip(frame.shown, frame.resized, strict=True))
        level = level_of_span(max((x1 - x0) * width, (y1 - y0) * height) / max(frame.shown))
        return cls(logits, token, level, predicted_iou=quality, stability=stability(logits))


def level_of_span(span: float) -> int:
    """span: longer side of a mask's bounding box, share of the frame's longer side -> 1 = whole ... 6 = smallest."""
    if span <= 0:
        return LEVELS[-1]
    return min(max(1 + round(LEVELS_A_DOUBLING * float(np.log2(LARGEST / span))), LEVELS[0]), LEVELS[-1])


def stability(logits: np.ndarray) -> float:
    """Share of cells above -1 that are also above +1 (SAM's stability score, offset 1); 0 for an empty mask."""
    loose = int(np.count_nonzero(logits > -1))
    return int(np.count_nonzero(logits > 1)) / loose if loose else 0.0


def clean(logits: np.ndarray, min_cells: float) -> np.ndarray:
    """Remove specks and fill pinholes smaller than min_cells cells; the largest region always stays.

    Edge neighbours are joined, corner neighbours are not (a bilinear surface need not be above zero between them).
    """
    out = logits
    for sign in (-1.0, 1.0):  # pinholes first, as published, then specks
        region = (out * sign > 0).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        small = areas < min_cells
        if sign > 0 and small.all() and count > 1:
            small[int(np.argmax(areas))] = False
        if small.any():
            flip = np.concatenate(([False], small))[labels]
            out = np.where(flip, -out, out)
    return out


def obeyed(cells: np.ndarray, positives: Sequence[tuple[int, int]], negatives: Sequence[tuple[int, int]]) -> int:
    """Number of clicks, as (row, col) cells, that the mask agrees with."""
    return sum(bool(cells[at]) for at in positives) + sum(not cells[at] for at in negatives)


def box_fit(cells: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """IoU between the mask's bounding box and a box x0, y0, x1, y1, both in cells."""
    x0, y0, x1, y1 = tight_bbox(cells)
    width = min(x1, box[2]) - max(x0, box[0])
    height = min(y1, box[3]) - max(y0, box[1])
    if width <= 0 or height <= 0:
        return 0.0
    return float(width * height / ((x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - width * height))


def combine(
    positive: Sequence[Sequence[Proposal]],
    negative: Sequence[Sequence[Proposal]],
    positives: Sequence[tuple[int, int]],
    negatives: Sequence[tuple[int, int]],
) -> list[Proposal]:
    """Level by level: union of the positive prompts' masks, minus what the ignored negative clicks select.

    positive: proposals of each positive prompt, in token order. negative: proposals of each negative click.
    positives, negatives: the clicks as (row, col) cells.
    """
    combined = []
    for same_level in zip(*positive, strict=True):
        logits = np.maximum.reduce([p.logits for p in same_level])
        for at, selected in zip(negatives, negative, strict=True):
            apart = [p for p in selected if p.cells[at] and not any(p.cells[other] for other in positives)]
            if logits[at] > 0 and apart:
                logits = np.minimum(logits, -max(apart, key=lambda p: p.predicted_iou).logits)
        named = [p.name_embedding for p in same_level if p.name_embedding is not None]
        combined.append(
            Proposal(
                logits,
                same_level[0].token,
                same_level[0].level,
                min(p.predicted_iou for p in same_level),
                stability(logits),
                name_embedding=np.mean(named, 0) if named else None,
            )
        )
    return combined


def shown_in(frame: Frame, prompt: Prompt) -> Prompt:
    """Without negative clicks outside a window, which say nothing about it; boxes may reach beyond it.

    Raises PromptError for other clicks outside the frame, and for a box that does not overlap it.
    """
    shown = tuple(c for c in prompt.clicks if c.positive or frame.whole or frame.holds(c.x, c.y))
    for click in shown:
        frame.check(click)
    for box in prompt.boxes:
        frame.clip(box)
    return Prompt(shown, prompt.boxes)


@dataclass(frozen=True)
class PromptCells:
    """A prompt in logit cells of a crop: clicks as (row, col), boxes as x0, y0, x1, y1."""

    positives: tuple[tuple[int, int], ...]
    negatives: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    beyond: int = 0  #: negative clicks outside the window: every mask in it agrees with them

    @classmethod
    def of(cls, frame: Frame, prompt: Prompt) -> PromptCells:
        """Raises PromptError as `shown_in`."""
        shown, boxes = shown_in(frame, prompt), [frame.clip(box) for box in prompt.boxes]
        return cls(
            tuple(frame.cell_of(c.x, c.y) for c in shown.positives),
            tuple(frame.cell_of(c.x, c.y) for c in shown.negatives),
            tuple((*frame.in_cells(b.x0, b.y0), *frame.in_cells(b.x1, b.y1)) for b in boxes),
            beyond=len(prompt.negatives) - len(shown.negatives),
        )

    @property
    def clicks(self) -> int:
        return len(self.positives) + len(self.negatives) + self.beyond

    def obeyed(self, proposal: Proposal) -> int:
        """Number of clicks that the proposal agrees with."""
        return obeyed(proposal.cells, self.positives, self.negatives) + self.beyond

    def fit(self, proposal: Proposal) -> float:
        """Mean IoU of the proposal's bounding box with the boxes; 0 without one."""
        return float(np.mean([box_fit(proposal.cells, box) for box in self.boxes])) if self.boxes else 0.0

    def outside(self, proposal: Proposal) -> float:
        """Share of the proposal that lies outside all boxes; 0 without a box."""
        cells = proposal.cells
        area = np.count_nonzero(cells)
        if not self.boxes or not area:
            return 0.0
        beyond = cells.copy()
        for x0, y0, x1, y1 in self.boxes:
            beyond[round(y0) : round(y1), round(x0) : round(x1)] = False
        return float(np.count_nonzero(beyond) / area)


@dataclass(frozen=True, eq=False)
class CropPrediction:
    """What the network proposes for one prompt in the whole photo, or in a magnified window of it."""

    frame: Frame
    prompt: PromptCells
    proposals: tuple[Proposal, ...]  #: cleaned; six a prompt, those of the whole prompt, and the combined ones

    @property
    def cell_pixels(self) -> float:
        """Photo pixels under a cell."""
        return self.frame.photo_pixels * LOGIT_STRIDE**2

    @property
    def doublings(self) -> float:
        """How often the photo's longer side is halved to that of the window; 0 for the whole photo."""
        return float(np.log2(max(self.frame.photo) / max(self.frame.shown)))

    def level(self, proposal: Proposal) -> int:
        """1 = whole ... 6 = smallest part, by the size in the photo: in a window a token stands for a smaller one."""
        return min(LEVELS[-1], proposal.level + round(LEVELS_A_DOUBLING * self.doublings))


def intersections(crops: Sequence[CropPrediction]) -> np.ndarray:
    """float32 (n, n): photo pixels that two proposals share, over the proposals of all crops in turn. The diagonal
    holds areas.

    Two crops are compared in the finer one's cells, which hold everything that its proposals cover.
    """
    blocks = [[np.zeros((len(a.proposals), len(b.proposals)), np.float32) for b in crops] for a in crops]
    for i, a in enumerate(crops):
        for j, b in enumerate(crops):
            if a.proposals and b.proposals and (a.cell_pixels, i) <= (b.cell_pixels, j):
                ours = mask_rows([p.cells for p in a.proposals])
                theirs = ours if i == j else mask_rows([b.frame.onto(p.logits, a.frame) > 0 for p in b.proposals])
                blocks[i][j] = (ours @ theirs.T) * np.float32(a.cell_pixels)
                blocks[j][i] = blocks[i][j].T
    return np.block(blocks) if crops else np.zeros((0, 0), np.float32)


def cleaned(proposal: Proposal, min_cells: float) -> Proposal:
    """The proposal without specks and pinholes, see `clean`."""
    return replace(proposal, logits=clean(proposal.logits, min_cells))


def parents(shared: np.ndarray, sizes: Sequence[int], options: CandidateOptions) -> list[int | None]:
    """For each mask the index of the next larger one that contains it, or None.

    shared: see `intersections`, of these masks alone. sizes: areas as drawn, photo pixels, which decide what is larger.
    "Larger" leaves room for the duplicates rule: a pair more alike than same_iou never reaches this point.
    """
    found: list[int | None] = []
    for i, own in enumerate(np.diagonal(shared)):
        enough = max(options.part_of * own, np.finfo(np.float32).tiny)
        holders = [j for j in range(len(shared)) if sizes[j] > sizes[i] and shared[i, j] >= enough]
        found.append(min(holders, key=lambda j: sizes[j]) if holders else None)
    return found
