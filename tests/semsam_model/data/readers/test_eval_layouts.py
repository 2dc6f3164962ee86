"""Every data set of configs/data/eval, the smallest one in the layout that its file says: read and evaluated."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semsam_model.config import config_root, read_model_config
from semsam_model.data.mixture import read_mixture
from semsam_model.errors import DataError
from semsam_model.evaluation.labels import listed_labels
from semsam_model.evaluation.photos import PhotoReport, evaluate_photos
from semsam_model.evaluation.tasks import TASKS
from semsam_model.network.model import SemanticSAM
from tests.semsam_model.houses import rle
from tests.semsam_model.networks import structured

FILES = sorted((config_root() / "data" / "eval").glob("*.yaml"))
WIDTH, HEIGHT = 96, 64
CONFIG = dataclasses.replace(read_model_config("tiny"), generic_queries=6)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(CONFIG)


def embed(labels: Sequence[str]) -> np.ndarray:
    """Any words, each with a direction of its own."""
    vectors = [np.random.default_rng(zlib.crc32(label.encode())).normal(size=CONFIG.text_dim) for label in labels]
    return np.array([vector / np.linalg.norm(vector) for vector in vectors], np.float32)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


WHOLE, PART, OTHER = box(8, 8, 60, 56), box(12, 12, 30, 30), box(64, 10, 92, 50)


def photo(path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return {"id": 139, "file_name": path.name, "width": WIDTH, "height": HEIGHT}


def mask(number: int, category: int, of: np.ndarray, **more: Any) -> dict[str, Any]:
    rows, columns = np.flatnonzero(of.any(1)), np.flatnonzero(of.any(0))
    sides = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return {
        "id": number,
        "image_id": 139,
        "category_id": category,
        "segmentation": rle(of),
        "area": float(of.sum()),
        "bbox": [float(side) for side in sides],
        "iscrowd": 0,
    } | more


def write(path: Path, images: list[dict], categories: list[dict], annotations: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


# ------------------------------------------------------------------------------------------ data sets as they are given


def coco(root: Path) -> None:
    images = [photo(root / "coco" / "val2017" / "000000000139.jpg")]
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 3, "name": "car"}]
    annotations = [mask(1, 1, WHOLE), mask(2, 3, OTHER), mask(900100000139, 1, OTHER, iscrowd=1)]
    write(root / "coco" / "annotations" / "instances_val2017.json", images, categories, annotations)


def coco_panoptic(root: Path) -> None:
    images = [photo(root / "coco" / "val2017" / "000000000139.jpg")]
    folder = root / "coco" / "annotations"
    ids = np.where(WHOLE, 3226956, np.where(OTHER, 6979964, 0))
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (folder / "panoptic_val2017").mkdir(parents=True)
    Image.fromarray(colours).save(folder / "panoptic_val2017" / "000000000139.png")
    segments = [
        {"id": 3226956, "category_id": 1, "iscrowd": 0, "area": int(WHOLE.sum()), "bbox": [8, 8, 52, 48]},
        {"id": 6979964, "category_id": 187, "iscrowd": 0, "area": int(OTHER.sum()), "bbox": [64, 10, 28, 40]},
    ]
    categories = [
        {"id": 1, "name": "person", "supercategory": "person", "isthing": 1, "color": [220, 20, 60]},
        {"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0, "color": [70, 130, 180]},
    ]
    annotations = [{"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}]
    write(folder / "panoptic_val2017.json", images, categories, annotations)


def leaves(root: Path) -> None:
    images = [photo(root / "leaves" / "images" / "plant001_rgb.png")]
    annotations = [mask(1, 1, WHOLE), mask(2, 1, OTHER)]
    write(root / "leaves" / "val.json", images, [{"id": 1, "name": "leaf"}], annotations)


def paco(root: Path) -> None:
    image = photo(root / "coco" / "val2017" / "000000000139.jpg") | {"file_name": "val2017/000000000139.jpg"}
    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [1, 2]}
    categories = [
        {"id": 1, "name": "mug", "supercategory": "OBJECT", "frequency": "f"},
        {"id": 2, "name": "mug:handle", "supercategory": "PART", "frequency": "f"},
        {"id": 3, "name": "knife:handle", "supercategory": "PART", "frequency": "f"},
    ]
    annotations = [mask(1, 1, WHOLE, obj_ann_id=1), mask(2, 2, PART, obj_ann_id=1)]
    write(root / "paco" / "paco_lvis_v1_val.json", [image], categories, annotations)


def partimagenet(root: Path) -> None:
    images = [photo(root / "partimagenet" / "val" / "n02835271_7.JPEG")]
    categories = [
        {"id": 0, "name": "Quadruped Head", "supercategory": "Quadruped"},
        {"id": 1, "name": "Bicycle Tier", "supercategory": "Bicycle"},
    ]
    write(root / "partimagenet" / "val.json", images, categories, [mask(1, 0, PART), mask(2, 1, OTHER)])


def pascal_part(root: Path) -> None:
    images = [photo(root / "pascal_part" / "JPEGImages" / "2008_000008.jpg")]
    categories = [{"id": 1, "name": "horse"}, {"id": 2, "name": "horse:head"}, {"id": 3, "name": "person:head"}]
    annotations = [mask(1, 1, WHOLE), mask(2, 2, PART), mask(3, 3, OTHER)]
    write(root / "pascal_part" / "val.json", images, categories, annotations)


def label_map(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)


def pascal_part_116(root: Path) -> None:
    numbers = np.full((HEIGHT, WIDTH), 255, np.uint8)
    numbers[PART], numbers[OTHER] = 61, 86  # the head of a dog, the neck of a person
    label_map(root / "PascalPart116" / "annotations_detectron2_part" / "val" / "2008_000008.png", numbers)
    photo(root / "PascalPart116" / "images" / "val" / "2008_000008.jpg")


def ade20k_part_234(root: Path) -> None:
    numbers = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    numbers[PART], numbers[OTHER] = 53, 233  # the apron of a chest of drawers, the shade of a light
    label_map(root / "ADE20KPart234" / "annotations_detectron2_part" / "validation" / "ADE_val_00000001.png", numbers)
    photo(root / "ADE20KPart234" / "images" / "validation" / "ADE_val_00000001.jpg")


def leaves_cvppp(root: Path) -> None:
    folder = root / "CVPPP2017_LSC_training" / "training" / "A1"
    label_map(folder / "plant001_label.png", np.where(PART, 3, np.where(OTHER, 7, 0)).astype(np.uint8))
    label_map(folder / "plant001_fg.png", (PART | OTHER).astype(np.uint8))
    photo(folder / "plant001_rgb.png")


WRITTEN: dict[str, Callable[[Path], None]] = {
    "coco": coco,
    "coco_panoptic": coco_panoptic,
    "leaves": leaves,
    "paco": paco,
    "partimagenet": partimagenet,
    "pascal_part": pascal_part,
    "pascal_part_116": pascal_part_116,
    "ade20k_part_234": ade20k_part_234,
    "leaves_cvppp": leaves_cvppp,
}


def tasks(path: Path) -> list[str]:
    """What the file says it is for."""
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    words = re.split(r"[ ,]+", comment.partition("semsam evaluate ")[2])
    return [task for task in TASKS if task in words]


def evaluated(path: Path, root: Path, model: SemanticSAM) -> dict[str, PhotoReport]:
    mixture = read_mixture(path, root, evaluation=True)
    assert mixture.skipped == []
    labels = listed_labels(list(mixture.datasets.values()))
    return {task: evaluate_photos(model, mixture.samples, embed, task, labels=labels) for task in tasks(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_layout_that_a_file_says_is_read_and_evaluated(path: Path, tmp_path: Path, model: SemanticSAM) -> None:
    WRITTEN[path.stem](tmp_path)
    reports = evaluated(path, tmp_path, model)
    assert reports
    for report in reports.values():
        assert report.skipped == () and len(report.by_source) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_missing_of_a_layout_is_named(path: Path, tmp_path: Path) -> None:
    WRITTEN[path.stem](tmp_path)
    pictures = {p.parent for p in tmp_path.rglob("*.*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")}
    needed = [*tmp_path.rglob("*.json"), *pictures]
    assert needed
    for number, gone in enumerate(needed):
        root = tmp_path.with_name(f"{tmp_path.name}_{number}")
        shutil.copytree(tmp_path, root)
        lost = root / gone.relative_to(tmp_path)
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        folder = gone.name if gone.name != "A1" else "leaves_cvppp"  # subfolders may have any name
        with pytest.raises(DataError, match=re.escape(folder)):
            read_mixture(path, root, evaluation=True)


def test_the_figures_count_what_the_layouts_hold(tmp_path: Path, model: SemanticSAM) -> None:
    found = {}
    for path in FILES:
        WRITTEN[path.stem](tmp_path / path.stem)
        for task, report in evaluated(path, tmp_path / path.stem, model).items():
            (found[path.stem, task],) = report.by_source.values()
    assert found["coco", "instance"]["n"] == 2  # without the crowd
    assert found["coco_panoptic", "semantic"]["labels"] == 2
    assert {"pq_things", "pq_stuff"} <= set(found["coco_panoptic", "panoptic"])
    for name in ("leaves", "leaves_cvppp"):
        assert found[name, "everything"]["n"] == 2 and "sbd" in found[name, "everything"]
    assert "ar300" in found["paco", "parts"] and found["paco", "parts"]["n"] == 1
    assert found["partimagenet", "parts"]["labels"] == 2
    assert found["pascal_part", "parts"]["labels"] == 2  # the head of a horse is not that of a person
    assert found["pascal_part", "open-vocabulary"]["n"] == 3
    for name in ("pascal_part_116", "ade20k_part_234"):
        assert found[name, "open-vocabulary"]["n"] == 2 and "part_miou" in found[name, "open-vocabulary"]


def test_the_names_of_numbers_are_those_of_the_data_sets(tmp_path: Path) -> None:
    found = {}
    for name in ("pascal_part_116", "ade20k_part_234"):
        WRITTEN[name](tmp_path)
        mixture = read_mixture(config_root() / "data" / "eval" / f"{name}.yaml", tmp_path, evaluation=True)
        found[name] = [region.label for region in mixture.samples[0].regions]
        (labels,) = listed_labels(list(mixture.datasets.values())).values()
        assert len(labels) == int(name[-3:])
    assert found["pascal_part_116"] == [("part", "head", "dog"), ("part", "neck", "person")]
    assert found["ade20k_part_234"] == [("part", "apron", "chest of drawers"), ("part", "shade", "light")]
