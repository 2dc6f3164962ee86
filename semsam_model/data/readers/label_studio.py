"""A project's export in Label Studio's own JSON (the list of tasks) -> samples.

Of a task's annotations the last updated one counts; cancelled ones and predictions do not. Brush, bitmask, polygon and
rectangle regions are read, with or without labels; notes, choices, keypoints and relations are no masks. The first
label is the name. A region is a part when its `parentID` is a region of the same annotation, else an object, unless
its `meta` holds a `granularity` of object, part or region.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import Field

from semsam_model.data.readers.entries import malformed, other_index, parse_json
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Dataset, PhotoFile, Region, Sample, Supervision
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import region_mask, region_shape, region_size, row_labels
from semsam_model.types import Granularity
from semsam_model.validation import Expected, Flag, JsonModel, Lenient, check

#: Rows with a shape that is no mask we read; the editor calls them so, with or without "labels".
_UNREAD_SHAPES = ("ellipse", "vector")


@dataclass(frozen=True, eq=False)
class LabelStudioMask:
    """A region as it stands in an export; percent become pixels when it is decoded."""

    row: dict[str, Any]

    def decode(self, size: Size) -> np.ndarray:
        mask = region_mask(self.row)
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
    for number, value in enumerate(tasks):
        identity = value.get("id") if isinstance(value, dict) else None
        where = f"{export}: entry {number}" if identity is None else f"{export}: task {identity!r}"
        try:
            task = check(_Task, value, "task", DataError)
            done = [each for each in task.annotations if not each.was_cancelled]
            if not done:
                continue
            photo = _photo(task.data, images)
            newest = max(done, key=lambda each: each.updated_at or each.created_at or "")
            known = _annotation(newest.result, partial, where, skipped)
        except DataError as exc:
            skipped.append(f"{where}: {exc}")
            continue
        if known is not None:
            samples.append(Sample(PhotoFile(photo), source or export.stem, known, supervision))
    return Dataset(tuple(samples), tuple(skipped))


class _Result(JsonModel):
    """One annotation of a task."""

    was_cancelled: Flag = False
    updated_at: Lenient[str] = None
    created_at: Lenient[str] = None
    result: list[Any]


class _Task(JsonModel):
    annotations: list[_Result] = Field(default_factory=list)
    data: dict[Any, Any]


class _Meta(JsonModel):
    granularity: Lenient[Granularity] = None


_Id = Annotated[int | str, Expected("an id")]


class _Row(JsonModel):
    """A row with the mask of a region."""

    id: _Id | None = None
    parent: _Id | None = Field(default=None, alias="parentID")
    meta: Lenient[_Meta] = None


def _photo(data: Mapping[Any, Any], images: Path) -> Path:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and 0 < len(value) < 4096}
    addresses = [texts[key] for key in sorted(texts, key=lambda key: key != "image")]
    for address in addresses:
        for name in _places(address):
            with contextlib.suppress(OSError):  # a name that is too long
                if (images / name).is_file():
                    return images / name
    raise DataError(f"expected its photo under {images}, found none for {', '.join(addresses)[:200] or 'no address'}")


def _places(address: str) -> Iterator[str]:
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that are no IPv6 address
        return
    stored = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    pieces = [piece for piece in stored.split("/") if piece not in ("", ".", "..")]
    for start in range(len(pieces)):
        yield "/".join(pieces[start:])


def _annotation(rows: list[Any], partial: bool, where: str, skipped: list[str]) -> Annotation | None:
    """None without a region that can be read."""
    kept: list[tuple[_Row, dict[str, Any]]] = []
    sizes: set[Size] = set()
    labels: dict[Any, str] = {}  #: first label of each region's id
    for number, row in enumerate(rows):
        try:
            read = check(_Row, row, f"result[{number}]", DataError)
            for label in row_labels(row)[:1]:
                labels.setdefault(read.id, label)
            if region_shape(row) is not None:
                sizes.add(region_size(row))
                kept.append((read, row))
            elif str(row.get("type")).removesuffix("labels") in _UNREAD_SHAPES:
                raise DataError(f"region {read.id!r}: a {row['type']} is not read")
        except DataError as exc:
            skipped.append(f"{where}: {exc}")
    if not kept:
        return None
    if len(sizes) > 1:
        raise DataError(f"expected regions of one photo size, got {sorted(sizes)}")
    indices = {read.id: index for index, (read, _) in enumerate(kept) if read.id is not None}
    regions = []
    for index, (read, row) in enumerate(kept):
        parent = other_index(indices, read.parent, index)
        granularity = (read.meta and read.meta.granularity) or ("object" if parent is None else "part")
        box_only = region_shape(row) == "rectangle"
        regions.append(Region(LabelStudioMask(row), granularity, labels.get(read.id), parent, box_only))
    ((height, width),) = sizes
    return Annotation(width, height, tuple(regions), partial)
