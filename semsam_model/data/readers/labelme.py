"""A folder of labelme's JSON files, each beside its photo -> samples.

Polygons, rectangles, circles and masks are read; points and lines are none. Shapes of one label and
one `group_id` are pieces of one thing. Everything is an object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, renamed
from semsam_model.data.readers.file_kinds import LABELME, known_form
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PhotoFolder
from semsam_model.data.readers.shapes import Outline, Oval, Pieces, PngCrop
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

_NO_MASKS = ("point", "points", "line", "linestrip")


def read_labelme(
    folder: Path,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """Every JSON below a folder, or one. What cannot be read is skipped and named. Raises DataError without any."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
    losses, samples, read = Losses(folder), list[Sample](), 0
    for file in files:
        name = file.name if file == folder else file.relative_to(folder).as_posix()
        count = 0
        try:
            content = json.loads(file.read_bytes())
            if (known_form(content) or ("", ""))[0] != LABELME:
                raise DataError("not of labelme: no shapes and imagePath")
            read += 1
            shapes = [shape for shape in content["shapes"] if shape.get("shape_type", "polygon") not in _NO_MASKS]
            count = len(shapes)
            for _ in range(len(content["shapes"]) - count):
                losses.add("file", name, "points and lines are no masks", 0)
            photo = PhotoFile(PhotoFolder(file.parent, [content["imagePath"]]).path(content["imagePath"]))
            height, width = photo.size()
            said = content.get("imageHeight") or height, content.get("imageWidth") or width
            if said != (height, width):
                raise DataError(f"drawn on {said[1]}x{said[0]} pixels, the photo has {width}x{height}")
        except (OSError, RecursionError, DataError, *BAD_ENTRY) as exc:
            losses.add("file", name, exc if isinstance(exc, DataError) else f"expected {LABELME}: {exc!r}", count)
            continue
        regions = _regions(shapes, name, options, losses)
        if regions or (options.evaluation and not shapes):
            annotation = Annotation(width, height, regions, options.partial)
            samples.append(Sample(photo, source or folder.stem, annotation, supervision))
        elif not shapes:
            losses.add("file", name, "nothing is on its photo: left out of training", 0)
    if not read:
        raise DataError(f"{folder}: expected files of labelme, found none; {list(losses.lines[:3])}")
    return Dataset(tuple(samples), losses.lines, len(files), masks_lost=losses.masks)


def _regions(shapes: list[Mapping[str, Any]], name: str, options: ReadOptions, losses: Losses) -> tuple[Region, ...]:
    groups: dict[Any, list[tuple[Outline | Oval | PngCrop, bool]]] = {}
    labels: dict[Any, str] = {}
    for number, shape in enumerate(shapes):
        try:
            found = _shape(shape)
            label, group = str(shape["label"]), shape.get("group_id")
            key = (label, group) if group is not None else number
            groups.setdefault(key, []).append((found, shape.get("shape_type") == "rectangle"))
            labels[key] = label
        except BAD_ENTRY as exc:
            losses.add("shape", f"{number} of {name}", exc)
    granularity = options.granularity or "object"
    return tuple(
        Region(
            pieces[0][0] if len(pieces) == 1 else Pieces(tuple(piece for piece, _ in pieces)),
            granularity,
            renamed(options.names, labels[key]),
            box_only=all(box for _, box in pieces),
        )
        for key, pieces in groups.items()
    )


def _shape(shape: Mapping[str, Any]) -> Outline | Oval | PngCrop:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("expected points, each x and y")
    if kind == "polygon" and len(points) >= 3:
        return Outline(tuple(points.ravel().tolist()))
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points.tolist())
        return Oval((float(points[0, 0]), float(points[0, 1])), (radius, radius))
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points.tolist()
        return Outline((x0, y0, x1, y0, x1, y1, x0, y1))
    if kind == "rectangle" and len(points) == 4:
        return Outline(tuple(points.ravel().tolist()))
    if kind == "mask" and len(points) == 2:
        return PngCrop((round(points[0, 0]), round(points[0, 1])), str(shape["mask"]))
    raise ValueError(f"a {kind} of {len(points)} points is not read")
