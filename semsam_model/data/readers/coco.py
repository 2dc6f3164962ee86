"""COCO-style JSON -> samples: instances, LVIS, part sets (PACO, PartImageNet, Pascal-Part), our own exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from semsam_model.data.readers.coco_file import AS_WRITTEN, CocoFile, CocoOptions, check_entry, file_name
from semsam_model.data.readers.entries import require_folder
from semsam_model.data.samples import FULL_SUPERVISION, Dataset, Sample, Supervision
from semsam_model.data.segmentations import BAD_ENTRY, CocoMask


def read_coco(
    annotations: Path,
    images: Path | None = None,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: CocoOptions = AS_WRITTEN,
) -> Dataset:
    """One file of instances or parts, see `coco_file`. `file_name` starts at `images`, the JSON's own folder when None.

    Crowd annotations and photos without any mask are left out, except for evaluation. Broken entries and missing
    photos are skipped and named. Raises DataError when the file cannot be read, or the folder is missing.
    """
    if images is not None:
        require_folder(images, "photos", annotations)
    file = CocoFile(annotations, options, source, supervision)
    entries = _entries_by_image(file)
    samples: list[Sample] = []
    photos = list(file.objects("images"))
    for image in photos:
        try:
            found = entries.get(image["id"], [])
            regions = file.regions(found, [CocoMask(entry["segmentation"]) for entry in found])
            annotation = file.annotation(image, regions)
            if "neg_category_ids" in image:  # LVIS annotates, on each photo, only the categories it lists
                federated = file.federated(image) if options.evaluation else None
                annotation = replace(annotation, partial=True, federated=federated)
            photo = (images or annotations.parent) / file_name(image)
        except BAD_ENTRY as exc:
            file.skip(f"image {image.get('file_name', image.get('id'))!r}", exc)
            continue
        file.add_sample(samples, photo, annotation)
    labels = file.labels(entry for found in entries.values() for entry in found)
    return Dataset(tuple(samples), tuple(file.skipped), len(photos), {file.source: labels})


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
