"""A project's export in Label Studio's own JSON (the list of tasks), or its target storage -> samples.

Of a task's annotations the last updated one counts; cancelled ones and predictions do not. Brush, bitmask, polygon,
rectangle and ellipse regions are read, with or without labels; notes, choices, keypoints and relations are no masks.
Each is put on the photo that it was drawn on (`readers.label_studio_photos`), so that a task with several photos gives
several samples. Percent are laid over the photo as it is, whatever size the region says; a brush mask of another size
is left out. The first label is the name. A region is a part when its `parentID` is a region of the same photo, else an
object, unless its `meta` holds a `granularity` of object, part or region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from semsam_model.data.readers.entries import other_index
from semsam_model.data.readers.label_studio_photos import ImageTags, address_of
from semsam_model.data.readers.label_studio_tasks import Task, read_tasks
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PhotoFolder
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Dataset, PhotoFile, Region, Sample, Supervision
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.masks.label_studio import check_region_size, region_mask, region_shape, row_labels
from semsam_model.types import Granularity
from semsam_model.validation import Expected, Flag, JsonModel, Lenient, check

#: Rows with a shape that is no mask we read; the editor calls them so, with or without "labels".
_UNREAD_SHAPES = ("vector", "videorectangle", "cube", "skeleton")


@dataclass(frozen=True, eq=False)
class LabelStudioMask:
    """A region as it stands in an export; percent become pixels when it is decoded."""

    row: dict[str, Any]

    def decode(self, size: Size) -> np.ndarray:
        mask = region_mask(self.row, size)
        if mask is None:
            raise DataError(f"region {self.row.get('id')!r}: expected a mask of {size[1]}x{size[0]} pixels")
        return mask


def read_label_studio(
    export: Path,
    images: Path,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    partial: bool = False,
    config: Path | None = None,
    evaluation: bool = False,
) -> Dataset:
    """One export file, or the folder of a target storage; photos are looked for under `images` as `photo_names` does.

    partial: not everything visible was annotated. config: the project's labeling config, which tells photos of one task
    apart. evaluation: keep photos that were submitted with nothing on them. What cannot be read is skipped and named.
    Raises DataError when nothing can be read; ConfigError.
    """
    tags = None if config is None else ImageTags.read(config)
    losses = Losses(export)
    drawn: list[_Drawn] = []
    for task in read_tasks(export, losses):
        drawn += _photos_of(task, tags, losses)
    folder = PhotoFolder(images, (each.address for each in drawn))
    samples: list[Sample] = []
    for each in drawn:
        try:
            photo = PhotoFile(_path(folder, each.address))
            size = photo.size()
        except DataError as exc:
            losses.add("task", f"{each.where.removeprefix('task ')}, photo {each.address[:100]}", exc, len(each.rows))
            continue
        regions = _regions(each, size, losses)
        if not regions and each.rows:
            continue
        if not regions and not evaluation:
            losses.add("photo", each.address[:100], "submitted with nothing on it: left out of training", 0)
            continue
        annotation = Annotation(size[1], size[0], regions, partial)
        samples.append(Sample(photo, source or export.stem, annotation, supervision))
    return Dataset(tuple(samples), losses.lines, len(drawn), masks_lost=losses.masks)


def _text_id(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_Id = Annotated[str, BeforeValidator(_text_id), Expected("an id")]
_Rows = Annotated[list[Any], BeforeValidator(lambda value: [] if value is None else value)]


class _Result(JsonModel):
    """One annotation of a task."""

    id: Lenient[int] = None
    was_cancelled: Flag = False
    updated_at: Lenient[str] = None
    created_at: Lenient[str] = None
    result: _Rows


class _Meta(JsonModel):
    granularity: Lenient[Granularity] = None


class _Row(JsonModel):
    """A row with the mask of a region."""

    id: _Id | None = None
    parent: _Id | None = Field(default=None, alias="parentID")
    tag: Lenient[str] = Field(default=None, alias="to_name")
    page: Annotated[int, Expected("the number of a page")] | None = Field(default=None, alias="item_index")
    meta: Lenient[_Meta] = None


@dataclass(frozen=True)
class _Drawn:
    """What was drawn on one photo of a task."""

    where: str
    address: str
    labels: dict[str | None, str]  #: first label of each region's id
    rows: list[tuple[_Row, dict[str, Any]]] = field(default_factory=list)


def _photos_of(task: Task, tags: ImageTags | None, losses: Losses) -> list[_Drawn]:
    """The rows of the annotation that counts, by photo."""
    where = task.where.removeprefix("task ")
    try:
        data = check(dict[Any, Any], task.data, "task.data", DataError)
        newest = _newest(task, losses)
    except DataError as exc:
        losses.add("task", where, exc, _count(task.annotations))
        return []
    if newest is None:
        return []
    drawn: dict[str, _Drawn] = {}
    labels: dict[str | None, str] = {}
    for number, row in enumerate(newest.result):
        mask = isinstance(row, dict) and _is_mask(row)
        try:
            read = check(_Row, row, f"result[{number}]", DataError)
            for label in row_labels(row)[:1]:
                if read.id is not None:
                    labels.setdefault(read.id, label)
            if mask and region_shape(row) is None:
                raise DataError(f"a {row['type']} is not read")
            if mask:
                address = address_of(data, read.tag or "image", read.page, tags)
                drawn.setdefault(address, _Drawn(task.where, address, labels)).rows.append((read, row))
        except DataError as exc:
            name = row.get("id", number) if isinstance(row, dict) else number
            losses.add("region", f"{name!r} of {task.where}", exc, int(mask))
    if not drawn and not _count([newest.model_dump()]):
        try:
            address = address_of(data, "image", None, tags if tags and "image" in tags.fields else None)
            return [_Drawn(task.where, address, labels)]
        except DataError:
            losses.add("task", where, "submitted with nothing on its photos", 0)
    return list(drawn.values())


def _newest(task: Task, losses: Losses) -> _Result | None:
    """The annotation that counts; None where there is none. The others are counted as left out."""
    listed = check(list[Any], task.annotations or [], "task.annotations", DataError)
    done, where = list[_Result](), task.where.removeprefix("task ")
    for number, value in enumerate(listed):
        try:
            annotation = check(_Result, value, f"annotations[{number}]", DataError)
        except DataError as exc:
            losses.add("task", where, exc, _count([value]))
            continue
        if annotation.was_cancelled:
            losses.add("task", where, "an annotation was skipped (cancelled) by its annotator", _count([value]))
        else:
            done.append(annotation)
    if not done:
        if not listed:
            unsubmitted = " (only predictions or drafts)" if task.unsubmitted else ""
            losses.add("task", where, f"no annotation{unsubmitted}", 0)
        return None
    newest = max(done, key=lambda each: (_time(each), each.id or 0))
    for each in done:
        if each is not newest:
            losses.add("task", where, "an annotation that is not the last updated one", _count([each.model_dump()]))
    return newest


def _time(annotation: _Result) -> datetime:
    for text in (annotation.updated_at, annotation.created_at):
        try:
            time = datetime.fromisoformat(text or "")
        except ValueError:
            continue
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)


def _is_mask(row: dict[str, Any]) -> bool:
    return region_shape(row) is not None or str(row.get("type")).removesuffix("labels") in _UNREAD_SHAPES


def _count(annotations: Any) -> int:
    """Masks in annotations as they stand in the file."""
    found = 0
    for each in annotations if isinstance(annotations, list) else ():
        rows = each.get("result") if isinstance(each, dict) else None
        found += sum(isinstance(row, dict) and _is_mask(row) for row in (rows if isinstance(rows, Iterable) else ()))
    return found


def _path(folder: PhotoFolder, address: str) -> Path:
    if address[:5].lower() == "data:":
        raise DataError("it lies in the task itself, as a data URL; save it as a file and name that")
    return folder.path(address)


def _regions(drawn: _Drawn, size: Size, losses: Losses) -> tuple[Region, ...]:
    kept: list[tuple[_Row, dict[str, Any]]] = []
    for read, row in drawn.rows:
        try:
            check_region_size(row, size)
            kept.append((read, row))
        except DataError as exc:
            losses.add("region", f"{read.id!r} of {drawn.where}", exc)
    return tuple(_region(kept, index, drawn.labels) for index in range(len(kept)))


def _region(kept: Sequence[tuple[_Row, dict[str, Any]]], index: int, labels: dict[str | None, str]) -> Region:
    counts = Counter(read.id for read, _ in kept)
    places = {read.id: at for at, (read, _) in enumerate(kept) if read.id is not None and counts[read.id] == 1}
    read, row = kept[index]
    parent = other_index(places, read.parent, index)
    granularity = (read.meta and read.meta.granularity) or ("object" if parent is None else "part")
    own = row_labels(row)
    name = labels.get(read.id) if read.id is not None else (own[0] if own else None)
    return Region(LabelStudioMask(row), granularity, name, parent, region_shape(row) == "rectangle")
