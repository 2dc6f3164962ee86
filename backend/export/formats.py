"""The export as COCO instances, in the layout of SA-1B, and as a PNG for each mask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from backend.corrections.tasks import LabelledTask, categories, parents
from backend.export.staging import to_json
from backend.export.writer import Categories, Writer, decoded, mask_fields, own_fields, parent_ids
from backend.records import StoredRegion
from semsam_model.data.readers.photo_names import original_name
from semsam_model.data.split import SPLITS
from semsam_model.files import write_bytes


class CocoWriter(Writer):
    """`train.json`, `val.json`, `images/`."""

    def write(self, task: LabelledTask) -> None:
        name = self._place_photo(task, f"images/{task.sha256}")
        rows = f"{task.split}-annotations"
        self._staging.append(f"{task.split}-images", coco_image(task, name, partial=self._plan.partial))
        for row in coco_annotations(task, self._staging.count(rows) + 1, self._plan.categories):
            self._staging.append(rows, row)

    def finish(self) -> None:
        categories = to_json(category_rows(self._plan.categories))
        for split in SPLITS:
            info = {"description": f"{self._plan.project.title}, {split}", "source": str(self._plan.project.key)}
            self._staging.assemble(
                f"{split}.json",
                [f'{{"info":{to_json(info)},\n"licenses":[],\n"categories":{categories},\n"images":[\n'],
                self._staging.lines(f"{split}-images", ","),
                ['],\n"annotations":[\n'],
                self._staging.lines(f"{split}-annotations", ","),
                ["]}\n"],
            )


def category_rows(categories: Categories) -> list[dict[str, Any]]:
    """COCO's categories; the same name may be an object's and a part's."""
    return [
        {"id": number, "name": name, "supercategory": kind.upper(), "granularity": kind}
        for (name, kind), number in sorted(categories.items(), key=lambda item: item[1])
    ]


def coco_image(task: LabelledTask, file_name: str, *, partial: bool) -> dict[str, Any]:
    """The photo's entry. `partial`: not everything visible is annotated, as far as anyone has said."""
    height, width = task.size
    return {
        "id": task.id,
        "file_name": file_name,
        "width": width,
        "height": height,
        "sha256": task.sha256,
        "original_name": original_name(task.image_url),
        "url": task.image_url,
        "partial": partial,
    }


def coco_annotations(task: LabelledTask, first_id: int, numbers: Categories) -> list[dict[str, Any]]:
    """The entries of a photo's masks, compressed RLE; ids from `first_id`. `parent_id` is an id among them, or None."""
    kinds, parents = categories(task.latest), parent_ids(task.latest, first_id)
    return [
        {"id": first_id + index, "image_id": task.id, "category_id": numbers[kinds[index]], "iscrowd": 0}
        | mask_fields(region)
        | {"granularity": kinds[index][1], "parent_id": parents[index]}
        | own_fields(region)
        for index, region in enumerate(task.latest)
    ]


class Sa1bWriter(Writer):
    """`train/` and `val/` with a JSON for each task, and its photo beside it."""

    def write(self, task: LabelledTask) -> None:
        stem = f"{task.split}/sa_{task.name}"
        path = self._staging.out / f"{stem}.json"
        path.parent.mkdir(exist_ok=True)
        content = sa1b(task, Path(self._place_photo_beside(task, stem)).name)
        write_bytes(path, f"{to_json(content)}\n".encode())

    def finish(self) -> None:
        for split in SPLITS:
            (self._staging.out / split).mkdir(exist_ok=True)


def sa1b(task: LabelledTask, file_name: str) -> dict[str, Any]:
    """One photo's JSON in the layout of SA-1B; without `stability_score`, and without what is not known."""
    height, width = task.size
    rows = []
    kinds, parents = categories(task.latest), parent_ids(task.latest, 1)
    for index, region in enumerate(task.latest):
        row = {"id": index + 1} | mask_fields(region) | {"crop_box": [0, 0, width, height]}
        if region.score is not None:
            row["predicted_iou"] = region.score
        if region.click is not None:
            row["point_coords"] = [list(region.click)]
        rows.append(row | {"granularity": kinds[index][1], "parent_id": parents[index]} | own_fields(region))
    image = {"image_id": task.id, "width": width, "height": height, "file_name": file_name, "sha256": task.sha256}
    image["original_name"] = original_name(task.image_url)
    return {"image": image, "annotations": rows}


class MaskWriter(Writer):
    """`train/TASK/0001.png`, ..., what they show in `train.jsonl`; the same for val; `images/`."""

    def write(self, task: LabelledTask) -> None:
        folder = f"{task.split}/{task.name}"
        (self._staging.out / folder).mkdir(parents=True, exist_ok=True)
        files = [f"{folder}/{number:04}.png" for number in range(1, len(task.latest) + 1)]
        for file, region in zip(files, task.latest, strict=True):
            write_bytes(self._staging.out / file, mask_png(region))
        photo = self._place_photo(task, f"images/{task.sha256}")
        for row in mask_rows(task, files, photo):
            self._staging.append(task.split, row)

    def finish(self) -> None:
        for split in SPLITS:
            (self._staging.out / split).mkdir(exist_ok=True)
            self._staging.assemble(f"{split}.jsonl", self._staging.lines(split))


def mask_png(region: StoredRegion) -> bytes:
    """A PNG of the photo's size, one bit a pixel: white is the mask."""
    buffer = io.BytesIO()
    Image.fromarray(decoded(region)).save(buffer, "PNG")
    return buffer.getvalue()


def mask_rows(task: LabelledTask, files: Sequence[str], photo: str) -> list[dict[str, Any]]:
    """A line for each PNG, in the order of `task.latest`: its file, what it shows, and the file of what contains it.

    One line without a mask for a photo with nothing on it.
    """
    regions = task.latest
    shared = {"photo": photo, "sha256": task.sha256, "original_name": original_name(task.image_url), "task": task.id}
    if not regions:
        return [{"mask": None} | shared]
    return [
        {"mask": file}
        | shared
        | {
            "label": label,
            "granularity": granularity,
            "parent": None if parent is None else files[parent],
        }
        | own_fields(region)
        for region, file, parent, (label, granularity) in zip(
            regions, files, parents(regions), categories(regions), strict=True
        )
    ]
