"""Small files in the formats of others, for the tests of readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semsam_model.data.samples import Sample
from tests.semsam_model.houses import rle

SIZE = (24, 32)


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


WHOLE, PART, OTHER = box_mask(2, 2, 20, 20), box_mask(4, 4, 9, 9), box_mask(22, 3, 30, 12)


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
    return path


def coco_file(folder: Path, categories: list[dict], annotations: list[dict], **image: Any) -> Path:
    photo(folder / "images" / "a.png")
    for number, annotation in enumerate(annotations, start=1):
        mask = annotation.pop("mask")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        annotation |= {"image_id": 1, "segmentation": rle(mask), "bbox": [int(side) for side in box]}
        annotation.setdefault("id", number)
    image = {"id": 1, "file_name": "images/a.png", "height": SIZE[0], "width": SIZE[1]} | image
    content = {"images": [image], "categories": categories, "annotations": annotations}
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


def described(sample: Sample) -> list[tuple[str, str | None, int | None]]:
    return [(region.granularity, region.name, region.parent) for region in sample.regions]


def sa1b_files(folder: Path, count: int) -> None:
    for number in range(count):
        photo(folder / f"sa_{number}.jpg", number)
        masks = (box_mask(number, 1, number + 5, 9), box_mask(1, 2, 30, 3 + number))
        content = {
            "image": {"image_id": number, "width": SIZE[1], "height": SIZE[0], "file_name": f"sa_{number}.jpg"},
            "annotations": [{"id": k, "segmentation": rle(mask)} for k, mask in enumerate(masks)],
        }
        (folder / f"sa_{number}.json").write_text(json.dumps(content))
