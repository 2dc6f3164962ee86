"""The export as a PNG for each mask: `train/TASK/0001.png`, ..., `train.jsonl` says what they show; `images/`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from backend.corrections.tasks import SPLITS, LabelledTask, categories, parents
from backend.export.photos import ExportedPhotos
from backend.export.plan import Plan
from backend.export.regions import decoded, own_fields
from backend.export.staging import Staging
from backend.records import StoredRegion


class MaskWriter:
    """`train/TASK/0001.png`, ..., what they show in `train.jsonl`; the same for val; `images/`."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        self._staging, self._photos = staging, ExportedPhotos(staging, plan)

    def write(self, task: LabelledTask) -> None:
        folder = f"{task.split}/{task.name}"
        (self._staging.out / folder).mkdir(parents=True, exist_ok=True)
        files = [f"{folder}/{number:04}.png" for number in range(1, len(task.latest) + 1)]
        for file, region in zip(files, task.latest, strict=True):
            (self._staging.out / file).write_bytes(mask_png(region))
        photo = self._photos.place(task, f"images/{task.sha256}")
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
    """A line for each PNG, in the order of `task.latest`: its file, what it shows, and the file of what contains it."""
    regions = task.latest
    return [
        {
            "mask": file,
            "photo": photo,
            "sha256": task.sha256,
            "task": task.id,
            "label": label,
            "granularity": granularity,
            "parent": None if parent is None else files[parent],
        }
        | own_fields(region)
        for region, file, parent, (label, granularity) in zip(
            regions, files, parents(regions), categories(regions), strict=True
        )
    ]
