"""Folders of label maps -> samples: a PNG of numbers for every photo.

Two kinds of number:

    the place of a name in a list   Pascal-Part-116 and ADE20K-Part-234 of OV-PARTS: all that bears one name is a region
    an instance, from 1             the leaves of CVPPP: every number is a thing of its own, and all have one name

A name "whole:part" is that of a part. Pixels of any other number, and of an empty name, are not annotated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from semsam_model.data.samples import EVERY_LOSS, Annotation, Dataset, Feeds, PhotoFile, Region, Sample
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.types import Label

#: How the names of a map and of its photo end, after what they share.
ENDINGS = (".png", ".jpg")


@dataclass(frozen=True)
class MapOptions:
    """How the numbers of a source's maps are to be understood."""

    labels: tuple[str, ...]  #: the names of 0, 1, 2, ...; for instances the only one
    instances: bool = False  #: numbers from 1 tell things apart, not names
    granularity: str = "object"  #: of names that are not "whole:part"
    names: Mapping[str, str] = field(default_factory=dict)  #: the source's spelling -> the label meant
    partial: bool = False  #: not everything visible is annotated, on any photo

    def label(self, number: int) -> Label | None:
        """What pixels of a number are called; None where they are not annotated."""
        if self.instances:
            return self._label(self.labels[0]) if number > 0 else None
        return self._label(self.labels[number]) if 0 <= number < len(self.labels) and self.labels[number] else None

    def _label(self, spelled: str) -> Label:
        meant, (whole, _, name) = self.names, spelled.rpartition(":")
        name = meant.get(spelled, meant.get(name, name))
        return Label("part", name, meant.get(whole, whole)) if whole else Label(self.granularity, name)


def read_label_map(
    maps: Path,
    images: Path,
    options: MapOptions,
    endings: Sequence[str] = ENDINGS,
    *,
    source: str | None = None,
    feeds: Feeds = EVERY_LOSS,
) -> Dataset:
    """Maps anywhere under `maps`, their photos in the same place under `images`.

    endings: of a map's and of its photo's file name ("_label.png", "_rgb.png"). A map is opened when it is asked for;
    a missing photo is skipped and named. Raises DataError when a folder is missing.
    """
    for folder, what in ((maps, "label maps"), (images, "photos")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; the {what} of {source or maps.name} belong there")
    of_map, of_photo = endings
    source = source or maps.name
    files = sorted(maps.rglob(f"*{of_map}"))
    samples, skipped = list[Sample](), list[str]()
    for file in files:
        shared = file.relative_to(maps).as_posix().removesuffix(of_map)
        photo = images / f"{shared}{of_photo}"
        if photo.is_file():
            samples.append(Sample(PhotoFile(photo), source, partial(_annotation, file, options), feeds))
        else:
            skipped.append(f"{photo}: no such photo")
    numbers = range(1, 2) if options.instances else range(len(options.labels))
    labels = frozenset(label for number in numbers if (label := options.label(number)) is not None)
    return Dataset(tuple(samples), tuple(skipped), len(files), {source: labels})


@dataclass(frozen=True)
class NumberMask:
    """The pixels of one number of a map."""

    path: Path
    number: int

    def decode(self, size: Size) -> np.ndarray:
        numbers = _numbers(self.path)
        if numbers.shape != size:
            height, width = numbers.shape
            raise DataError(f"{self.path}: expected {size[1]}x{size[0]} pixels, got {width}x{height}")
        return np.asarray(numbers == self.number)


def _annotation(file: Path, options: MapOptions) -> Annotation:
    numbers = _numbers(file)
    regions = []
    for number in np.unique(numbers).tolist():
        label = options.label(number)
        if label is not None:
            regions.append(Region(NumberMask(file, number), label.granularity, label.name, whole=label.whole))
    height, width = numbers.shape
    return Annotation(width, height, tuple(regions), options.partial)


@lru_cache(maxsize=2)  # a photo's masks are asked for one after another
def _numbers(file: Path) -> np.ndarray:
    """int32 (H, W)"""
    try:
        with Image.open(file) as image:
            numbers = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{file}: expected a readable label map: {exc}") from exc
    if numbers.ndim != 2:
        raise DataError(f"{file}: expected a label map with one channel, got one with {numbers.shape[2]}")
    return numbers.astype(np.int32)
