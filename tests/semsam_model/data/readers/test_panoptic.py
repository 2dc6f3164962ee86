"""COCO panoptic: things are objects, stuff is regions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.data.readers.id_maps import read_panoptic
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import OTHER, PART, SIZE, WHOLE, described, photo


def panoptic_set(folder: Path) -> Path:
    photo(folder / "photos" / "1.jpg")
    ids = np.zeros(SIZE, np.int32)
    ids[WHOLE], ids[PART], ids[OTHER] = 70000, 300, 5
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (folder / "panoptic_val").mkdir()
    Image.fromarray(colours).save(folder / "panoptic_val" / "1.png")
    segments = [
        {"id": 70000, "category_id": 1},
        {"id": 300, "category_id": 2},
        {"id": 5, "category_id": 1, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "cup", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
        "annotations": [
            {"image_id": 1, "file_name": "1.png", "segments_info": [*segments, {"id": 8, "category_id": 1}]},
            {"image_id": 2, "file_name": "2.png", "segments_info": []},
        ],
    }
    (folder / "panoptic_val.json").write_text(json.dumps(content))
    return folder / "panoptic_val.json"


def test_panoptic_segments_are_objects_and_stuff_is_regions(tmp_path: Path) -> None:
    dataset = read_panoptic(panoptic_set(tmp_path), tmp_path / "photos")
    sample = dataset.samples[0]
    assert described(sample) == [("object", "cup", None), ("region", "sky", None), ("object", "cup", None)]
    assert np.array_equal(sample.mask(0), WHOLE & ~PART)
    assert np.array_equal(sample.mask(1), PART)
    with pytest.raises(DataError, match="no pixel of id 8"):
        sample.mask(2)
    crowd, lost = dataset.skipped
    assert "crowd" in crowd and "image 2" in lost


def test_a_missing_folder_of_photos_or_segments_is_named_with_what_belongs_there(tmp_path: Path) -> None:
    path = panoptic_set(tmp_path)
    with pytest.raises(DataError, match=r"lost: no such folder; the photos of .*panoptic_val\.json"):
        read_panoptic(path, tmp_path / "lost")
    with pytest.raises(DataError, match="lost: no such folder; the PNGs of segments of"):
        read_panoptic(path, tmp_path / "photos", tmp_path / "lost")
    with pytest.raises(DataError, match="lost: no such folder; the photos of"):
        read_coco(path, tmp_path / "lost")
    dataset = read_panoptic(path, tmp_path / "photos")
    assert dataset.photos == 2
    assert dataset.labels == {"panoptic_val": {("object", "cup", None), ("region", "sky", None)}}


def test_panoptic_crowds_are_there_for_evaluation_alone(tmp_path: Path) -> None:
    path = panoptic_set(tmp_path)
    read = read_panoptic(path, tmp_path / "photos", options=ReadOptions(evaluation=True)).samples[0]
    assert [region.crowd for region in read.regions] == [False, False, True, False]
    assert np.array_equal(read.mask(2), OTHER)
    assert not any(region.crowd for region in read_panoptic(path, tmp_path / "photos").samples[0].regions)
