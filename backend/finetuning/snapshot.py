"""What a fine-tuning job learns from: a project's corrections as they stood when it began, in one file of its folder.

A job that is resumed reads the same file, whatever the store has become meanwhile. Photos stay in
the archive. Split by photo as the export does, so that what one holds out the other does too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from backend.corrections.photos import PhotoArchive
from backend.corrections.tasks import LabelledTask, Split, by_task, categories, parents, split_of
from backend.records import StoredRegion
from semsam_model.data.samples import Annotation, CocoMask, PhotoFile, Region, Sample
from semsam_model.files import atomic_write

log = logging.getLogger(__name__)

SNAPSHOT = "snapshot.json"
#: Weight of a region that was accepted as suggested, beside 1 of one drawn by hand: the model knows it already.
KNOWN = 0.25


@dataclass(frozen=True)
class Snapshot:
    """Photos with their newest annotation, as plain JSON values."""

    photos: tuple[Mapping[str, Any], ...]

    @cached_property
    def digest(self) -> str:
        """The sha256 of the photos' JSON."""
        return hashlib.sha256(json.dumps(self.photos, sort_keys=True).encode()).hexdigest()

    @property
    def regions(self) -> int:
        return sum(len(photo["regions"]) for photo in self.photos)

    def samples(self, archive: PhotoArchive, split: Split, source: str) -> list[Sample]:
        """The photos of one side of the split; those that are not in the archive are left out."""
        mine = [photo for photo in self.photos if split_of(photo["sha256"]) == split]
        found = [
            _sample(photo, archive.path(photo["sha256"]), source) for photo in mine if archive.has(photo["sha256"])
        ]
        if len(found) < len(mine):
            missing = len(mine) - len(found)
            log.warning("%d of %d photos are not kept yet and left out; see `semsam sync`", missing, len(mine))
        return found


def take(regions: Iterable[StoredRegion]) -> Snapshot:
    """Regions in order of their keys -> the newest annotation of each photo; those without a photo are left out."""
    newest: dict[str, LabelledTask] = {}
    for task in by_task(regions):
        other = newest.get(task.sha256)
        if other is None or task.latest[0].updated_at >= other.latest[0].updated_at:
            newest[task.sha256] = task
    return Snapshot(tuple(_photo(newest[sha256]) for sha256 in sorted(newest)))


def write(snapshot: Snapshot, folder: Path) -> None:
    """Keep it as FOLDER/snapshot.json, in one move."""
    with atomic_write(folder / SNAPSHOT) as temporary:
        temporary.write_text(json.dumps(snapshot.photos), encoding="utf-8")


def read(folder: Path) -> Snapshot | None:
    """What `write` kept; None where there is nothing."""
    path = folder / SNAPSHOT
    return Snapshot(tuple(json.loads(path.read_text(encoding="utf-8")))) if path.is_file() else None


def _photo(task: LabelledTask) -> dict[str, Any]:
    height, width = task.size
    regions = [
        {
            "mask": dict(region.mask),
            "granularity": granularity,
            "name": label or None,
            "parent": parent,
            "weight": weight(region),
        }
        for region, parent, (label, granularity) in zip(
            task.latest, parents(task.latest), categories(task.latest), strict=True
        )
    ]
    return {"sha256": task.sha256, "width": width, "height": height, "regions": regions}


def weight(region: StoredRegion) -> float:
    """KNOWN..1: how wrong the model was about it. 1 for what was drawn by hand."""
    if region.outcome == "drawn":
        return 1.0
    iou = region.iou_with_offer
    if iou is None:  # the suggestion is lost
        iou = 0.5 if region.outcome == "corrected" else 1.0
    return round(KNOWN + (1 - KNOWN) * (1 - min(max(iou, 0.0), 1.0)), 4)


def _sample(photo: Mapping[str, Any], path: Path, source: str) -> Sample:
    regions = tuple(
        Region(CocoMask(r["mask"]), r["granularity"], r["name"], r["parent"], weight=r["weight"])
        for r in photo["regions"]
    )
    return Sample(PhotoFile(path), source, Annotation(photo["width"], photo["height"], regions))
