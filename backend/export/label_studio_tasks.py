"""The export as Label Studio imports it: tasks with every annotation, masks equal to the pixel.

`train.json` and `val.json` to import, `labeling.xml` for the project that they go into, `images/`.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from backend.corrections.addresses import is_kept_elsewhere
from backend.corrections.tasks import LabelledTask, categories
from backend.errors import BadRequest
from backend.export.staging import Staging
from backend.export.writer import Categories, Plan, Writer, decoded, provenance
from backend.label_studio.label_config import LabelConfig
from backend.records import StoredRegion
from semsam_model.data.readers.photo_names import original_name
from semsam_model.data.split import SPLITS
from semsam_model.files import write_bytes
from semsam_model.masks.codecs import encode_bitmask, encode_brush_rle
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import LEVELS

_NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OWN_CONFIG = """<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="mask" toName="image" smart="false" choice="single"/>
  <Choices name="level" toName="image" perRegion="true" choice="single" showInline="true"/>
</View>"""


class LabelStudioWriter(Writer):
    """`train.json` and `val.json` to import, `labeling.xml` for the project that they go into, `images/`."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        super().__init__(staging, plan)
        self._xml = importing_config(plan.project.label_config, plan.categories)
        self._config = LabelConfig.parse(self._xml)

    def write(self, task: LabelledTask) -> None:
        address = task.image_url or ""
        if self._plan.images == "copy":
            # as Label Studio names a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
            address = f"/data/local-files/?d={self._place_photo(task, f'images/{task.sha256}')}"
        elif is_kept_elsewhere(address) and (kept := self._plan.photos.find(task.sha256)):
            with kept:
                picture = base64.b64encode(kept.read()).decode()
            address = f"{address.partition(';')[0]};base64,{picture}"
        self._staging.append(task.split, label_studio_task(task, address, self._config))

    def finish(self) -> None:
        for split in SPLITS:
            self._staging.assemble(f"{split}.json", ["[\n"], self._staging.lines(split, ","), ["]\n"])
        write_bytes(self._staging.out / "labeling.xml", self._xml.encode())


def importing_config(project_config: str, numbers: Categories) -> str:
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
    for name, kind in sorted(numbers):
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
        "meta": {
            "semsam": {
                "sha256": task.sha256,
                "original_name": original_name(task.image_url),
                "task": task.id,
                "split": task.split,
            }
        },
        "annotations": [
            {"ground_truth": regions[0].ground_truth, "result": list(_result(regions, config))}
            for regions in task.annotations
        ]
        or [{"ground_truth": False, "result": []}],
    }


def _result(regions: Sequence[StoredRegion], config: LabelConfig) -> Iterator[dict[str, Any]]:
    """Rows of one annotation: a mask for each region, and its level where the config has a control for it."""
    if config.answer is None:
        return
    for region, (_, granularity) in zip(regions, categories(regions), strict=True):
        shared = {
            "id": region.key.region,
            "to_name": config.image_name,
            "original_width": region.width,
            "original_height": region.height,
            "image_rotation": 0,
        }
        row: dict[str, Any] = shared | {
            "type": config.answer.tag,
            "from_name": config.answer.name,
            "origin": "manual",
            "value": _value(region, config.answer.tag),
            "meta": {"granularity": granularity, "level": region.level} | provenance(region),
        }
        if region.score is not None:
            row["score"] = region.score
        if region.parent is not None:
            row["parentID"] = region.parent
        yield row
        if config.level and region.level is not None and region.level in config.level_values:
            choices = [config.level_values[region.level]]
            yield shared | {"type": "choices", "from_name": config.level, "value": {"choices": choices}}


def _value(region: StoredRegion, tag: str) -> dict[str, Any]:
    """The mask and the labels, as the control `tag` writes them."""
    size = region.height, region.width
    crop, box = crop_mask(decoded(region))
    if tag == "bitmasklabels":
        value: dict[str, Any] = {"imageDataURL": encode_bitmask(crop, box, size)}
    else:
        value = {"format": "rle", "rle": encode_brush_rle(crop, box, size)}
    return value | ({tag: list(region.labels)} if region.labels else {})
