"""Folders of PNGs whose pixels are ids -> samples: COCO panoptic, and label maps.

Panoptic is a JSON of segments, and for every photo a PNG of their ids. A label map is a PNG of numbers beside a photo,
of one of two kinds:

    index into a list of names   Pascal-Part-116 and ADE20K-Part-234 of OV-PARTS: all pixels of one name are one region
    instance, from 1             the leaves of CVPPP: every number is a region of its own, and all have the same name

A name "whole:part" is that of a part. Pixels of other numbers, and of an empty name, are not annotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from semsam_model.data.readers.coco import CROWDS, CocoFile, check_entry, image_key
from semsam_model.data.readers.coco_entries import same_id
from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, renamed, require_folder, split_name
from semsam_model.data.readers.file_kinds import PANOPTIC
from semsam_model.data.samples import (
    BAD_ENTRY,
    FULL_SUPERVISION,
    Annotation,
    Dataset,
    PhotoFile,
    Region,
    Sample,
    Supervision,
)
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.types import Label

#: How the names of a map and of its photo end, after what they share.
ENDINGS = (".png", ".jpg")
#: How a pixel says its id: by its only channel, or as R + 256 G + 65536 B.
Form = Literal["label map", "panoptic"]


@dataclass(frozen=True)
class IdMask:
    """The pixels of one id of a PNG."""

    path: Path
    id: int
    form: Form

    def decode(self, size: Size) -> np.ndarray:
        """bool (H, W). Raises DataError for a PNG of another size than the photo, or without a pixel of this id."""
        ids = read_ids(self.path, self.form)
        if ids.shape != size:
            raise DataError(f"{self.path}: expected {size[1]}x{size[0]} pixels, got {ids.shape[1]}x{ids.shape[0]}")
        mask: np.ndarray = ids == self.id
        if not mask.any():
            raise DataError(f"{self.path}: no pixel of id {self.id}")
        return mask


@lru_cache(maxsize=2)  # a photo's masks are asked for one after another
def read_ids(path: Path, form: Form) -> np.ndarray:
    """int32 (H, W) of ids. Raises DataError."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB") if form == "panoptic" else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path}: expected a readable {form} PNG: {exc}") from exc
    if form == "panoptic":
        return pixels.astype(np.int32) @ np.array((1, 256, 65536), np.int32)
    if pixels.ndim != 2:
        raise DataError(f"{path}: expected a label map with one channel, got one with {pixels.shape[2]}")
    return pixels.astype(np.int32)


def read_panoptic(
    annotations: Path,
    images: Path,
    masks: Path | None = None,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """The JSON, the photos, the folder of PNGs (named as the JSON, beside it, when None).

    Things are objects, stuff is regions. Errors as `read_coco`.
    """
    pngs = masks or annotations.with_suffix("")
    require_folder(images, "photos", annotations)
    require_folder(pngs, "PNGs of segments", annotations)
    file = CocoFile(annotations, options, source, supervision, PANOPTIC)
    file.look_for_photos(images)
    photos = {image_key(image): image for image in file.objects("images")}
    labels: set[Label] = set()
    entries = list(file.objects("annotations"))
    for entry in entries:
        segments = list[dict[str, Any]]()
        try:
            image, png = photos[same_id(entry["image_id"])], pngs / str(entry["file_name"]).replace("\\", "/")
            listed = entry["segments_info"]
            for segment in listed:
                check_entry(segment)
                if file.leaves_out(segment):
                    file.losses.add("segment", segment.get("id"), CROWDS)
                else:
                    segments.append(segment)
            drawn = [IdMask(png, int(s["id"]), "panoptic") for s in segments]
        except BAD_ENTRY as exc:
            file.losses.add("annotation", f"of image {entry.get('image_id')!r}", exc, max(1, len(segments)))
        else:
            labels |= file.labels(segments)
            file.add_sample(image, segments, drawn)
    return file.dataset(len(entries), frozenset(labels))


def read_label_map(
    maps: Path,
    images: Path,
    labels: Sequence[str],
    *,
    instances: bool = False,
    endings: Sequence[str] = ENDINGS,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """Maps anywhere under `maps`, their photos in the same place under `images`.

    labels: the names of the numbers 0, 1, 2, ...; with `instances` the only name, of every number from 1. endings: of a
    map's and of its photo's file name ("_label.png", "_rgb.png"). A map is opened when it is asked for; a missing photo
    is skipped and named. Raises DataError when a folder is missing.
    """
    source = source or maps.name
    require_folder(maps, "label maps", source)
    require_folder(images, "photos", source)
    of_map, of_photo = endings
    files = sorted(maps.rglob(f"*{of_map}"))
    samples, skipped = list[Sample](), list[str]()
    for file in files:
        shared = file.relative_to(maps).as_posix().removesuffix(of_map)
        photo = images / f"{shared}{of_photo}"
        if photo.is_file():
            read = partial(_annotation, file, tuple(labels), instances, options)
            samples.append(Sample(PhotoFile(photo), source, read, supervision))
        else:
            skipped.append(f"{photo}: no such photo")
    known = frozenset(_labels_by_number(labels, instances, options).values())
    return Dataset(tuple(samples), tuple(skipped), len(files), {source: known})


def _annotation(file: Path, labels: Sequence[str], instances: bool, options: ReadOptions) -> Annotation:
    by_number = _labels_by_number(labels, instances, options)
    numbers = read_ids(file, "label map")
    regions = []
    for number in np.unique(numbers).tolist():
        label = by_number.get(min(number, 1) if instances else number)
        if label is not None:
            mask = IdMask(file, number, "label map")
            regions.append(Region(mask, label.granularity, label.name, whole=label.whole))
    height, width = numbers.shape
    return Annotation(width, height, tuple(regions), options.partial)


def _labels_by_number(labels: Sequence[str], instances: bool, options: ReadOptions) -> dict[int, Label]:
    """What pixels of a number are called; with `instances` only that of number 1, which holds for all above it."""
    found = {}
    for number, spelled in enumerate(labels, start=1 if instances else 0):
        whole, short = split_name(spelled)
        name = renamed(options.names, spelled, short)
        if whole:
            found[number] = Label("part", name, renamed(options.names, whole))
        elif spelled:
            found[number] = Label(options.granularity or "object", name)
    return found
