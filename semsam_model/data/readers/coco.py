"""COCO-style JSON -> samples: instances, LVIS, part sets (PACO, PartImageNet, Pascal-Part), our own exports.

What tells a part from an object, the first that is there:

    annotation `granularity`            object, part or region; our own exports
    category `granularity`              the same
    category `part_of`                  a part; name or id of the category of the whole
    category `supercategory`            PART or OBJECT, as PACO has them
    category name "whole:part"          a part, and its name is what follows the colon
    the source's `granularity` setting  for files that hold only parts, as PartImageNet's
    category `isthing` 0                a region: panoptic stuff
    otherwise                           an object

The name: the first of the annotation's `labels`, as in our own exports, else the category's. The whole that a category
names stays with the region: `Region.whole`.

The parent: `parent_id`, else PACO's `obj_ann_id`, else, where the category of the whole is known, the smallest
annotation of that category whose box holds nine tenths of the part's box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semsam_model.data.readers.entries import (
    AS_WRITTEN,
    ReadOptions,
    malformed,
    other_index,
    parse_json,
    problem,
    renamed,
    require_folder,
    split_name,
)
from semsam_model.data.samples import (
    BAD_ENTRY,
    FULL_SUPERVISION,
    Annotation,
    CocoMask,
    Dataset,
    FederatedLabels,
    PhotoFile,
    Region,
    Sample,
    Segmentation,
    Supervision,
)
from semsam_model.types import GRANULARITIES, Label

#: Least share of a part's box that the box of its whole holds.
_HELD = 0.9


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
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """One file of instances or parts. `file_name` starts at `images`, the folder of the JSON when None.

    Crowd annotations and photos without any mask are left out, except for evaluation. Broken entries and missing
    photos are skipped and named. Raises DataError when the file cannot be read, or the folder is missing.
    """
    if images is not None:
        require_folder(images, "photos", annotations)
    file = CocoFile(annotations, options, source, supervision)
    entries = _entries_by_image(file)
    photos = list(file.objects("images"))
    for image in photos:
        try:
            found = entries.get(image["id"], [])
            masks = [CocoMask(entry["segmentation"]) for entry in found]
            file.add_sample(images or annotations.parent, image, found, masks)
        except BAD_ENTRY as exc:
            file.skip(f"image {image.get('file_name', image.get('id'))!r}", exc)
    labels = file.labels(entry for found in entries.values() for entry in found)
    return Dataset(tuple(file.samples), tuple(file.skipped), len(photos), {file.source: labels})


def _entries_by_image(file: CocoFile) -> dict[Any, list[dict[str, Any]]]:
    """The annotations that count, by image id."""
    entries: dict[Any, list[dict[str, Any]]] = {}
    for entry in file.objects("annotations"):
        try:
            if not entry["segmentation"]:
                raise ValueError("no mask")
            check_entry(entry)
            if file.options.evaluation or not entry.get("iscrowd"):
                entries.setdefault(entry["image_id"], []).append(entry)
        except BAD_ENTRY as exc:
            file.skip(f"annotation {entry.get('id')!r}", exc)
    return entries


class CocoFile:
    """A parsed JSON. `samples` and `skipped` are filled as it is read; the latter says what is broken, and why."""

    def __init__(
        self, path: Path, options: ReadOptions, source: str | None, supervision: Supervision = FULL_SUPERVISION
    ) -> None:
        """Raises DataError when the file cannot be read."""
        with malformed(path, "COCO-style JSON"):
            self._content = parse_json(path.read_bytes(), dict)
            if not isinstance(self._content["images"], list) or not isinstance(self._content["annotations"], list):
                raise TypeError("images and annotations must be lists")
        self.path, self.options = path, options
        self.source, self.supervision = source or path.stem, supervision
        self.samples: list[Sample] = []
        self.skipped: list[str] = []
        self._categories = self._read_categories()

    def objects(self, key: str) -> Iterator[dict[str, Any]]:
        """The JSON objects of a list: images, annotations or categories. Other values are skipped."""
        for entry in self._content.get(key) or ():
            if isinstance(entry, dict):
                yield entry
            else:
                self.skipped.append(f"{self.path}: {key}: expected an object, got {entry!r}"[:300])

    def skip(self, what: str, exc: Exception) -> None:
        """Note that part of the file is left out."""
        self.skipped.append(problem(f"{self.path}: {what}", exc))

    def add_sample(
        self,
        photos: Path,
        image: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        masks: Sequence[Segmentation],
    ) -> None:
        """Append the sample of an image with these annotations and their masks. Raises one of BAD_ENTRY.

        A photo that is missing is skipped; outside evaluation, one without a mask is left out.
        """
        # LVIS annotates, on each photo, only the categories it lists.
        listed = "neg_category_ids" in image
        partial = self.options.partial or bool(image.get("partial")) or listed
        federated = self._federated(image) if listed and self.options.evaluation else None
        size, regions = (int(image["width"]), int(image["height"])), self._regions(entries, masks)
        # LVIS gives an address: .../train2017/000000391895.jpg
        name = image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])
        photo = photos / name
        if not photo.is_file():
            self.skipped.append(f"{photo}: no such photo")
        elif regions or self.options.evaluation:
            annotation = Annotation(*size, regions, partial, federated)
            self.samples.append(Sample(PhotoFile(photo), self.source, annotation, self.supervision))

    def _regions(self, entries: Sequence[dict[str, Any]], masks: Sequence[Segmentation]) -> tuple[Region, ...]:
        categories = [self._category_of(entry) for entry in entries]
        places = {entry["id"]: index for index, entry in enumerate(entries)}
        regions = []
        for index, (entry, mask, category) in enumerate(zip(entries, masks, categories, strict=True)):
            granularity, name, whole = self._describe(entry)
            key = entry.get("parent_id", entry.get("obj_ann_id"))
            parent = other_index(places, key, index)
            if key not in places and granularity == "part" and category.whole is not None:
                parent = _smallest_around(entry, category.whole, entries, categories)
            region = Region(mask, granularity, name, parent, whole=whole)
            if self.options.evaluation:
                region = replace(region, crowd=bool(entry.get("iscrowd")), area=_annotated_area(entry))
            regions.append(region)
        return tuple(regions)

    def _federated(self, image: Mapping[str, Any]) -> FederatedLabels:
        """The labels that LVIS and PACO looked for on a photo."""

        def labels(key: str) -> frozenset[Label]:
            return self.labels([{"category_id": number} for number in image.get(key) or ()])

        return FederatedLabels(labels("neg_category_ids"), labels("not_exhaustive_category_ids"))

    def labels(self, entries: Iterable[Mapping[str, Any]]) -> frozenset[Label]:
        """What annotations are called."""
        described = {self._describe(entry) for entry in entries}
        return frozenset(Label(granularity, name, whole) for granularity, name, whole in described if name is not None)

    def _category_of(self, entry: Mapping[str, Any]) -> _Category:
        return self._categories.get(entry.get("category_id"), _NAMELESS)

    def _describe(self, entry: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
        """Granularity, name, and the name of the whole of a part whose category says it."""
        category = self._category_of(entry)
        granularity = entry.get("granularity") or category.granularity or self.options.granularity or "object"
        labels = entry.get("labels")
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            # Our own export: a colon in a label means nothing.
            return granularity, renamed(self.options.names, labels[0]), None
        return granularity, category.name or None, category.whole if granularity == "part" else None

    def _read_categories(self) -> dict[Any, _Category]:
        rows = list(self.objects("categories"))
        spelled = {row.get("id"): str(row.get("name", "")) for row in rows}
        found = {}
        for row in rows:
            try:
                found[row["id"]] = _category(row, spelled, self.options)
            except BAD_ENTRY as exc:
                self.skip(f"category {row.get('id')!r}", exc)
        return found


def check_entry(entry: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for what would break its photo's other entries too."""
    hash((entry["id"], entry.get("category_id"), entry.get("parent_id"), entry.get("obj_ann_id")))
    if entry.get("granularity") not in (None, *GRANULARITIES):
        raise ValueError(f"granularity {entry['granularity']!r}")


def _category(row: dict[str, Any], spelled: Mapping[Any, str], options: ReadOptions) -> _Category:
    """spelled: category id -> name, of all categories."""
    name, above, of = str(row["name"]), row.get("supercategory"), row.get("part_of")
    whole, short = split_name(name)
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
        whole, short = above, name.removeprefix(above).strip(" _-") or name
    return _Category(granularity, renamed(options.names, name, short), renamed(options.names, whole or "") or None)


def _annotated_area(entry: Mapping[str, Any]) -> float | None:
    try:
        area = float(entry["area"])
    except BAD_ENTRY:
        return None
    return area if area >= 0 else None


def _smallest_around(
    part: Mapping[str, Any], name: str, entries: Sequence[Mapping[str, Any]], categories: Sequence[_Category]
) -> int | None:
    """Index of the smallest entry of a category whose box holds the part's box."""
    inner, around = _box(part), []
    for index, (entry, category) in enumerate(zip(entries, categories, strict=True)):
        if category.name == name and entry is not part:
            outer = _box(entry)
            shared = np.minimum(inner[2:], outer[2:]) - np.maximum(inner[:2], outer[:2])
            if _area(shared) >= _HELD * _area(inner[2:] - inner[:2]):
                around.append((_area(outer[2:] - outer[:2]), index))
    return min(around)[1] if around else None


def _box(entry: Mapping[str, Any]) -> np.ndarray:
    """x0, y0, x1, y1; NaN where the entry has no box, so that it lies in no other and holds none."""
    try:
        x, y, width, height = map(float, entry["bbox"])
    except BAD_ENTRY:
        return np.full(4, np.nan)
    return np.array((x, y, x + width, y + height))


def _area(sides: np.ndarray) -> float:
    return float(sides.clip(min=0).prod())
