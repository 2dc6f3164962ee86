"""The export as COCO instances: `train.json`, `val.json`, `images/`."""

from __future__ import annotations

from typing import Any

from backend.corrections.tasks import SPLITS, LabelledTask, categories
from backend.export.photos import ExportedPhotos
from backend.export.plan import Categories, Plan
from backend.export.regions import mask_fields, own_fields, parent_ids
from backend.export.staging import Staging, to_json


class CocoWriter:
    """`train.json`, `val.json`, `images/`."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        self._staging, self._plan, self._photos = staging, plan, ExportedPhotos(staging, plan)

    def write(self, task: LabelledTask) -> None:
        name = self._photos.place(task, f"images/{task.sha256}")
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
        "url": task.latest[0].image_url,
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
