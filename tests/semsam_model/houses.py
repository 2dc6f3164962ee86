"""Small annotated photos for the tests of data and batches: a house with two windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Sample
from semsam_model.training.batches import TrainingBatches
from semsam_model.training.config import SamplingConfig, Stage

FILL = (128.0, 128.0, 128.0)


def rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def write_source(folder: Path, source: str, photos: int, *, partial: bool = False) -> dict:
    """A house with two windows in every photo; returns the JSON that was written."""
    size = (48, 64)
    (folder / source).mkdir(parents=True)
    images, annotations = [], []
    for number in range(photos):
        name = f"{source}/{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        images.append({"id": number, "file_name": name, "width": size[1], "height": size[0], "partial": partial})
        for index, (kind, window) in enumerate(
            (("object", (4, 44, 8, 56)), ("part", (10, 24, 12, 24)), ("part", (10, 24, 36, 50)))
        ):
            mask = np.zeros(size, bool)
            mask[window[0] : window[1], window[2] : window[3]] = True
            pixels[mask] = (200 if index else 90, 40 * index, 30)
            annotations.append(
                {
                    "id": 10 * number + index,
                    "image_id": number,
                    "category_id": 1 if kind == "object" else 2,
                    "segmentation": rle(mask),
                    "granularity": kind,
                    "parent_id": None if kind == "object" else 10 * number,
                }
            )
        Image.fromarray(pixels).save(folder / name)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "house"}, {"id": 2, "name": "window"}],
    }
    (folder / f"{source}.json").write_text(json.dumps(content))
    return content


def batches(samples: tuple[Sample, ...], config: SamplingConfig | None = None, seed: int = 0) -> TrainingBatches:
    stages = [Stage(6, 64, 2), Stage(4, 96, 1)]
    config = config or SamplingConfig(prompts=5)
    return TrainingBatches(Mixture.of(samples), stages, config, click_box=0.005, fill=FILL, seed=seed)
