"""Regions as the store streams them -> tasks with their annotations: what export and fine-tuning read.

What the export holds out fine-tuning holds out too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from backend.records import StoredRegion
from semsam_model.data.split import Split, split_of


@dataclass(frozen=True)
class LabelledTask:
    """A task with all that was submitted for it. Every region's photo is known."""

    id: int
    annotations: tuple[tuple[StoredRegion, ...], ...]  #: none of them empty; none at all where nothing was on the photo
    sha256: str
    image_url: str | None
    size: tuple[int, int]  #: (H, W) of the photo

    @classmethod
    def of(cls, annotations: tuple[tuple[StoredRegion, ...], ...]) -> LabelledTask:
        """A task with at least one annotation that has regions."""
        last = _latest(annotations)[0]
        return cls(last.key.task, annotations, last.image_sha256 or "", last.image_url, (last.height, last.width))

    @cached_property
    def latest(self) -> tuple[StoredRegion, ...]:
        """Regions of the annotation that was submitted or updated last: the one that counts where only one can."""
        return _latest(self.annotations) if self.annotations else ()

    @property
    def split(self) -> Split:
        return split_of(self.sha256)

    @property
    def name(self) -> str:
        """A name for files about this task."""
        return f"{self.sha256[:16]}_{self.id}"


def _latest(annotations: Sequence[tuple[StoredRegion, ...]]) -> tuple[StoredRegion, ...]:
    return max(annotations, key=lambda regions: (regions[0].updated_at, regions[0].key.annotation))


def by_task(regions: Iterable[StoredRegion]) -> Iterator[LabelledTask]:
    """Regions in order of their keys -> tasks; those whose photo is not known are left out."""
    known = (region for region in regions if region.image_sha256)
    for _, rows in groupby(known, key=lambda region: region.key.task):
        annotations = groupby(rows, key=lambda region: region.key.annotation)
        yield LabelledTask.of(tuple(tuple(own) for _, own in annotations))


def parents(regions: Sequence[StoredRegion]) -> list[int | None]:
    """For each region of an annotation, the index of the one that contains it; None where that one is not there."""
    places = {region.key.region: index for index, region in enumerate(regions)}
    return [None if region.parent == region.key.region else places.get(region.parent or "") for region in regions]


def categories(regions: Sequence[StoredRegion]) -> list[tuple[str, str]]:
    """(label, granularity) of each region of an annotation.

    The label is "" where there is none. A region of unknown granularity is a part where the region that contains it is
    there, else an object.
    """
    return [
        (region.labels[0] if region.labels else "", region.granularity or ("object" if parent is None else "part"))
        for region, parent in zip(regions, parents(regions), strict=True)
    ]
