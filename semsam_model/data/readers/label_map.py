"""Folders of label maps -> samples: for every photo a PNG whose pixels are numbers.

Two kinds of number:

    index into a list of names   Pascal-Part-116 and ADE20K-Part-234 of OV-PARTS: all pixels of one name are one region
    instance, from 1             the leaves of CVPPP: every number is a region of its own, and all have the same name

A name "whole:part" is that of a part. Pixels of other numbers, and of an empty name, are not annotated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from semsam_model.data.photos import PhotoFile
from semsam_model.data.readers.entries import renamed, require_folder, split_name
from semsam_model.data.readers.id_maps import IdMask, read_ids
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Dataset, Region, Sample, Supervision
from semsam_model.types import Label

#: How the names of a map and of its photo end, after what they share.
ENDINGS = (".png", ".jpg")


@dataclass(frozen=True)
class MapOptions:
    """How the numbers of a source's maps are to be understood."""

    labels: tuple[str, ...]  #: the names of 0, 1, 2, ...; for instances the only one
    instances: bool = False  #: numbers from 1 are instances, not indices of names
    granularity: str = "object"  #: of names that are not "whole:part"
    names: Mapping[str, str] = field(default_factory=dict)  #: the source's spelling -> the label meant
    partial: bool = False  #: not everything visible is annotated, on any photo

    def label(self, number: int) -> Label | None:
        """What pixels of a number are called; None where they are not annotated."""
        if self.instances:
            return self._label(self.labels[0]) if number > 0 else None
        return self._label(self.labels[number]) if 0 <= number < len(self.labels) and self.labels[number] else None

    def _label(self, spelled: str) -> Label:
        whole, short = split_name(spelled)
        name = renamed(self.names, spelled, short)
        return Label("part", name, renamed(self.names, whole)) if whole else Label(self.granularity, name)


def read_label_map(
    maps: Path,
    images: Path,
    options: MapOptions,
    endings: Sequence[str] = ENDINGS,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
) -> Dataset:
    """Maps anywhere under `maps`, their photos in the same place under `images`.

    endings: of a map's and of its photo's file name ("_label.png", "_rgb.png"). A map is opened when it is asked for;
    a missing photo is skipped and named. Raises DataError when a folder is missing.
    """
    require_folder(maps, "label maps", source or maps.name)
    require_folder(images, "photos", source or maps.name)
    of_map, of_photo = endings
    source = source or maps.name
    files = sorted(maps.rglob(f"*{of_map}"))
    samples, skipped = list[Sample](), list[str]()
    for file in files:
        shared = file.relative_to(maps).as_posix().removesuffix(of_map)
        photo = images / f"{shared}{of_photo}"
        if photo.is_file():
            samples.append(Sample(PhotoFile(photo), source, partial(_annotation, file, options), supervision))
        else:
            skipped.append(f"{photo}: no such photo")
    numbers = range(1, 2) if options.instances else range(len(options.labels))
    labels = frozenset(label for number in numbers if (label := options.label(number)) is not None)
    return Dataset(tuple(samples), tuple(skipped), len(files), {source: labels})


def _annotation(file: Path, options: MapOptions) -> Annotation:
    numbers = read_ids(file, "label map")
    regions = []
    for number in np.unique(numbers).tolist():
        label = options.label(number)
        if label is not None:
            mask = IdMask(file, number, "label map")
            regions.append(Region(mask, label.granularity, label.name, whole=label.whole))
    height, width = numbers.shape
    return Annotation(width, height, tuple(regions), options.partial)
