"""A folder of annotated photographs on disk <-> samples.

Layout: `DIR/SOURCE.json` (COCO style, see `readers.coco`: images, categories, annotations) and the photos that its
`file_name`s point to, relative to DIR. Beyond COCO, an annotation may carry `granularity` (object, part or region;
object when absent) and `parent_id`, an image `partial` (true when not everything visible is annotated). Accepted and
corrected annotations are exported in the same form.

What cannot be read is skipped, counted and named; it never stops a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.data.samples import CocoMask, Dataset, Sample, by_source
from semsam_model.errors import DataError
from semsam_model.files import named, write_bytes
from semsam_model.masks.geometry import tight_bbox
from semsam_model.types import Label

Item = TypeVar("Item")


def read_samples(directory: Path, sources: Sequence[str] | None = None, *, evaluation: bool = False) -> Dataset:
    """Read `DIR/*.json`, or only the named sources.

    Crowd annotations and photos without any mask are left out, except for `evaluation`, where they count. A source that
    cannot be parsed, a broken entry and a missing photo are skipped and named. Raises DataError when the folder or a
    named source is missing, or when nothing is left.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder with SOURCE.json files, found none")
    files = sorted(directory.glob("*.json"))
    if sources is not None:
        missing = sorted(set(sources) - {file.stem for file in files})
        if missing:
            raise DataError(f"{directory}: no {missing[0]}.json; sources here: {', '.join(f.stem for f in files)}")
        files = [file for file in files if file.stem in sources]
    samples, skipped, photos, masks_lost = list[Sample](), list[str](), 0, 0
    labels: dict[str, frozenset[Label]] = {}
    for file in files:
        try:
            dataset = read_coco(file, options=ReadOptions(evaluation=evaluation))
        except DataError as exc:
            skipped.append(str(exc))
        else:
            samples += dataset.samples
            skipped += dataset.skipped
            photos += dataset.photos or 0
            masks_lost += dataset.masks_lost
            labels |= dataset.labels
    if not samples:
        raise DataError(f"{directory}: no usable photo with a mask in {len(files)} source files; {skipped[:3]}")
    return Dataset(tuple(samples), tuple(skipped), photos, labels, masks_lost)


def read_labels(directory: Path) -> frozenset[Label]:
    """What `DIR/*.json` call anything, whether or not the photos are there.

    Raises DataError when the folder is missing, a source cannot be parsed, or nothing has a name.
    """
    files = sorted(directory.glob("*.json"))
    labels = frozenset(label for file in files for found in read_coco(file).labels.values() for label in found)
    if not labels:
        raise DataError(f"{directory}: expected SOURCE.json files with named masks, found none in {len(files)} files")
    return labels


def write_samples(samples: Iterable[Sample], directory: Path, source: str) -> Path:
    """Write `DIR/SOURCE.json` and `DIR/images/SOURCE/*.png`, which `read_samples` reads back, mask for mask.

    Returns the JSON file. Raises DataError when a photo or mask cannot be read, or nothing is to be written; OSError,
    which names the file.
    """
    folder = directory / "images" / source
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for number, sample in enumerate(samples, start=1):
        file = folder / f"{number:06}.png"
        with named(file):
            Image.fromarray(sample.image()).save(file)
        images.append(
            {
                "id": number,
                "file_name": file.relative_to(directory).as_posix(),
                "width": sample.width,
                "height": sample.height,
                "partial": sample.partial,
            }
        )
        annotations += _annotations(sample, number, len(annotations) + 1, categories)
    if not images:
        raise DataError(f"{directory / source}: expected samples to write, got none")
    content = {
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    path = directory / f"{source}.json"
    write_bytes(path, json.dumps(content).encode())
    return path


def _annotations(sample: Sample, image: int, first: int, categories: dict[str, int]) -> list[dict[str, Any]]:
    """The COCO entries of a sample's regions, numbered from `first`; new names get the next number in `categories`."""
    entries = []
    for index, region in enumerate(sample.regions):
        mask = sample.mask(index)
        x0, y0, x1, y1 = tight_bbox(mask)
        entry: dict[str, Any] = {
            "id": first + index,
            "image_id": image,
            "segmentation": CocoMask.of(mask).segmentation,
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "granularity": region.granularity,
            "parent_id": None if region.parent is None else first + region.parent,
        }
        if region.name is not None:
            entry["category_id"] = categories.setdefault(region.name, len(categories) + 1)
        entries.append(entry)
    return entries


def evenly(samples: Sequence[Sample], per_source: int | None) -> list[Sample]:
    """At most `per_source` samples of each source, evenly spaced in file order; all when None."""
    return [sample for group in by_source(samples).values() for sample in evenly_spaced(group, per_source)]


def evenly_spaced(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most `most` of the items, evenly spaced from the first to the last; all when None."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[place] for place in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]
