"""A project's export in Label Studio's own JSON (the list of tasks) -> samples.

Of a task's annotations the last updated one counts; cancelled ones and predictions do not. Brush, bitmask, polygon and
rectangle regions are read, with or without labels; notes, choices, keypoints and relations are no masks. The first
label is the name. A region is a part when its `parentID` is a region of the same annotation, else an object, unless
its `meta` holds a `granularity` of object, part or region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from semsam_model.data.readers.entries import malformed, other_index, parse_json, problem
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
from semsam_model.masks.label_studio import region_mask, region_shape, region_size
from semsam_model.types import GRANULARITIES

#: Rows with a shape that is no mask we read; the editor calls them so, with or without "labels".
_UNREAD_SHAPES = ("ellipse", "vector")


@dataclass(frozen=True, eq=False)
class LabelStudioMask:
    """A region as it stands in an export; percent become pixels when it is decoded."""

    row: Mapping[str, Any]

    def decode(self, size: Size) -> np.ndarray:
        mask = region_mask(dict(self.row))
        if mask is None or mask.shape != size:
            raise DataError(f"region {self.row.get('id')!r}: expected a mask of {size[1]}x{size[0]} pixels")
        return mask


def read_label_studio(
    export: Path,
    images: Path,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    partial: bool = False,
) -> Dataset:
    """One export file; photos are looked for under `images` by the path in the task (`?d=`), then by file name.

    `partial`: not everything visible was annotated. A task without a photo or a readable region is skipped and named.
    Raises DataError when the file cannot be read.
    """
    with malformed(export, "a Label Studio export in JSON (a list of tasks; not JSON-MIN)"):
        tasks = parse_json(export.read_bytes(), list)
    samples: list[Sample] = []
    skipped: list[str] = []
    for number, task in enumerate(tasks):
        identity = task.get("id") if isinstance(task, dict) else None
        where = f"{export}: entry {number}" if identity is None else f"{export}: task {identity!r}"
        try:
            rows = _rows(task)
            if rows is None:
                continue
            photo = _photo(task["data"], images)
            known = _annotation(rows, partial, where, skipped)
        except (DataError, *BAD_ENTRY) as exc:
            skipped.append(problem(where, exc))
            continue
        if known is not None:
            samples.append(Sample(PhotoFile(photo), source or export.stem, known, supervision))
    return Dataset(tuple(samples), tuple(skipped))


def _rows(task: dict[str, Any]) -> list[Any] | None:
    """Rows of the annotation that counts; None when the task has none."""
    done = [entry for entry in task.get("annotations") or () if not entry.get("was_cancelled")]
    if not done:
        return None
    newest = max(done, key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""))
    return list(newest["result"])


def _photo(data: Mapping[str, Any], images: Path) -> Path:
    addresses = [value for key, value in sorted(data.items(), key=lambda item: item[0] != "image") if _text(value)]
    for address in addresses:
        for name in _places(address):
            if (images / name).is_file():
                return images / name
    raise DataError(f"expected its photo under {images}, found none for {', '.join(addresses)[:200] or 'no address'}")


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) < 4096


def _places(address: str) -> Iterator[str]:
    parts = urlsplit(address)
    stored = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    pieces = [piece for piece in stored.split("/") if piece not in ("", ".", "..")]
    for start in range(len(pieces)):
        yield "/".join(pieces[start:])


def _annotation(rows: list[Any], partial: bool, where: str, skipped: list[str]) -> Annotation | None:
    kept: list[dict[str, Any]] = []
    sizes: list[Size] = []
    for row in rows:
        try:
            if region_shape(row) is not None:
                hash((row.get("id"), row.get("parentID")))
                sizes.append(region_size(row))
                kept.append(row)
            elif str(row.get("type")).removesuffix("labels") in _UNREAD_SHAPES:
                skipped.append(f"{where}: region {row.get('id')!r}: a {row['type']} is not read")
        except (DataError, *BAD_ENTRY) as exc:
            skipped.append(problem(where, exc))
    if not kept:
        return None
    if len(set(sizes)) > 1:
        raise DataError(f"expected regions of one photo size, got {sorted(set(sizes))}")
    place = {row["id"]: index for index, row in enumerate(kept) if row.get("id") is not None}
    labels = _labels(rows)
    regions = tuple(_region(row, index, place, labels) for index, row in enumerate(kept))
    height, width = sizes[0]
    return Annotation(width, height, regions, partial)


def _labels(rows: list[Any]) -> dict[str, str]:
    """First label of each region id. <Labels> beside a plain <Brush> writes it in a row of its own."""
    found: dict[str, str] = {}
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("value"), dict) and str(row.get("type")).endswith("labels"):
            labels = row["value"].get(row["type"])
            if isinstance(labels, list) and labels and isinstance(labels[0], str):
                found.setdefault(str(row.get("id")), labels[0])
    return found


def _region(row: dict[str, Any], index: int, place: Mapping[Any, int], labels: Mapping[str, str]) -> Region:
    parent = other_index(place, row.get("parentID"), index)
    meta = row.get("meta")
    said = meta.get("granularity") if isinstance(meta, dict) else None
    granularity = said if said in GRANULARITIES else "object" if parent is None else "part"
    name = labels.get(str(row.get("id")))
    return Region(LabelStudioMask(row), granularity, name, parent, region_shape(row) == "rectangle")
