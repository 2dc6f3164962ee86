"""COCO-style files: the right masks, kinds, names and wholes; what is broken is named, the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.entries import ReadOptions
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import OTHER, PART, SIZE, WHOLE, box_mask, coco_file, described, photo
from tests.semsam_model.houses import rle


@pytest.mark.parametrize(
    ("categories", "fields", "whole"),
    [
        pytest.param(
            [
                {"id": 1, "name": "bottle", "supercategory": "OBJECT"},
                {"id": 2, "name": "bottle:cap", "supercategory": "PART"},
            ],
            [{"id": 7, "obj_ann_id": 7}, {"obj_ann_id": 7}, {}],
            "bottle",
            id="PACO",
        ),
        pytest.param(
            [{"id": 1, "name": "bottle"}, {"id": 2, "name": "cap", "part_of": 1}],
            [{}, {}, {}],
            "bottle",
            id="part_of an id",
        ),
        pytest.param(
            [{"id": 1, "name": "bottle"}, {"id": 2, "name": "cap", "part_of": "bottle"}],
            [{}, {}, {}],
            "bottle",
            id="part_of a name",
        ),
        pytest.param(
            [{"id": 1, "name": "bottle"}, {"id": 2, "name": "bottle:cap"}], [{}, {}, {}], "bottle", id="whole:part"
        ),
        pytest.param(
            [{"id": 1, "name": "bottle"}, {"id": 2, "name": "cap"}],
            [{"id": 5, "granularity": "object"}, {"granularity": "part", "parent_id": 5}, {"granularity": "object"}],
            None,
            id="our exports",
        ),
        pytest.param(
            [{"id": 1, "name": "bottle"}, {"id": 2, "name": "cap", "granularity": "part", "supercategory": "bottle"}],
            [{}, {}, {}],
            "bottle",
            id="granularity of a category",
        ),
    ],
)
def test_parts_are_told_from_objects_and_know_their_whole(
    tmp_path: Path, categories: list[dict], fields: list[dict], whole: str | None
) -> None:
    masks, kinds = (WHOLE, PART, OTHER), (1, 2, 1)
    rows = [dict(f, category_id=kind, mask=mask) for f, kind, mask in zip(fields, kinds, masks, strict=True)]
    sample = read_coco(coco_file(tmp_path, categories, rows)).samples[0]
    assert described(sample) == [("object", "bottle", None), ("part", "cap", 0), ("object", "bottle", None)]
    assert [region.whole for region in sample.regions] == [None, whole, None]
    for index, mask in enumerate(masks):
        assert np.array_equal(sample.mask(index), mask)


def test_a_file_of_parts_alone_is_read_by_its_setting(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Car Tier", "supercategory": "Car"}]
    path = coco_file(tmp_path, categories, [{"mask": PART, "category_id": 1}])
    assert described(read_coco(path).samples[0]) == [("object", "Car Tier", None)]
    options = ReadOptions(granularity="part", names={"Tier": "tyre"}, partial=True)
    sample = read_coco(path, options=options).samples[0]
    assert sample.regions[0].label == ("part", "tyre", "Car")
    assert sample.partial


def test_lvis_photos_are_found_by_their_address_and_are_partly_annotated(tmp_path: Path) -> None:
    photo(tmp_path / "coco" / "train2017" / "000000000001.jpg")
    path = coco_file(tmp_path, [{"id": 3, "name": "trash_can"}], [{"mask": WHOLE, "category_id": 3}])
    content = json.loads(path.read_text())
    del content["images"][0]["file_name"]
    content["images"][0] |= {
        "coco_url": "http://images.example.org/train2017/000000000001.jpg",
        "neg_category_ids": [4],
    }
    path.write_text(json.dumps(content))
    sample = read_coco(path, tmp_path / "coco", source="lvis").samples[0]
    assert sample.name == "lvis/000000000001.jpg"
    assert sample.partial
    assert described(sample) == [("object", "trash_can", None)]


def test_what_was_looked_for_on_a_photo_is_known_for_evaluation(tmp_path: Path) -> None:
    categories = [
        {"id": 3, "name": "mug", "supercategory": "OBJECT"},
        {"id": 4, "name": "mug:handle", "supercategory": "PART"},
        {"id": 5, "name": "dog", "supercategory": "OBJECT"},
    ]
    looked_for = {"neg_category_ids": [5], "not_exhaustive_category_ids": [3, 4]}
    path = coco_file(tmp_path, categories, [{"mask": WHOLE, "category_id": 3}], **looked_for)
    (sample,) = read_coco(path, options=ReadOptions(evaluation=True)).samples
    federated = sample.annotation.federated
    assert federated is not None and federated.negative == {("object", "dog", None)}
    assert federated.not_exhaustive == {("object", "mug", None), ("part", "handle", "mug")}
    assert read_coco(path).samples[0].annotation.federated is None


def test_broken_coco_entries_are_named_and_their_neighbours_kept(tmp_path: Path) -> None:
    rows = [{"mask": mask, "category_id": 1} for mask in (WHOLE, PART, OTHER, WHOLE, PART, OTHER)]
    path = coco_file(tmp_path, [{"id": 1, "name": "cup"}, {"name": "no id"}, 3], rows)
    content = json.loads(path.read_text())
    annotations = content["annotations"]
    annotations[1] = "not an object"
    del annotations[2]["id"]
    annotations[3]["segmentation"] = [[1, 2, 3, 4]]
    annotations[4]["segmentation"]["counts"] = annotations[4]["segmentation"]["counts"][:-2]
    annotations[5]["category_id"] = [1]
    content["images"] += [{"id": 9}, None]
    path.write_text(json.dumps(content))
    dataset = read_coco(path)
    named = " ".join(dataset.skipped)
    for part in ("not an object", "no id", "entry 3", "annotation 4", "annotation 6", "image 9", "entry None"):
        assert part in named
    sample = dataset.samples[0]
    assert np.array_equal(sample.mask(0), WHOLE) and np.array_equal(sample.mask(1), OTHER)
    with pytest.raises(DataError, match=r"a\.png, region 2 \(cup\)"):
        sample.mask(2)
    assert len(sample.regions) == 3 and dataset.masks_lost == 3


def test_crowds_annotated_areas_and_bare_photos_are_there_for_evaluation_alone(tmp_path: Path) -> None:
    rows = [{"mask": WHOLE, "category_id": 1, "area": 99.5}, {"mask": OTHER, "category_id": 1, "iscrowd": 1}]
    path = coco_file(tmp_path, [{"id": 1, "name": "sheep"}], rows)
    photo(tmp_path / "images" / "b.png")
    content = json.loads(path.read_text())
    content["images"].append({"id": 2, "file_name": "images/b.png", "height": SIZE[0], "width": SIZE[1]})
    path.write_text(json.dumps(content))
    (training,) = read_coco(path).samples
    assert [(region.crowd, region.area) for region in training.regions] == [(False, None)]
    sheep, bare = read_coco(path, options=ReadOptions(evaluation=True)).samples
    assert [(region.crowd, region.area) for region in sheep.regions] == [(False, 99.5), (True, None)]
    assert np.array_equal(sheep.mask(1), OTHER)
    assert bare.regions == () and bare.image().shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("names", "colon", "expected"),
    [
        (["defect: scratch"], None, ("object", "defect: scratch", None)),
        (["12:00"], None, ("object", "12:00", None)),
        (["defect: scratch", "defect"], None, ("part", "scratch", "defect")),
        (["dog:head"], "part", ("part", "head", "dog")),
    ],
)
def test_a_colon_is_part_of_a_name_unless_the_whole_is_known(
    tmp_path: Path, names: list[str], colon: Any, expected: tuple
) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    path = coco_file(tmp_path, categories, [{"mask": WHOLE, "category_id": 1}])
    assert read_coco(path, options=ReadOptions(colon=colon)).samples[0].regions[0].label == expected


def test_masks_marked_as_crowds_are_named_with_the_setting_that_keeps_them(tmp_path: Path) -> None:
    rows = [{"mask": mask, "category_id": 1, "iscrowd": flag} for mask, flag in ((WHOLE, 1), (PART, "1"), (OTHER, "0"))]
    path = coco_file(tmp_path, [{"id": 1, "name": "cell"}], rows)
    dataset = read_coco(path)
    assert len(dataset.samples[0].regions) == 1 and dataset.masks_lost == 2
    assert "2 annotations (1, 2)" in dataset.skipped[0] and "`crowd: single`" in dataset.skipped[0]
    for evaluation in (False, True):
        kept = read_coco(path, options=ReadOptions(crowd="single", evaluation=evaluation))
        assert [region.crowd for region in kept.samples[0].regions] == [False] * 3 and not kept.skipped


def test_masks_of_images_that_share_an_id_are_on_neither(tmp_path: Path) -> None:
    path = coco_file(tmp_path, [{"id": 1, "name": "cup"}], [{"mask": WHOLE, "category_id": 1}])
    photo(tmp_path / "images" / "b.png")
    content = json.loads(path.read_text())
    image = content["images"][0]
    content["images"].append(image | {"id": "1", "file_name": "images/b.png"})
    path.write_text(json.dumps(content))
    dataset = read_coco(path)
    assert not dataset.samples and dataset.masks_lost == 1
    assert "a.png" in dataset.skipped[0] and "b.png" in dataset.skipped[0] and "id 1" in dataset.skipped[0]
    content["images"][1] = image  # the same photo twice takes nothing away
    path.write_text(json.dumps(content))
    again = read_coco(path)
    assert len(again.samples) == 1 and not again.masks_lost and "comes again" in again.skipped[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"id": 1, "data": {}, "annotations": []}], "this is a Label Studio export in JSON; read it as kind label_st"),
        ({"shapes": [], "imagePath": "a.jpg"}, "this is a labelme file"),
        ({"a.jpg1": {"filename": "a.jpg", "regions": []}}, "VGG Image Annotator; export it as COCO"),
        (
            {"images": [], "annotations": [{"segments_info": []}]},
            "this is COCO panoptic JSON; read it as kind panoptic",
        ),
        ([1], "got a JSON list"),
        ({"info": {}}, "no images|'images'"),
    ],
)
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, content: Any, expected: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=expected):
        read_coco(tmp_path / "x.json")


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_average_precision_of_a_file_is_what_pycocotools_makes_of_it(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from semsam_model.evaluation.metrics.average_precision import STATS, AnnotatedMask, MaskAp

    rng = np.random.default_rng(seed)

    def anywhere() -> np.ndarray:
        x, y = rng.integers(0, 20), rng.integers(0, 14)
        return box_mask(x, y, x + rng.integers(3, 12), y + rng.integers(3, 10))

    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {
                "mask": anywhere(),
                "category_id": int(rng.integers(1, 3)),
                "area": float(rng.integers(20, 2000)),
                "iscrowd": int(rng.random() < 0.3),
            }
            for _ in range(6)
        ]
        right = [(row["mask"], row["category_id"] - 1, float(rng.random())) for row in rows[:4]]
        path = coco_file(folder, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], rows)
        photo(folder / "images" / "b.png")
        content = json.loads(path.read_text())
        content["images"].append(content["images"][0] | {"id": 2, "file_name": "images/b.png"})
        path.write_text(json.dumps(content))
        found = {1: [(anywhere(), int(rng.integers(0, 2)), float(rng.random())) for _ in range(6)] + right}
        found[2] = [(anywhere(), 0, 0.7)]
        ours = MaskAp(("a", "b"))
        for number, sample in enumerate(read_coco(path, options=ReadOptions(evaluation=True)).samples, start=1):
            truth = [
                AnnotatedMask(sample.mask(i), "ab".index(str(region.name)), region.crowd, region.area)
                for i, region in enumerate(sample.regions)
            ]
            ours.add(SIZE, truth, found[number])
        theirs = COCO(str(path))
        results = [
            {"image_id": number, "category_id": label + 1, "segmentation": rle(mask), "score": score}
            for number, masks in found.items()
            for mask, label, score in masks
        ]
        evaluation = COCOeval(theirs, theirs.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = {key: None if evaluation.stats[i] < 0 else 100 * evaluation.stats[i] for key, i in STATS.items()}
    assert {key: ours.percent()[key] for key in STATS} == {
        key: value if value is None else pytest.approx(value, abs=0.006) for key, value in expected.items()
    }
