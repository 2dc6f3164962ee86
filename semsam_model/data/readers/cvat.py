"""CVAT's "CVAT for images" XML -> samples. Polygons, masks, boxes and ellipses are read; points and lines are no masks.

Everything is an object with the name of its label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, malformed, renamed
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PhotoFolder
from semsam_model.data.readers.shapes import Outline, Oval, Runs, numbers
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

_MASKS = ("polygon", "mask", "box", "ellipse")
_NO_MASKS = ("points", "polyline", "cuboid", "skeleton")


def read_cvat(
    path: Path,
    images: Path | None = None,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """One `annotations.xml`; photos are looked for under `images`, the XML's folder when None.

    What cannot be read is skipped and named. Raises DataError.
    """
    with malformed(path, "the XML of CVAT for images 1.1"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
            raise ValueError("document types and entities are not read")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as exc:
            raise ValueError(str(exc)) from None
    if root.tag == "annotation":
        raise DataError(f"{path}: expected CVAT for images, this is Pascal VOC's XML of boxes, which has no masks")
    if root.find("track") is not None:
        raise DataError(f"{path}: expected CVAT for images, this is CVAT for video; export it as CVAT for images 1.1")
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        raise DataError(f"{path}: expected the XML of CVAT for images 1.1, <annotations> with <image>s, found none")
    losses, samples = Losses(path), list[Sample]()
    folder = PhotoFolder(images or path.parent, (entry.get("name", "") for entry in entries))
    for entry in entries:
        name = entry.get("name", "")
        shapes = [shape for shape in entry if shape.tag in _MASKS]
        for shape in entry:
            if shape.tag in _NO_MASKS:
                losses.add("image", repr(name), f"a {shape.tag} is no mask", 0)
        try:
            photo = PhotoFile(folder.path(name))
            height, width = photo.size()
            said = int(entry.get("height", height)), int(entry.get("width", width))
            if said != (height, width):
                raise DataError(f"drawn on {said[1]}x{said[0]} pixels, the photo has {width}x{height}")
        except (DataError, *BAD_ENTRY) as exc:
            losses.add("image", repr(name), exc, len(shapes))
            continue
        regions = tuple(_regions(shapes, name, options, losses))
        if regions or (options.evaluation and not shapes):
            annotation = Annotation(width, height, regions, options.partial)
            samples.append(Sample(photo, source or path.stem, annotation, supervision))
        elif not shapes:
            losses.add("image", repr(name), "nothing is on it: left out of training", 0)
    return Dataset(tuple(samples), losses.lines, len(entries), masks_lost=losses.masks)


def _regions(shapes: list[ElementTree.Element], name: str, options: ReadOptions, losses: Losses) -> Iterator[Region]:
    for shape in shapes:
        try:
            mask = _shape(shape)
            label = renamed(options.names, shape.attrib["label"])
        except BAD_ENTRY as exc:
            losses.add(shape.tag, f"{shape.get('label')!r} of {name!r}", exc)
        else:
            yield Region(mask, options.granularity or "object", label, box_only=shape.tag == "box")


def _shape(shape: ElementTree.Element) -> Outline | Oval | Runs:
    given = shape.attrib
    degrees = float(given.get("rotation", 0))
    if shape.tag == "polygon":
        points = [tuple(map(float, point.split(","))) for point in given["points"].split(";") if point.strip()]
        if len(points) < 3 or any(len(point) != 2 or not all(map(math.isfinite, point)) for point in points):
            raise ValueError("expected points x,y;x,y;x,y")
        return Outline(tuple(value for point in points for value in point))
    if shape.tag == "ellipse":
        x, y, across, down = numbers(given, "cx", "cy", "rx", "ry")
        return Oval((x, y), (across, down), degrees)
    if shape.tag == "mask":
        left, top, width, height = (int(value) for value in numbers(given, "left", "top", "width", "height"))
        runs = tuple(int(run) for run in given["rle"].split(","))
        return Runs((left, top, left + width, top + height), runs)
    x0, y0, x1, y1 = numbers(given, "xtl", "ytl", "xbr", "ybr")
    corners, middle = ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), ((x0 + x1) / 2, (y0 + y1) / 2)
    return Outline(tuple(value for corner in corners for value in _turned(corner, middle, degrees)))


def _turned(point: tuple[float, float], about: tuple[float, float], degrees: float) -> tuple[float, float]:
    """Clockwise as seen: y points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = point[0] - about[0], point[1] - about[1]
    return about[0] + x * cos - y * sin, about[1] + x * sin + y * cos
