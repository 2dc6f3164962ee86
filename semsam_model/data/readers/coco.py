"""COCO-style JSON -> samples: instances, LVIS, part sets (PACO, PartImageNet, Pascal-Part), panoptic, our own files.

What tells a part from an object, the first that is there:

    annotation `granularity`            object, part or region; our own exports
    category `granularity`              the same
    category `part_of`                  a part; name or id of the category of the whole
    category `supercategory`            PART or OBJECT, as PACO has them
    category name "whole:part"          a part, and its name is what follows the colon
    the source's `granularity` setting  for files of parts alone, as PartImageNet's
    category `isthing` 0                a region: panoptic stuff
    otherwise                           an object

The name: the first of the annotation's `labels`, as in our own exports, else the category's. A category's whole stays
with it: `Region.whole`.

The enclosing annotation: `parent_id`, else PACO's `obj_ann_id`, else, where the category of the whole is known, the
smallest annotation of that category whose box holds nine tenths of the part's box.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semsam_model.data.samples import (
    BAD_ENTRY,
    EVERY_LOSS,
    Annotation,
    Checked,
    CocoMask,
    Dataset,
    Feeds,
    PhotoFile,
    Region,
    Sample,
    Segmentation,
)
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.types import GRANULARITIES, Label

#: Share of a part's box that the box of its whole holds.
_HELD = 0.9


@dataclass(frozen=True)
class CocoOptions:
    """How a source's files are to be understood."""

    granularity: str | None = None  #: of annotations that say nothing themselves
    names: Mapping[str, str] = field(default_factory=dict)  #: the source's spelling -> the label meant
    partial: bool = False  #: not everything visible is annotated, on any photo
    #: Keep what training leaves out and measures count: crowd regions, annotated areas, photos without any mask, and
    #: the labels that LVIS and PACO looked for on a photo.
    evaluation: bool = False


AS_WRITTEN = CocoOptions()


@dataclass(frozen=True)
class _Category:
    granularity: str | None
    name: str
    whole: str | None = None  #: name of the category it is a part of


_NAMELESS = _Category(None, "")


def read_coco(
    annotations: Path,
    images: Path | None = None,
    *,
    source: str | None = None,
    feeds: Feeds = EVERY_LOSS,
    options: CocoOptions = AS_WRITTEN,
) -> Dataset:
    """One file of instances or parts. `file_name` starts at `images`, the JSON's own folder when None.

    Crowd annotations and photos without any mask are left out, except for evaluation. Broken entries and missing
    photos are skipped and named. Raises DataError when the file cannot be read, or the folder is missing.
    """
    if images is not None:
        _check_folder(images, "photos", annotations)
    content, source = _load(annotations), source or annotations.stem
    skipped: list[str] = []
    categories = _categories(annotations, content, options, skipped)
    entries: dict[Any, list[dict[str, Any]]] = {}
    for entry in _objects(annotations, content, "annotations", skipped):
        try:
            if not entry["segmentation"]:
                raise ValueError("no mask")
            _check_entry(entry)
            if options.evaluation or not entry.get("iscrowd"):
                entries.setdefault(entry["image_id"], []).append(entry)
        except BAD_ENTRY as exc:
            skipped.append(f"{annotations}: annotation {entry.get('id')!r}: {exc!r}")
    samples: list[Sample] = []
    photos = list(_objects(annotations, content, "images", skipped))
    for image in photos:
        try:
            found = entries.get(image["id"], [])
            regions = _regions(found, [CocoMask(entry["segmentation"]) for entry in found], categories, options)
            # LVIS annotates, on each photo, only the categories it lists.
            known = _annotation(image, regions, options.partial or "neg_category_ids" in image)
            if options.evaluation and "neg_category_ids" in image:
                known = replace(known, checked=_checked(image, categories, options))
            path = (images or annotations.parent) / _file_name(image)
        except BAD_ENTRY as exc:
            skipped.append(f"{annotations}: image {image.get('file_name', image.get('id'))!r}: {exc!r}")
            continue
        _add(samples, Sample(PhotoFile(path), source, known, feeds), options, skipped)
    labels = _labels((entry for found in entries.values() for entry in found), categories, options)
    return Dataset(tuple(samples), tuple(skipped), len(photos), {source: labels})


@dataclass(frozen=True)
class PanopticMask:
    """One segment of a panoptic PNG, where a pixel's id is R + 256 G + 65536 B."""

    path: Path
    segment: int

    def decode(self, size: Size) -> np.ndarray:
        ids = _segment_ids(self.path)
        if ids.shape != size:
            raise DataError(f"{self.path}: expected {size[1]}x{size[0]} pixels, got {ids.shape[1]}x{ids.shape[0]}")
        mask = ids == self.segment
        if not mask.any():
            raise DataError(f"{self.path}: no pixel of segment {self.segment}")
        return mask


@lru_cache(maxsize=2)  # a photo's segments are asked for one after another
def _segment_ids(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB")).astype(np.int32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path}: expected a readable PNG of segments: {exc}") from exc
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def read_panoptic(
    annotations: Path,
    images: Path,
    masks: Path | None = None,
    *,
    source: str | None = None,
    feeds: Feeds = EVERY_LOSS,
    options: CocoOptions = AS_WRITTEN,
) -> Dataset:
    """COCO panoptic: the JSON, the photos, the folder of PNGs (named as the JSON, beside it, when None).

    Things are objects, stuff is regions. Errors as `read_coco`.
    """
    pictures = masks or annotations.with_suffix("")
    _check_folder(images, "photos", annotations)
    _check_folder(pictures, "PNGs of segments", annotations)
    content, source = _load(annotations), source or annotations.stem
    skipped: list[str] = []
    categories = _categories(annotations, content, options, skipped)
    photos = {image.get("id"): image for image in _objects(annotations, content, "images", skipped)}
    samples: list[Sample] = []
    labels: set[Label] = set()
    entries = list(_objects(annotations, content, "annotations", skipped))
    for entry in entries:
        try:
            image, path = photos[entry["image_id"]], pictures / entry["file_name"]
            found = [s for s in entry["segments_info"] if options.evaluation or not s.get("iscrowd")]
            for segment in found:
                _check_entry(segment)
            labels |= _labels(found, categories, options)
            regions = _regions(found, [PanopticMask(path, int(s["id"])) for s in found], categories, options)
            known = _annotation(image, regions, options.partial)
            photo = PhotoFile(images / _file_name(image))
        except BAD_ENTRY as exc:
            skipped.append(f"{annotations}: annotation of image {entry.get('image_id')!r}: {exc!r}")
            continue
        _add(samples, Sample(photo, source, known, feeds), options, skipped)
    return Dataset(tuple(samples), tuple(skipped), len(entries), {source: frozenset(labels)})


# ----------------------------------------------------------------------------------------------------- pieces of a file


def _check_folder(folder: Path, what: str, annotations: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the {what} of {annotations} belong there")


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
            raise TypeError("images and annotations must be lists")
    except (OSError, RecursionError, *BAD_ENTRY) as exc:
        raise DataError(f"{file}: expected COCO-style JSON: {exc!r}") from exc
    return content


def _objects(file: Path, content: dict[str, Any], key: str, skipped: list[str]) -> Iterable[dict[str, Any]]:
    for entry in content.get(key) or ():
        if isinstance(entry, dict):
            yield entry
        else:
            skipped.append(f"{file}: {key}: expected an object, got {entry!r}"[:300])


def _check_entry(entry: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for what would break its photo's other entries too."""
    hash((entry["id"], entry.get("category_id"), entry.get("parent_id"), entry.get("obj_ann_id")))
    if entry.get("granularity") not in (None, *GRANULARITIES):
        raise ValueError(f"granularity {entry['granularity']!r}")


def _categories(file: Path, content: dict[str, Any], options: CocoOptions, skipped: list[str]) -> dict[Any, _Category]:
    rows = list(_objects(file, content, "categories", skipped))
    spelled = {row.get("id"): str(row.get("name", "")) for row in rows}
    found = {}
    for row in rows:
        try:
            found[row["id"]] = _category(row, spelled, options)
        except BAD_ENTRY as exc:
            skipped.append(f"{file}: category {row.get('id')!r}: {exc!r}")
    return found


def _category(row: dict[str, Any], spelled: Mapping[Any, str], options: CocoOptions) -> _Category:
    name, above = str(row["name"]), row.get("supercategory")
    whole, _, part = name.rpartition(":")
    of = row.get("part_of")
    if of is not None:
        whole = spelled.get(of, str(of))
    granularity = row.get("granularity")
    if granularity is None and of is not None:
        granularity = "part"
    elif granularity is None and above in ("PART", "OBJECT"):
        granularity = above.lower()
    elif granularity is None and whole:
        granularity = "part"
    elif granularity is None and options.granularity is None and row.get("isthing") == 0:
        granularity = "region"
    if granularity not in (None, *GRANULARITIES):
        raise ValueError(f"granularity {granularity!r}")
    if (granularity or options.granularity) == "part" and not whole and isinstance(above, str) and above != "PART":
        # PartImageNet: "Quadruped Head" under "Quadruped".
        whole, part = above, name.removeprefix(above).strip(" _-") or name
    label = part if whole and part else name
    meant = options.names
    return _Category(granularity, meant.get(name, meant.get(label, label)), meant.get(whole, whole) or None)


def _regions(
    entries: Sequence[dict[str, Any]],
    masks: Sequence[Segmentation],
    categories: Mapping[Any, _Category],
    options: CocoOptions,
) -> tuple[Region, ...]:
    kinds = [categories.get(entry.get("category_id"), _NAMELESS) for entry in entries]
    place = {entry["id"]: index for index, entry in enumerate(entries)}
    regions = []
    for index, (entry, mask, kind) in enumerate(zip(entries, masks, kinds, strict=True)):
        granularity, name, whole = _called(entry, kind, options)
        parent = place.get(entry.get("parent_id", entry.get("obj_ann_id")))
        if parent is None and granularity == "part" and kind.whole is not None:
            parent = _whole(entry, kind.whole, entries, kinds)
        region = Region(mask, granularity, name, None if parent == index else parent, whole=whole)
        if options.evaluation:
            region = replace(region, crowd=bool(entry.get("iscrowd")), area=_annotated_area(entry))
        regions.append(region)
    return tuple(regions)


def _called(entry: Mapping[str, Any], kind: _Category, options: CocoOptions) -> tuple[str, str | None, str | None]:
    """Granularity, name, and the name of the whole of a part whose category says it."""
    granularity = entry.get("granularity") or kind.granularity or options.granularity or "object"
    labels = entry.get("labels")
    if isinstance(labels, list) and labels and isinstance(labels[0], str):
        # Our own export: a colon in a label means nothing.
        return granularity, options.names.get(labels[0], labels[0]), None
    return granularity, kind.name or None, kind.whole if granularity == "part" else None


def _labels(
    entries: Iterable[Mapping[str, Any]], categories: Mapping[Any, _Category], options: CocoOptions
) -> frozenset[Label]:
    found = {_called(entry, categories.get(entry.get("category_id"), _NAMELESS), options) for entry in entries}
    return frozenset(Label(granularity, name, whole) for granularity, name, whole in found if name is not None)


def _annotated_area(entry: dict[str, Any]) -> float | None:
    try:
        area = float(entry["area"])
    except BAD_ENTRY:
        return None
    return area if area >= 0 else None


def _checked(image: Mapping[str, Any], categories: Mapping[Any, _Category], options: CocoOptions) -> Checked:
    def labels(key: str) -> frozenset[Label]:
        numbers = image.get(key) or ()
        return _labels([{"category_id": number} for number in numbers], categories, options)

    return Checked(labels("neg_category_ids"), labels("not_exhaustive_category_ids"))


def _whole(
    part: dict[str, Any], name: str, entries: Sequence[dict[str, Any]], kinds: Sequence[_Category]
) -> int | None:
    inner, candidates = _box(part), []
    for index, (entry, kind) in enumerate(zip(entries, kinds, strict=True)):
        if kind.name == name and entry is not part:
            outer = _box(entry)
            shared = np.minimum(inner[2:], outer[2:]) - np.maximum(inner[:2], outer[:2])
            if _area(shared) >= _HELD * _area(inner[2:] - inner[:2]):
                candidates.append((_area(outer[2:] - outer[:2]), index))
    return min(candidates)[1] if candidates else None


def _box(entry: dict[str, Any]) -> np.ndarray:
    """x0, y0, x1, y1; not a number where the entry has no box, which is then in no other and holds none."""
    try:
        x, y, width, height = map(float, entry["bbox"])
    except BAD_ENTRY:
        return np.full(4, np.nan)
    return np.array((x, y, x + width, y + height))


def _area(sides: np.ndarray) -> float:
    return float(sides.clip(min=0).prod())


def _annotation(image: dict[str, Any], regions: tuple[Region, ...], partial: bool) -> Annotation:
    return Annotation(int(image["width"]), int(image["height"]), regions, partial or bool(image.get("partial")))


def _file_name(image: dict[str, Any]) -> str:
    # LVIS gives an address instead: .../train2017/000000391895.jpg
    return image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])


def _add(samples: list[Sample], sample: Sample, options: CocoOptions, skipped: list[str]) -> None:
    if not sample.path.is_file():
        skipped.append(f"{sample.path}: no such photo")
    elif sample.regions or options.evaluation:
        samples.append(sample)
