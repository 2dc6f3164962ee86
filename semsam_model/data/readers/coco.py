"""COCO-style JSON -> samples: instances, LVIS, part sets (PACO, PartImageNet, Pascal-Part), our own exports.

`readers.coco_categories` says what is an object and what a part, `readers.coco_entries` which forms of values are read.
Every annotation is in a sample or in what is left out, with the reason; nothing is guessed: images that share an id
get no mask, since nobody knows whose they are.

The parent: `parent_id`, else PACO's `obj_ann_id`, else, where the category of the whole is known, the smallest
annotation of that category whose box holds nine tenths of the part's box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from semsam_model.data.readers.coco_categories import Categories, smallest_around
from semsam_model.data.readers.coco_entries import coco_mask, is_crowd, same_id
from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, malformed, other_index, require_folder
from semsam_model.data.readers.file_kinds import COCO, parse_annotations
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PhotoFolder
from semsam_model.data.samples import (
    BAD_ENTRY,
    FULL_SUPERVISION,
    Annotation,
    Dataset,
    FederatedLabels,
    PhotoFile,
    Region,
    Sample,
    Segmentation,
    Supervision,
)
from semsam_model.errors import DataError
from semsam_model.types import GRANULARITIES, Label

CROWDS = "marked as a crowd (iscrowd) and left out; where each is one thing, as in files of CVAT, set `crowd: single`"


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
    file.look_for_photos(images or annotations.parent)
    entries = _entries_by_image(file)
    photos = list(file.objects("images"))
    labels = file.labels(entry for found in entries.values() for entry in found)
    for image in photos:
        found = entries.pop(image_key(image), [])
        size = _declared_size(image)
        usable, masks = list[dict[str, Any]](), list[Segmentation]()
        for entry in found:
            try:
                mask, broken = coco_mask(entry["segmentation"], size)
            except BAD_ENTRY as exc:
                file.losses.add("annotation", entry.get("id"), exc)
            else:
                usable.append(entry)
                masks.append(mask)
                if broken:
                    file.losses.add("annotation", entry.get("id"), "a ring that is no polygon is left out", 0)
        file.add_sample(image, usable, masks)
    for key, found in entries.items():
        for entry in found:
            file.losses.add("annotation", entry.get("id"), f"its image {key!r} is not in the file")
    return file.dataset(len(photos), labels)


def _entries_by_image(file: CocoFile) -> dict[Any, list[dict[str, Any]]]:
    """The annotations that count, by image id."""
    entries: dict[Any, list[dict[str, Any]]] = {}
    for entry in file.objects("annotations", masks=1):
        try:
            if not entry.get("segmentation"):
                raise ValueError("no mask")
            check_entry(entry)
            if file.leaves_out(entry):
                file.losses.add("annotation", entry.get("id"), CROWDS)
                continue
            entries.setdefault(same_id(entry["image_id"]), []).append(entry)
        except BAD_ENTRY as exc:
            file.losses.add("annotation", entry.get("id"), exc)
            continue
        if problem := file.categories.problem(entry):
            file.losses.add("annotation", entry.get("id"), problem, 0)
    return entries


def image_key(image: Mapping[str, Any]) -> Any:
    """The id of an image, as annotations name it; an object that equals nothing where it has none."""
    try:
        return same_id(image["id"])
    except BAD_ENTRY:
        return object()


class CocoFile:
    """A parsed JSON. `samples` and `losses` are filled as it is read; the latter say what is left out, and why."""

    def __init__(
        self,
        path: Path,
        options: ReadOptions,
        source: str | None,
        supervision: Supervision = FULL_SUPERVISION,
        form: str = COCO,
    ) -> None:
        """form: of `file_kinds`. Raises DataError when the file cannot be read, or is of another form."""
        self._content = parse_annotations(path, form, dict)
        with malformed(path, form):
            if not isinstance(self._content["images"], list) or not isinstance(self._content["annotations"], list):
                raise TypeError("images and annotations must be lists")
        self.options, self.losses = options, Losses(path)
        self.source, self.supervision = source or path.stem, supervision
        self.samples: list[Sample] = []
        self.categories = Categories(list(self.objects("categories")), options, self.losses)
        names: dict[Any, set[str]] = {}
        for image in self._images():
            names.setdefault(image_key(image), set()).add(_file_name(image) or "")
        #: Ids of several images with different photos.
        self._shared = {key for key, spelled in names.items() if len(spelled) > 1}
        self._added = Counter[Any]()
        self._bare = 0

    def objects(self, key: str, masks: int = 0) -> Iterator[dict[str, Any]]:
        """The JSON objects of a list: images, annotations or categories. Other values are left out, as so many masks"""
        for entry in self._content.get(key) or ():
            if isinstance(entry, dict):
                yield entry
            else:
                self.losses.add("entry", repr(entry), f"{key}: expected an object", masks)

    def _images(self) -> Iterator[dict[str, Any]]:
        return (image for image in self._content["images"] if isinstance(image, dict))

    def look_for_photos(self, folder: Path) -> None:
        """Where the names of photos start."""
        self._photos = PhotoFolder(folder, filter(None, map(_file_name, self._images())))

    def leaves_out(self, entry: Mapping[str, Any]) -> bool:
        """Whether an annotation is a crowd's and does not count. Raises ValueError for a flag that cannot be read."""
        return is_crowd(entry) and not self.options.evaluation and self.options.crowd == "group"

    def add_sample(
        self, image: Mapping[str, Any], entries: Sequence[dict[str, Any]], masks: Sequence[Segmentation]
    ) -> None:
        """Append the sample of an image with these annotations and their masks; what is wrong is noted.

        A photo that is missing is left out; outside evaluation, one without a mask too.
        """
        key, name = image_key(image), _file_name(image)
        self._added[key] += 1
        try:
            if key in self._shared:
                raise DataError(f"id {key!r} is that of several images: nobody knows whose its masks are")
            if self._added[key] > 1:
                raise DataError(f"id {key!r} comes again, with the same photo")
            if name is None:
                raise DataError("expected a file_name")
            photo = PhotoFile(self._photos.path(name))
            sample = self._sample(photo, image, entries, masks)
        except (DataError, *BAD_ENTRY) as exc:
            self.losses.add("image", repr(name if name is not None else image.get("id")), exc, len(masks))
            return
        if sample.regions or self.options.evaluation:
            self.samples.append(sample)
        else:
            self._bare += 1

    def _sample(
        self,
        photo: PhotoFile,
        image: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        masks: Sequence[Segmentation],
    ) -> Sample:
        # LVIS annotates, on each photo, only the categories it lists.
        listed = "neg_category_ids" in image
        partial = self.options.partial or bool(image.get("partial")) or listed
        federated = self._federated(image) if listed and self.options.evaluation else None
        height, width = _declared_size(image) or photo.size()
        annotation = Annotation(width, height, self._regions(entries, masks), partial, federated)
        return Sample(photo, self.source, annotation, self.supervision)

    def dataset(self, photos: int, labels: frozenset[Label]) -> Dataset:
        """What was read. photos: how many the file lists."""
        skipped = self.losses.lines
        if self._bare and not self.samples:
            skipped += (f"{self.losses.where}: {self._bare} photos without a mask that can be used",)
        return Dataset(tuple(self.samples), skipped, photos, {self.source: labels}, self.losses.masks)

    def _regions(self, entries: Sequence[dict[str, Any]], masks: Sequence[Segmentation]) -> tuple[Region, ...]:
        categories = [self.categories.of(entry) for entry in entries]
        keys = [same_id(entry.get("id")) for entry in entries]
        counts = Counter(keys)
        # an id that several have says nothing about whose part it is
        places = {key: index for index, key in enumerate(keys) if key is not None and counts[key] == 1}
        regions = []
        for index, (entry, mask, category) in enumerate(zip(entries, masks, categories, strict=True)):
            granularity, name, whole = self.categories.describe(entry)
            key = same_id(entry.get("parent_id", entry.get("obj_ann_id")))
            parent = other_index(places, key, index)
            if key not in places and granularity == "part" and category.whole is not None:
                parent = smallest_around(entry, category.whole, entries, categories)
            if key is not None and counts[key] > 1:
                self.losses.add("annotation", entry.get("id"), f"parent {key!r} is the id of several: no parent", 0)
            region = Region(mask, granularity, name, parent, whole=whole)
            if self.options.evaluation:
                crowd = is_crowd(entry) and self.options.crowd == "group"
                region = replace(region, crowd=crowd, area=_annotated_area(entry))
            regions.append(region)
        return tuple(regions)

    def _federated(self, image: Mapping[str, Any]) -> FederatedLabels:
        """The labels that LVIS and PACO looked for on a photo."""

        def labels(key: str) -> frozenset[Label]:
            return self.labels([{"category_id": number} for number in image.get(key) or ()])

        return FederatedLabels(labels("neg_category_ids"), labels("not_exhaustive_category_ids"))

    def labels(self, entries: Iterable[Mapping[str, Any]]) -> frozenset[Label]:
        """What annotations are called."""
        described = {self.categories.describe(entry) for entry in entries}
        return frozenset(Label(granularity, name, whole) for granularity, name, whole in described if name is not None)


def _file_name(image: Mapping[str, Any]) -> str | None:
    """What the photo is called; an address where that is all there is, as in LVIS; COCO Annotator writes `path`."""
    names = (image.get(key) for key in ("file_name", "coco_url", "path", "flickr_url"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _declared_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W); None where the file does not say it. Raises ValueError for what is no number."""
    try:
        height, width = int(image["height"]), int(image["width"])
    except BAD_ENTRY:
        return None
    return (height, width) if height > 0 and width > 0 else None


def check_entry(entry: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for what would break its photo's other entries too."""
    for key in ("id", "category_id", "parent_id", "obj_ann_id"):
        same_id(entry.get(key))
    is_crowd(entry)
    if entry.get("granularity") not in (None, *GRANULARITIES):
        raise ValueError(f"granularity {entry['granularity']!r}")


def _annotated_area(entry: Mapping[str, Any]) -> float | None:
    try:
        area = float(entry["area"])
    except BAD_ENTRY:
        return None
    return area if area >= 0 else None
