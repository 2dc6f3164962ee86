"""What the formats of the export share: the plan, where photos go, and what each of them says about a region.

Frame: pixels of the EXIF-oriented photo. What only we write beside a format's own fields is the same everywhere:
`granularity`, `parent_id`, `level`, `labels`, `provenance`.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from backend.corrections.archive import PhotoArchive
from backend.corrections.tasks import LabelledTask, parents
from backend.export.staging import Staging
from backend.images import FORMATS as PHOTO_FORMATS
from backend.records import StoredProject, StoredRegion
from semsam_model.files import atomic_write
from semsam_model.masks.codecs import decode_coco_rle

Format = Literal["coco", "sa1b", "labelstudio", "masks", "yolo"]
Images = Literal["copy", "reference", "none"]

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}

#: (label, granularity) -> id, from 1.
Categories = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Plan:
    """One export."""

    project: StoredProject
    categories: Categories
    photos: PhotoArchive
    target: Path  #: the folder in which everything will lie
    images: Images
    partial: bool  #: not everything visible was annotated


class Writer(ABC):
    """Writes one format: where photos, masks and lists go, and what stands in them."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        self._staging, self._plan = staging, plan

    @abstractmethod
    def write(self, task: LabelledTask) -> None:
        """Everything about one task; after a kill it comes again."""

    @abstractmethod
    def finish(self) -> None:
        """What can be written when all tasks are there."""

    def _place_photo(self, task: LabelledTask, stem: str) -> str:
        """The photo's name, from the export's folder on: `stem` and a suffix, or where it lies when referred to."""
        kept = self._plan.photos.find(task.sha256)
        if kept is None:
            self._staging.add("photos missing")
            return stem
        with kept:
            name = stem + photo_suffix(kept)
            if self._plan.images == "reference":
                return Path(os.path.relpath(self._plan.photos.path(task.sha256), self._plan.target)).as_posix()
            if self._plan.images == "copy":
                _copy(kept, self._staging.out / name, self._plan.target / name)
            return name

    def _place_photo_beside(self, task: LabelledTask, stem: str) -> str:
        """As `_place_photo`, for a format whose photos lie beside their JSON: a photo referred to is a link there."""
        kept = self._plan.photos.find(task.sha256) if self._plan.images == "reference" else None
        if kept is None:
            return self._place_photo(task, stem)
        with kept:
            name = stem + photo_suffix(kept)
        link = self._staging.out / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(self._plan.photos.path(task.sha256), (self._plan.target / name).parent))
        return name


def photo_suffix(photo: BinaryIO) -> str:
    """The ending for a kept photo, with its dot; "" where it cannot be read. It is read from its start, and again."""
    try:
        with Image.open(photo, formats=PHOTO_FORMATS) as image:
            return _SUFFIXES.get(image.format or "", f".{(image.format or '').lower()}")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""  # kept as it came, though no longer to be read
    finally:
        photo.seek(0)


def _copy(source: BinaryIO, target: Path, earlier: Path) -> None:
    """The whole file or nothing; from the export before without a second copy on the disk, where that has it."""
    if target.exists():
        return
    with atomic_write(target) as fresh:
        try:
            # a link to the archive, out of an export that refers to photos, is no copy
            if earlier.is_symlink() or earlier.stat().st_size != source.seek(0, os.SEEK_END):
                raise FileNotFoundError
            os.link(earlier, fresh)
        except OSError:
            source.seek(0)
            with fresh.open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)


def provenance(region: StoredRegion) -> dict[str, Any]:
    """Where a region comes from and what became of the suggestion; a field that is not known is left out."""
    known = {
        "annotation": region.key.annotation,
        "region": region.key.region,
        "outcome": region.outcome,
        "annotator": region.annotator,
        "updated_at": region.updated_at.isoformat(),
        "ground_truth": region.ground_truth or None,
        "model_version": region.model_version,
        "rank": region.rank,
        "score": region.score,
        "iou_with_offer": region.iou_with_offer,
        "seconds": region.seconds,
        "click": region.click,
        "preannotated": region.preannotated or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def mask_fields(region: StoredRegion) -> dict[str, Any]:
    """The mask as COCO and SA-1B write it: compressed RLE, area, and box x, y, width, height."""
    rle = {"size": [region.height, region.width], "counts": str(region.mask["counts"])}
    encoded = rle | {"counts": str(region.mask["counts"]).encode("ascii")}
    box = [int(side) for side in coco_mask.toBbox(encoded).tolist()]
    return {"segmentation": rle, "area": int(coco_mask.area(encoded)), "bbox": box}


def own_fields(region: StoredRegion) -> dict[str, Any]:
    """Fields that no format has itself."""
    return {"level": region.level, "labels": list(region.labels), "provenance": provenance(region)}


def parent_ids(regions: Sequence[StoredRegion], first: int) -> list[int | None]:
    """`parent_id` of each region, whose ids count from `first`; None where the one that contains it is not there."""
    return [None if index is None else first + index for index in parents(regions)]


def decoded(region: StoredRegion) -> np.ndarray:
    """The mask, bool (H, W)."""
    return np.ascontiguousarray(decode_coco_rle(dict(region.mask), (region.height, region.width)))
