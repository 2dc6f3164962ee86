"""The export in the layout of SA-1B: in `train/` and `val/` a JSON for each task, and its photo beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backend.corrections.tasks import SPLITS, LabelledTask, categories
from backend.export.photos import ExportedPhotos
from backend.export.plan import Plan
from backend.export.regions import mask_fields, own_fields, parent_ids
from backend.export.staging import Staging, to_json


class Sa1bWriter:
    """`train/` and `val/` with a JSON for each task, and its photo beside it."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        self._staging, self._photos = staging, ExportedPhotos(staging, plan)

    def write(self, task: LabelledTask) -> None:
        stem = f"{task.split}/sa_{task.name}"
        path = self._staging.out / f"{stem}.json"
        path.parent.mkdir(exist_ok=True)
        content = sa1b(task, Path(self._photos.beside(task, stem)).name)
        path.write_text(to_json(content) + "\n", encoding="utf-8")

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
    return {"image": image, "annotations": rows}
