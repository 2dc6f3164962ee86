"""The export as YOLO segmentation: `data.yaml`, `images/SPLIT/`, and a TXT for each photo in `labels/SPLIT/`.

Class, outline, and nothing else: parents, levels and scores have no place there. A label that objects and parts have is
two classes.
"""

from __future__ import annotations

from collections import Counter

from PIL import Image

from backend.corrections.tasks import LabelledTask, categories
from backend.export.staging import Staging
from backend.export.writer import Plan, Writer, decoded, photo_suffix
from semsam_model.data.samples import decode_photo
from semsam_model.data.split import SPLITS
from semsam_model.files import atomic_write, write_bytes
from semsam_model.masks.geometry import crop_mask
from semsam_model.masks.yolo import YOLO_UNREAD, yolo_line, yolo_yaml

_NAMELESS = "unnamed"  #: class of masks without a label


class YoloWriter(Writer):
    """`data.yaml`, `images/train/`, `labels/train/`, the same for val."""

    def __init__(self, staging: Staging, plan: Plan) -> None:
        super().__init__(staging, plan)
        keys = sorted(plan.categories, key=lambda key: plan.categories[key])
        self._number = {key: number for number, key in enumerate(keys)}
        same = Counter(label for label, _ in keys)
        self._names = [(label or _NAMELESS) + (f" ({kind})" if same[label] > 1 else "") for label, kind in keys]
        for split in SPLITS:
            for folder in ("images", "labels"):
                (staging.out / folder / split).mkdir(parents=True, exist_ok=True)

    def write(self, task: LabelledTask) -> None:
        self._place_photo_to_train(task, f"images/{task.split}/{task.name}")
        lines = [
            yolo_line(self._number[key], *crop_mask(decoded(region)), task.size)
            for region, key in zip(task.latest, categories(task.latest), strict=True)
        ]
        text = "".join(f"{line}\n" for line in lines if line)
        write_bytes(self._staging.out / f"labels/{task.split}/{task.name}.txt", text.encode("ascii"))

    def _place_photo_to_train(self, task: LabelledTask, stem: str) -> None:
        """As PNG where it is of a format that the tool's users cannot train on."""
        kept = None if self._plan.images == "none" else self._plan.photos.find(task.sha256)
        if kept is not None:
            with kept:
                if photo_suffix(kept).removeprefix(".") in YOLO_UNREAD:
                    pixels = decode_photo(kept.read(), f"photo {task.sha256}")
                    with atomic_write(self._staging.out / f"{stem}.png") as fresh:
                        Image.fromarray(pixels).save(fresh, "PNG")
                    return
        self._place_photo_beside(task, stem)

    def finish(self) -> None:
        folders = {split: split for split in SPLITS}
        write_bytes(self._staging.out / "data.yaml", yolo_yaml(self._names, folders).encode())
