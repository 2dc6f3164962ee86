"""COCO panoptic -> samples: a JSON of segments, and for every photo a PNG of their ids."""

from __future__ import annotations

from pathlib import Path

from semsam_model.data.readers.coco_file import AS_WRITTEN, CocoFile, CocoOptions, check_entry, file_name
from semsam_model.data.readers.entries import require_folder
from semsam_model.data.readers.id_maps import IdMask
from semsam_model.data.samples import FULL_SUPERVISION, Dataset, Sample, Supervision
from semsam_model.data.segmentations import BAD_ENTRY
from semsam_model.types import Label


def read_panoptic(
    annotations: Path,
    images: Path,
    masks: Path | None = None,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: CocoOptions = AS_WRITTEN,
) -> Dataset:
    """The JSON, the photos, the folder of PNGs (named as the JSON, beside it, when None).

    Things are objects, stuff is regions. Errors as `read_coco`.
    """
    pngs = masks or annotations.with_suffix("")
    require_folder(images, "photos", annotations)
    require_folder(pngs, "PNGs of segments", annotations)
    file = CocoFile(annotations, options, source, supervision)
    photos = {image.get("id"): image for image in file.objects("images")}
    samples: list[Sample] = []
    labels: set[Label] = set()
    entries = list(file.objects("annotations"))
    for entry in entries:
        try:
            image, png = photos[entry["image_id"]], pngs / entry["file_name"]
            segments = [s for s in entry["segments_info"] if options.evaluation or not s.get("iscrowd")]
            for segment in segments:
                check_entry(segment)
            labels |= file.labels(segments)
            regions = file.regions(segments, [IdMask(png, int(s["id"]), "panoptic") for s in segments])
            annotation, photo = file.annotation(image, regions), images / file_name(image)
        except BAD_ENTRY as exc:
            file.skip(f"annotation of image {entry.get('image_id')!r}", exc)
            continue
        file.add_sample(samples, photo, annotation)
    return Dataset(tuple(samples), tuple(file.skipped), len(entries), {file.source: frozenset(labels)})
