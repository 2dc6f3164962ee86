"""One photo with its annotated masks and what was predicted on it, as the tasks of `photos` count it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from semsam_model.data.samples import Region, Sample
from semsam_model.evaluation.labels import LabelList
from semsam_model.evaluation.metrics.maps import UNLABELLED
from semsam_model.inference.object_queries import ObjectQueries
from semsam_model.network.frame import Frame
from semsam_model.types import Candidate


class LabelledMask(NamedTuple):
    """An annotated mask that has a label."""

    mask: np.ndarray  #: bool (H, W)
    label: int
    region: Region


@dataclass(frozen=True, eq=False)
class SegmentedPhoto:
    """One photo with its annotated masks and what was predicted on it."""

    sample: Sample
    masks: Sequence[np.ndarray]  #: bool (H, W), of every region
    frame: Frame
    queries: ObjectQueries
    labels: LabelList
    grid: Sequence[Candidate] | None = None  #: masks by a grid of clicks, in place of `queries`

    @property
    def size(self) -> tuple[int, int]:
        return self.sample.height, self.sample.width

    def labelled(self, granularities: Collection[str]) -> list[LabelledMask]:
        """Annotated masks of these granularities that have a label."""
        found = []
        for region, mask in zip(self.sample.regions, self.masks, strict=True):
            label = self.labels.index_of(region.label)
            if region.granularity in granularities and label is not None and mask.any():
                found.append(LabelledMask(mask, label, region))
        return found

    def label_map(self, granularities: Collection[str]) -> np.ndarray:
        """int (H, W) of label indices, small masks over large ones, UNLABELLED elsewhere."""
        labels = np.full(self.size, UNLABELLED)
        for mask, label, _ in sorted(self.labelled(granularities), key=large_first):
            labels[mask] = label
        return labels


def large_first(named: LabelledMask) -> int:
    """Sort key, large masks first."""
    return -np.count_nonzero(named.mask)
