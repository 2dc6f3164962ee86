"""YOLO segmentation (`data.yaml`, a TXT for each photo) -> samples.

A line is `CLASS X Y X Y ...`, an outline in shares of the photo's sides; `CLASS X Y W H` is a box (its mask is the
filled rectangle, `Region.box_only`). A photo with an empty TXT, or none, has nothing on it. Everything is an object
with the name of its class. `path`, `train`, `val`, `test` of the YAML are found as ultralytics does, and also where a
file was unpacked elsewhere: beside the YAML.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, malformed, renamed
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PHOTO_SUFFIXES
from semsam_model.data.readers.shapes import Outline
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Dataset, PhotoFile, Region, Sample, Supervision
from semsam_model.errors import DataError

SPLITS = ("train", "val", "test")


def read_yolo(
    path: Path,
    *,
    splits: Sequence[str] = SPLITS,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """The data set that a `data.yaml`, or the folder with it, describes. splits: of train, val, test.

    Photos without anything on them are left out, except for evaluation. What cannot be read is skipped and named.
    Raises DataError.
    """
    path = path / "data.yaml" if path.is_dir() else path
    with malformed(path, "the YAML of a YOLO data set, with names and train"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = _names(content["names"])
    losses, samples, bare = Losses(path), list[Sample](), 0
    photos = dict.fromkeys(photo for split in splits for photo in _photos(path, content, split, losses))
    labels = {photo: _labels_of(photo) for photo in photos}
    sharing = Counter(labels.values())
    for photo, file in labels.items():
        regions: tuple[Region, ...] = ()
        try:
            regions = _regions(file, names, options, losses)
            if not regions and not options.evaluation:
                bare += 1
                continue
            if regions and sharing[file] > 1:
                raise DataError(f"{file.name} is that of several photos: nobody knows whose its masks are")
            height, width = PhotoFile(photo).size()
        except DataError as exc:
            losses.add("photo", photo, exc, len(regions))
            continue
        annotation = Annotation(width, height, regions, options.partial)
        samples.append(Sample(PhotoFile(photo), source or path.parent.name, annotation, supervision))
    if bare:
        losses.add("split", "all", f"{bare} photos with nothing on them: left out of training", 0)
    return Dataset(tuple(samples), losses.lines, len(photos), masks_lost=losses.masks)


def _names(given: Any) -> Mapping[int, str]:
    listed = given.items() if isinstance(given, Mapping) else enumerate(given)
    return {int(number): str(name) for number, name in listed}


def _photos(path: Path, content: Mapping[str, Any], split: str, losses: Losses) -> Iterator[Path]:
    """The photos of a split, in the order of their names."""
    given = content.get(split)
    for place in given if isinstance(given, list) else [given] if given else []:
        found = _place(path.parent, str(content.get("path") or ""), str(place))
        if found is None:
            losses.add("split", split, f"{place}: no such folder or list", 0)
        elif found.is_dir():
            yield from sorted(file for file in found.rglob("*") if file.suffix[1:].lower() in PHOTO_SUFFIXES)
        else:
            for line in filter(None, map(str.strip, found.read_text(encoding="utf-8").splitlines())):
                photo = found.parent / line
                if photo.is_file():
                    yield photo
                else:
                    losses.add("photo", line, f"listed in {found.name}, no such photo", 0)


def _place(folder: Path, root: str, place: str) -> Path | None:
    place, root = place.replace("\\", "/"), root.replace("\\", "/")
    inside = PurePosixPath(*(piece for piece in PurePosixPath(place).parts if piece not in ("..", "/")))
    candidates = (folder / root / place, folder / place, folder / inside, Path(root) / place)
    return next((each for each in candidates if each.exists()), None)


def _labels_of(photo: Path) -> Path:
    """The TXT of a photo: `labels` in the place of the last `images` of its path, else beside the photo."""
    before, found, after = str(photo).rpartition(f"{os.sep}images{os.sep}")
    if found:
        other = Path(f"{before}{os.sep}labels{os.sep}{after}").with_suffix(".txt")
        if other.is_file() or not photo.with_suffix(".txt").is_file():
            return other
    return photo.with_suffix(".txt")


def _regions(file: Path, names: Mapping[int, str], options: ReadOptions, losses: Losses) -> tuple[Region, ...]:
    """Raises DataError for a file that cannot be read."""
    if not file.is_file():
        return ()
    regions = []
    with malformed(file, "lines of numbers"):
        lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            first, *values = line.split()
            label, points = int(float(first)), [float(value) for value in values]
            if not np.isfinite(points).all() or len(points) % 2 or len(points) < 4:
                raise ValueError("expected CLASS X Y X Y X Y ..., or CLASS X Y W H")
        except ValueError as exc:
            losses.add("line", f"{file.name}:{number}", exc)
            continue
        if label not in names:
            losses.add("line", f"{file.name}:{number}", f"class {label} has no name: read without one", 0)
        name = renamed(options.names, names[label]) if label in names else None
        box = len(points) == 4
        if box:
            x, y, width, height = points
            x0, x1, y0, y1 = x - width / 2, x + width / 2, y - height / 2, y + height / 2
            points = [x0, y0, x1, y0, x1, y1, x0, y1]
        granularity = options.granularity or "object"
        regions.append(Region(Outline(tuple(points), relative=True), granularity, name, box_only=box))
    return tuple(regions)
