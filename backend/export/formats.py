"""What one labelled photo is in each format of the export: plain values, no files, no store.

Frame: pixels of the EXIF-oriented photo. What only we write beside a format's own fields is the same everywhere:
`granularity`, `parent_id`, `level`, `labels`, `provenance`.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from backend.corrections.tasks import LabelledTask, category, granularity
from backend.errors import BadRequest
from backend.label_studio.label_config import LabelConfig
from backend.records import StoredRegion
from semsam_model.masks.codecs import decode_coco_rle, encode_bitmask, encode_brush_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import LEVELS

#: (label, granularity) -> id, from 1.
Categories = Mapping[tuple[str, str], int]


def category_rows(categories: Categories) -> list[dict[str, Any]]:
    """COCO's categories; the same name may be an object's and a part's."""
    return [
        {"id": number, "name": name, "supercategory": kind.upper(), "granularity": kind}
        for (name, kind), number in sorted(categories.items(), key=lambda item: item[1])
    ]


def provenance(region: StoredRegion) -> dict[str, Any]:
    """Where a region comes from and what became of what was offered; a field that is not known is left out."""
    known = {
        "annotation": region.key.annotation,
        "region": region.key.region,
        "outcome": region.outcome,
        "annotator": region.annotator,
        "updated_at": region.updated_at.isoformat(),
        "ground_truth": region.ground_truth or None,
        "model_version": region.model_version,
        "rank": region.rank,
        "score": region.score,
        "iou_with_offer": region.iou_with_offer,
        "seconds": region.seconds,
        "click": region.click,
        "preannotated": region.preannotated or None,
    }
    return {name: value for name, value in known.items() if value is not None}


# ----------------------------------------------------------------------------------------------------------------- COCO


def coco_image(task: LabelledTask, file_name: str, *, partial: bool) -> dict[str, Any]:
    """The photo's entry. `partial`: not everything visible is annotated, as far as anyone has said."""
    height, width = task.size
    return {
        "id": task.id,
        "file_name": file_name,
        "width": width,
        "height": height,
        "sha256": task.sha256,
        "url": task.latest[0].image_url,
        "partial": partial,
    }


def coco_annotations(task: LabelledTask, first_id: int, categories: Categories) -> list[dict[str, Any]]:
    """The entries of a photo's masks, compressed RLE; ids from `first_id`. `parent_id` is an id among them, or None."""
    ids = {region.key.region: first_id + index for index, region in enumerate(task.latest)}
    rows = []
    for region in task.latest:
        own = ids[region.key.region]
        kind = category(region, task.latest)
        rows.append(
            {"id": own, "image_id": task.id, "category_id": categories[kind], "iscrowd": 0}
            | _mask_fields(region)
            | {"granularity": kind[1]}
            | _ours(region, parent=None if region.parent == region.key.region else ids.get(region.parent or ""))
        )
    return rows


def _mask_fields(region: StoredRegion) -> dict[str, Any]:
    rle = {"size": [region.height, region.width], "counts": str(region.mask["counts"])}
    coded = rle | {"counts": str(region.mask["counts"]).encode("ascii")}
    box = [int(side) for side in coco_mask.toBbox(coded).tolist()]
    return {"segmentation": rle, "area": int(coco_mask.area(coded)), "bbox": box}


def _ours(region: StoredRegion, parent: int | None) -> dict[str, Any]:
    return {
        "parent_id": parent,
        "level": region.level,
        "labels": list(region.labels),
        "provenance": provenance(region),
    }


# ---------------------------------------------------------------------------------------------------------------- SA-1B


def sa1b(task: LabelledTask, file_name: str) -> dict[str, Any]:
    """One photo's JSON in the layout of SA-1B; without `stability_score` and `point_coords` where nobody knows them."""
    height, width = task.size
    ids = {region.key.region: index for index, region in enumerate(task.latest, start=1)}
    rows = []
    for region in task.latest:
        row = {"id": ids[region.key.region]} | _mask_fields(region) | {"crop_box": [0, 0, width, height]}
        if region.score is not None:
            row["predicted_iou"] = region.score
        if region.click is not None:
            row["point_coords"] = [list(region.click)]
        parent = None if region.parent == region.key.region else ids.get(region.parent or "")
        rows.append(row | {"granularity": granularity(region, task.latest)} | _ours(region, parent))
    image = {"image_id": task.id, "width": width, "height": height, "file_name": file_name, "sha256": task.sha256}
    return {"image": image, "annotations": rows}


# ----------------------------------------------------------------------------------------------------------------- PNGs


def mask_png(region: StoredRegion) -> bytes:
    """A PNG of the photo's size, one bit a pixel: white is the mask."""
    buffer = io.BytesIO()
    Image.fromarray(_decoded(region)).save(buffer, "PNG")
    return buffer.getvalue()


def mask_rows(task: LabelledTask, files: Sequence[str], photo: str) -> list[dict[str, Any]]:
    """A line for each PNG, in the order of `task.latest`: its file, what it shows, and the file of what contains it."""
    of = {region.key.region: file for region, file in zip(task.latest, files, strict=True)}
    rows = []
    for region, file in zip(task.latest, files, strict=True):
        label, kind = category(region, task.latest)
        rows.append(
            {
                "mask": file,
                "photo": photo,
                "sha256": task.sha256,
                "task": task.id,
                "label": label,
                "granularity": kind,
                "parent": None if region.parent == region.key.region else of.get(region.parent or ""),
                "level": region.level,
                "labels": list(region.labels),
                "provenance": provenance(region),
            }
        )
    return rows


def _decoded(region: StoredRegion) -> np.ndarray:
    return np.ascontiguousarray(decode_coco_rle(dict(region.mask), (region.height, region.width)))


# --------------------------------------------------------------------------------------------------------- Label Studio

_NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OWN_CONFIG = """<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="mask" toName="image" smart="false" choice="single"/>
  <Choices name="level" toName="image" perRegion="true" choice="single" showInline="true"/>
</View>"""


def importing_config(project_config: str, categories: Categories) -> str:
    """The labeling config that the tasks below fit: the project's own where its masks are brush or bitmask.

    Other controls cannot hold every mask to the pixel; then a config with a brush and the labels that occur.
    """
    with contextlib.suppress(BadRequest):
        own = LabelConfig.parse(project_config)
        brush = own.answer is not None and own.answer.tag in ("brushlabels", "bitmasklabels")
        if brush and re.fullmatch(r"\$\w+", own.image_value or ""):
            return project_config
    root = ElementTree.fromstring(_OWN_CONFIG)
    labels, choices = root[1], root[2]
    for name, kind in sorted(categories):
        if name not in {"", *(label.get("value") for label in labels)} and not _NOT_IN_XML.search(name):
            ElementTree.SubElement(labels, "Label", {"value": name} | ({"kind": kind} if kind != "region" else {}))
    for level in LEVELS:
        ElementTree.SubElement(choices, "Choice", {"value": f"level {level}"})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def label_studio_task(task: LabelledTask, image: str, config: LabelConfig) -> dict[str, Any]:
    """A task to import where `config` is the labeling config: every annotation, masks equal to the pixel.

    `image`: what the task shall name as its photo.
    """
    field = (config.image_value or "$image").removeprefix("$")
    return {
        "data": {field: image},
        "meta": {"semsam": {"sha256": task.sha256, "task": task.id, "split": task.split}},
        "annotations": [
            {"ground_truth": regions[0].ground_truth, "result": list(_result(regions, config))}
            for regions in task.annotations
        ],
    }


def _result(regions: Sequence[StoredRegion], config: LabelConfig) -> Iterator[dict[str, Any]]:
    if config.answer is None:
        return
    tag = config.answer.tag
    for region in regions:
        size = region.height, region.width
        crop, box = crop_mask(_decoded(region))
        if tag == "bitmasklabels":
            value: dict[str, Any] = {"imageDataURL": encode_bitmask(crop, box, size)}
        else:
            value = {"format": "rle", "rle": encode_brush_rle(crop, box, size)}
        if region.labels:
            value[tag] = list(region.labels)
        shared = {
            "id": region.key.region,
            "to_name": config.image_name,
            "original_width": region.width,
            "original_height": region.height,
            "image_rotation": 0,
        }
        row: dict[str, Any] = shared | {
            "type": tag,
            "from_name": config.answer.name,
            "origin": "manual",
            "value": value,
            "meta": {"granularity": granularity(region, regions), "level": region.level} | provenance(region),
        }
        if region.score is not None:
            row["score"] = region.score
        if region.parent is not None:
            row["parentID"] = region.parent
        yield row
        if config.level and region.level is not None and region.level in config.level_values:
            choices = [config.level_values[region.level]]
            yield shared | {"type": "choices", "from_name": config.level, "value": {"choices": choices}}
