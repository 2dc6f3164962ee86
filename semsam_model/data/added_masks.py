"""Masks that a model added to photos marked partial: an overlay of a source, one file beside its annotations.

    SOURCE.jsonl    first line   {"settings": {...}}, whatever the masks depend on
                    then         {"photo": ..., "annotated": n, "masks": [...]}, a line for each photo looked at

`photo` is the photo's path, relative to the root of the mixture; a mask has `segmentation` (RLE), `granularity`,
`predicted_iou`, `stability` and `parent`, a place among the photo's n annotated masks with the added ones after them. A
photo that cannot be read has `skipped`, the reason, and no masks.

What was added stays marked (`Region.added`). It is read only where it is asked for: by training and by `semsam data
pack`. Everything else sees what annotators drew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semsam_model.data.readers.entries import malformed, parse_json
from semsam_model.data.samples import CocoMask, Dataset, Region, Sample
from semsam_model.errors import DataError
from semsam_model.types import GRANULARITIES

ADDED_WEIGHT = 0.25  #: of an added mask in the losses of masks, beside 1 of an annotated one
ENDING = ".jsonl"
_WHAT = "the added masks of a source"


@dataclass(frozen=True, eq=False)
class AddedMask:
    """A mask that a model found and nobody annotated."""

    mask: np.ndarray  #: bool (H, W)
    granularity: str  #: part inside another mask, region elsewhere
    parent: int | None  #: place among the annotated masks, with the added ones after them
    predicted_iou: float
    stability: float


def photo_key(sample: Sample, root: Path) -> str:
    """What an overlay calls a photo."""
    path = sample.path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def settings_line(settings: Mapping[str, Any]) -> bytes:
    """The first line of an overlay."""
    return _line({"settings": settings})


def photo_line(key: str, annotated: int, masks: Sequence[AddedMask]) -> bytes:
    """The line of a photo with so many annotated masks."""
    entries = [
        {
            "segmentation": CocoMask.of(added.mask).segmentation,
            "granularity": added.granularity,
            "parent": added.parent,
            "predicted_iou": round(added.predicted_iou, 4),
            "stability": round(added.stability, 4),
        }
        for added in masks
    ]
    return _line({"photo": key, "annotated": annotated, "masks": entries})


def skipped_line(key: str, reason: str) -> bytes:
    """The line of a photo that cannot be read."""
    return _line({"photo": key, "skipped": reason})


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an overlay, the settings first. Raises DataError naming the file and the line."""
    with malformed(path, _WHAT), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with malformed(f"{path}, line {number}", _WHAT):
                yield parse_json(line, dict)


def with_added(dataset: Dataset, overlay: Path, root: Path) -> Dataset:
    """A source with the masks of its overlay after those annotated; photos without a line stay as they are.

    Photos of the overlay that the source does not have are named in `skipped`. Raises DataError when the file cannot be
    read, or a photo has another number of annotated masks than when masks were added to it: they may be the same then.
    """
    added: dict[str, dict[str, Any]] = {}
    for line in read_lines(overlay):
        with malformed(overlay, _WHAT):
            if line.get("masks"):
                added[str(line["photo"])] = line
    samples = []
    for sample in dataset.samples:
        key = photo_key(sample, root)
        samples.append(_joined(sample, added.pop(key), overlay) if key in added else sample)
    skipped = (f"{overlay}: {len(added)} photos are not in the source, the first {min(added)}",) if added else ()
    return replace(dataset, samples=tuple(samples), skipped=(*dataset.skipped, *skipped))


def _joined(sample: Sample, line: Mapping[str, Any], overlay: Path) -> Sample:
    annotation, key = sample.annotation, line["photo"]
    with malformed(f"{overlay}: {key}", _WHAT):
        annotated, entries = int(line["annotated"]), line["masks"]
        if annotated != len(annotation.regions):
            raise DataError(
                f"{overlay}: {key}: made beside {annotated} annotated masks, now there are {len(annotation.regions)}; "
                "run `semsam data complete` again, into another folder"
            )
        regions = [_region(entry, annotated + len(entries)) for entry in entries]
    return replace(sample, annotated=replace(annotation, regions=(*annotation.regions, *regions)))


def _region(entry: Mapping[str, Any], count: int) -> Region:
    """count: of all masks of the photo."""
    parent = entry["parent"]
    if entry["granularity"] not in GRANULARITIES or not (parent is None or 0 <= parent < count):
        raise ValueError(f"granularity {entry['granularity']!r}, parent {parent!r} of {count} masks")
    return Region(CocoMask(entry["segmentation"]), entry["granularity"], None, parent, added=True)
