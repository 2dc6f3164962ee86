"""What a fine-tuning job learns from: a project's corrections as they stood when it began, in one file of its folder.

A job that is resumed reads the same file, whatever the store has become meanwhile. Photos stay in the archive. Split by
photo as the export does, so that what one holds out the other does too. The file is JSON lines, one a photo in order of
the digests: it is written, hashed and read a few photos at a time, so a project may have any number of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from backend.corrections.archive import PhotoArchive
from backend.corrections.labelled_photos import labelled_photos, newest_annotations
from backend.corrections.tasks import categories, parents
from backend.records import ProjectKey, StoredRegion
from backend.store.database import Store
from semsam_model.data.samples import Annotation, CocoMask, PhotoFile, Region, Sample
from semsam_model.data.split import Split, split_of
from semsam_model.files import atomic_write

log = logging.getLogger(__name__)

SNAPSHOT = "snapshot.jsonl"
#: Weight of a region that was accepted as suggested, beside 1 of one drawn by hand: the model knows it already.
KNOWN = 0.25
_KEPT = 16  #: photos of a snapshot whose annotations stay in memory when they were read


class _Line(NamedTuple):
    """Where the file has a photo."""

    sha256: str
    offset: int  #: bytes


@dataclass(frozen=True)
class Snapshot:
    """Photos with their newest annotation, in a file."""

    path: Path
    photos: tuple[_Line, ...]
    regions: int
    digest: str  #: sha256 of the file

    def samples(self, archive: PhotoArchive, split: Split, source: str) -> list[Sample]:
        """The photos of one side of the split; those that are not in the archive are left out."""
        read = lru_cache(_KEPT)(partial(_read_annotation, self.path))
        mine = [line for line in self.photos if split_of(line.sha256) == split]
        found: list[Sample] = [
            _SnapshotSample(PhotoFile(archive.path(line.sha256)), source, partial(read, line.offset))
            for line in mine
            if archive.has(line.sha256)
        ]
        if len(found) < len(mine):
            missing = len(mine) - len(found)
            log.warning("%d of %d photos are not kept yet and left out; see `semsam sync`", missing, len(mine))
        return found


class _SnapshotSample(Sample):
    """Its annotation is read from the file whenever it is asked for, and does not stay in memory."""

    @property
    def annotation(self) -> Annotation:
        assert callable(self.annotated)
        return self.annotated()


def take(store: Store, key: ProjectKey, folder: Path) -> Snapshot:
    """Keep the newest annotation of each photo of a project as FOLDER/snapshot.jsonl, in one move. Raises StoreError.

    Photos that are not known yet are left out.
    """
    with atomic_write(folder / SNAPSHOT) as temporary, temporary.open("wb") as file:
        for regions in newest_annotations(store, key, labelled_photos(store, key)):
            file.write(json.dumps(_photo(regions), sort_keys=True).encode() + b"\n")
    return _read(folder / SNAPSHOT)


def read(folder: Path) -> Snapshot | None:
    """What `take` kept; None where there is nothing."""
    path = folder / SNAPSHOT
    return _read(path) if path.is_file() else None


def _read(path: Path) -> Snapshot:
    digest, photos, regions, offset = hashlib.sha256(), list[_Line](), 0, 0
    with path.open("rb") as file:
        for line in file:
            photo = json.loads(line)
            photos.append(_Line(photo["sha256"], offset))
            regions += len(photo["regions"])
            digest.update(line)
            offset += len(line)
    return Snapshot(path, tuple(photos), regions, digest.hexdigest())


def _read_annotation(path: Path, offset: int) -> Annotation:
    with path.open("rb") as file:
        file.seek(offset)
        return _annotation(json.loads(file.readline()))


def newest_samples(
    store: Store, key: ProjectKey, photos: Sequence[str], archive: PhotoArchive, source: str
) -> list[Sample]:
    """These photos of a project, with their newest annotations, in memory. photos: digests. Raises StoreError."""
    found = map(_photo, newest_annotations(store, key, photos))
    return [Sample(PhotoFile(archive.path(photo["sha256"])), source, _annotation(photo)) for photo in found]


def _photo(regions: Sequence[StoredRegion]) -> dict[str, Any]:
    """An annotation as plain JSON values."""
    first = regions[0]
    values = [
        {
            "mask": dict(region.mask),
            "granularity": granularity,
            "name": label or None,
            "parent": parent,
            "weight": weight(region),
        }
        for region, parent, (label, granularity) in zip(regions, parents(regions), categories(regions), strict=True)
    ]
    return {"sha256": first.image_sha256, "width": first.width, "height": first.height, "regions": values}


def weight(region: StoredRegion) -> float:
    """KNOWN..1: how wrong the model was about it. 1 for what was drawn by hand."""
    if region.outcome == "drawn":
        return 1.0
    iou = region.iou_with_offer
    if iou is None:  # the suggestion is lost
        iou = 0.5 if region.outcome == "corrected" else 1.0
    return round(KNOWN + (1 - KNOWN) * (1 - min(max(iou, 0.0), 1.0)), 4)


def _annotation(photo: Mapping[str, Any]) -> Annotation:
    regions = tuple(
        Region(CocoMask(r["mask"]), r["granularity"], r["name"], r["parent"], weight=r["weight"])
        for r in photo["regions"]
    )
    return Annotation(photo["width"], photo["height"], regions)
