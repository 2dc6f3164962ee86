"""Annotated photographs on disk -> samples.

Layout: `DIR/SOURCE.json` (COCO style: images, categories, annotations; a mask may be compressed or plain RLE, or
polygons) and the photos that its `file_name`s point to, relative to DIR. Beyond COCO, an annotation may carry
`granularity` (object, part or region; object when absent) and `parent_id`, an image `partial` (true when not everything
visible is annotated).

What cannot be read is skipped, counted and named; it never stops a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_model.errors import DataError

GRANULARITIES = ("object", "part", "region")


@dataclass(frozen=True, eq=False)
class Region:
    """One annotated mask of a sample."""

    segmentation: Mapping[str, Any] | Sequence[Any]  #: as in the file: RLE or polygons, photo pixels
    granularity: str
    name: str
    parent: int | None = None  #: index, among the sample's regions, of the enclosing one


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo and its annotation; pixels are read when asked for."""

    path: Path
    source: str
    width: int
    height: int
    regions: tuple[Region, ...]
    partial: bool = False

    @property
    def name(self) -> str:
        return f"{self.source}/{self.path.name}"

    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises DataError naming the file."""
        try:
            with Image.open(self.path) as image:
                rgb = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
            raise DataError(f"{self.path}: expected a readable image: {exc}") from exc
        if rgb.shape[:2] != (self.height, self.width):
            raise DataError(
                f"{self.path}: expected {self.width}x{self.height} pixels as annotated, "
                f"got {rgb.shape[1]}x{rgb.shape[0]}"
            )
        return rgb

    def mask(self, index: int) -> np.ndarray:
        """bool (H, W) of one region. Raises DataError naming photo and region."""
        segmentation = self.regions[index].segmentation
        try:
            if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], str):
                rle = segmentation
            elif isinstance(segmentation, Mapping):
                rle = coco_mask.frPyObjects(dict(segmentation), self.height, self.width)
            else:
                rle = coco_mask.merge(coco_mask.frPyObjects(list(segmentation), self.height, self.width))
            if list(rle["size"]) != [self.height, self.width]:
                raise ValueError(f"size {rle['size']}")
            return np.ascontiguousarray(coco_mask.decode(rle)).view(bool)
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise DataError(
                f"{self.path}, region {index} ({self.regions[index].name}): expected RLE or polygons of "
                f"{self.width}x{self.height} pixels: {exc!r}"
            ) from exc


@dataclass(frozen=True, eq=False)
class Reading:
    """What a data folder gave: samples, and what was left out and why."""

    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]

    @property
    def sources(self) -> dict[str, int]:
        """Photos a source."""
        counts: dict[str, int] = {}
        for sample in self.samples:
            counts[sample.source] = counts.get(sample.source, 0) + 1
        return counts


def read_samples(directory: Path, sources: Sequence[str] | None = None) -> Reading:
    """Read `DIR/*.json`, or only the named sources.

    Crowd annotations and photos without any mask are left out. A source that cannot be parsed, a broken entry and a
    missing photo are skipped and named. Raises DataError when the folder or a named source is missing, or when nothing
    is left.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder with SOURCE.json files, found none")
    files = sorted(directory.glob("*.json"))
    if sources is not None:
        missing = sorted(set(sources) - {file.stem for file in files})
        if missing:
            raise DataError(f"{directory}: no {missing[0]}.json; sources here: {', '.join(f.stem for f in files)}")
        files = [file for file in files if file.stem in sources]
    samples: list[Sample] = []
    skipped: list[str] = []
    for file in files:
        samples += _read_source(file, skipped)
    if not samples:
        raise DataError(f"{directory}: no usable photo with a mask in {len(files)} source files; {skipped[:3]}")
    return Reading(tuple(samples), tuple(skipped))


def evenly(samples: Sequence[Sample], per_source: int | None) -> list[Sample]:
    """At most `per_source` samples of each source, evenly spaced in file order; all when None."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.source, []).append(sample)
    if per_source is None:
        return [sample for group in groups.values() for sample in group]
    return [
        group[index]
        for group in groups.values()
        for index in np.unique(np.linspace(0, len(group) - 1, min(per_source, len(group))).round().astype(int))
    ]


def _read_source(file: Path, skipped: list[str]) -> list[Sample]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, annotations = list(content["images"]), list(content["annotations"])
        names = {category["id"]: str(category["name"]) for category in content.get("categories", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        skipped.append(f"{file}: expected COCO-style JSON: {exc!r}")
        return []
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for entry in annotations:
        try:
            if not entry["segmentation"]:
                raise ValueError("no mask")
            if entry.get("granularity", "object") not in GRANULARITIES:
                raise ValueError(f"granularity {entry['granularity']!r}")
            if not entry.get("iscrowd"):
                of_image.setdefault(entry["image_id"], []).append(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            identity = entry.get("id") if isinstance(entry, dict) else entry
            skipped.append(f"{file}: annotation {identity!r}: {exc!r}")
    samples = []
    for image in images:
        try:
            sample = _sample(file, image, of_image.get(image["id"], []), names)
        except (KeyError, TypeError, ValueError) as exc:
            identity = image.get("file_name", image.get("id")) if isinstance(image, dict) else image
            skipped.append(f"{file}: image {identity!r}: {exc!r}")
            continue
        if not sample.path.is_file():
            skipped.append(f"{sample.path}: no such photo")
        elif sample.regions:
            samples.append(sample)
    return samples


def _sample(file: Path, image: dict[str, Any], entries: list[dict[str, Any]], names: dict[Any, str]) -> Sample:
    place = {entry["id"]: index for index, entry in enumerate(entries)}
    regions = tuple(
        Region(
            entry["segmentation"],
            entry.get("granularity", "object"),
            names.get(entry.get("category_id"), ""),
            place.get(entry.get("parent_id")),
        )
        for entry in entries
    )
    path = file.parent / image["file_name"]
    return Sample(path, file.stem, int(image["width"]), int(image["height"]), regions, bool(image.get("partial")))
