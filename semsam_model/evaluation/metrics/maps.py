"""Panoptic quality and mean IoU of label maps. NumPy; functions of maps only.

Panoptic quality: Kirillov et al. 2019, "Panoptic Segmentation", equations 1 and 2. A predicted and an annotated segment
of one label match where their IoU is over 0.5, which can be true of one pair only. Pixels without an annotation (void)
count neither in unions nor against a prediction that lies mostly in them. An annotated crowd (several things of one
label in one mask) matches nothing and is never missed; a prediction of its label that lies mostly in it or in void
is not wrong. As panopticapi counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

VOID = 0  #: segment id of pixels without a segment
UNLABELLED = -1  #: entry of a label map where nothing is annotated or predicted


@dataclass
class PanopticCount:
    """What matched so far, for one label."""

    iou: float = 0.0  #: sum over matches
    matched: int = 0
    predicted_alone: int = 0
    annotated_alone: int = 0

    @property
    def seen(self) -> bool:
        return bool(self.matched + self.predicted_alone + self.annotated_alone)


@dataclass
class PanopticQuality:
    """Adds up photos; `percent` gives PQ, SQ and RQ as means over the labels that occurred."""

    counts: dict[int, PanopticCount] = field(default_factory=dict)

    def add(
        self,
        predicted: np.ndarray,
        predicted_labels: Mapping[int, int],
        wanted: np.ndarray,
        labels: Mapping[int, int],
        crowds: Collection[int] = (),
    ) -> None:
        """Maps int (H, W) of segment ids, VOID where there is none; id -> label for every id of each map.

        crowds: ids of `wanted` that are crowds.
        """
        codes, areas = np.unique(wanted.astype(np.int64) << 32 | predicted.astype(np.int64), return_counts=True)
        pairs = {(int(code >> 32), int(code & 0xFFFFFFFF)): int(area) for code, area in zip(codes, areas, strict=True)}
        size_of_wanted, size_of_predicted = _sizes(pairs, 0), _sizes(pairs, 1)
        matched_wanted, matched_predicted = set(), set()
        for (one, other), both in pairs.items():
            if VOID in (one, other) or one in crowds or labels[one] != predicted_labels[other]:
                continue
            union = size_of_wanted[one] + size_of_predicted[other] - both - pairs.get((VOID, other), 0)
            if both > 0.5 * union:
                count = self._of(labels[one])
                count.matched += 1
                count.iou += both / union
                matched_wanted.add(one)
                matched_predicted.add(other)
        for one in size_of_wanted:
            if one != VOID and one not in matched_wanted and one not in crowds:
                self._of(labels[one]).annotated_alone += 1
        for other, size in size_of_predicted.items():
            if other == VOID or other in matched_predicted:
                continue
            excused = [VOID, *(one for one in crowds if labels[one] == predicted_labels[other])]
            if sum(pairs.get((one, other), 0) for one in excused) <= 0.5 * size:
                self._of(predicted_labels[other]).predicted_alone += 1

    def percent(self, only: Collection[int] | None = None) -> dict[str, float | int | None]:
        """PQ, SQ, RQ in percent over the labels that occurred (those of `only`), None without any; their number."""
        chosen = [c for label, c in self.counts.items() if c.seen and (only is None or label in only)]
        if not chosen:
            return {"pq": None, "sq": None, "rq": None, "labels": 0}
        sq = [c.iou / c.matched if c.matched else 0.0 for c in chosen]
        rq = [c.matched / (c.matched + 0.5 * (c.predicted_alone + c.annotated_alone)) for c in chosen]
        pq = [a * b for a, b in zip(sq, rq, strict=True)]
        means = {"pq": pq, "sq": sq, "rq": rq}
        return {
            **{name: round(100 * float(np.mean(values)), 2) for name, values in means.items()},
            "labels": len(chosen),
        }

    def _of(self, label: int) -> PanopticCount:
        return self.counts.setdefault(label, PanopticCount())


def _sizes(pairs: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for pair, area in pairs.items():
        sizes[pair[side]] = sizes.get(pair[side], 0) + area
    return sizes


class MeanIou:
    """Adds up label maps of `labels` labels; pixels without an annotation are left out."""

    def __init__(self, labels: int) -> None:
        self.confusion = np.zeros(
            (labels, labels + 1), np.int64
        )  #: annotated x predicted; last column: nothing predicted

    def add(self, predicted: np.ndarray, wanted: np.ndarray) -> None:
        """int (H, W) twice, label indices or UNLABELLED."""
        labels = len(self.confusion)
        known = wanted != UNLABELLED
        labelled = np.where(predicted[known] == UNLABELLED, labels, predicted[known])
        codes = wanted[known].astype(np.int64) * (labels + 1) + labelled
        self.confusion += np.bincount(codes, minlength=labels * (labels + 1)).reshape(labels, labels + 1)

    def by_label(self) -> np.ndarray:
        """IoU of each label, 0..1; NaN for a label that was neither annotated nor predicted."""
        square = self.confusion[:, :-1]
        inner = np.diagonal(square).astype(float)
        union = self.confusion.sum(1) + square.sum(0) - inner
        return np.divide(inner, union, out=np.full(len(inner), np.nan), where=union > 0)

    def percent(self, seen: Collection[int] | None = None) -> dict[str, float | None]:
        """`miou` over annotated labels; with `seen` also of seen and unseen labels and their harmonic mean (OV-PARTS).

        seen: label indices that training had. None where no label is annotated, is seen, or is unseen.
        """
        iou, annotated = self.by_label(), self.confusion.sum(1) > 0
        figures = {"miou": _mean(iou[annotated])}
        if seen is not None:
            had = np.isin(np.arange(len(iou)), list(seen))
            one, other = _mean(iou[annotated & had]), _mean(iou[annotated & ~had])
            figures |= {"seen": one, "unseen": other, "harmonic": _harmonic(one, other)}
        return {name: None if value is None else round(100 * value, 2) for name, value in figures.items()}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _harmonic(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 2 * one * other / (one + other) if one + other > 0 else 0.0
