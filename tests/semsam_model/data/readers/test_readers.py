"""Samples from other people's files: the right masks, kinds, names and wholes; what is broken named, the rest kept."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from semsam_model.data.lazy_samples import LazySamples, chain, pack
from semsam_model.data.readers.coco import read_coco
from semsam_model.data.readers.coco_file import CocoOptions
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.data.readers.panoptic import read_panoptic
from semsam_model.data.readers.sa1b import read_sa1b
from semsam_model.data.samples import Sample, Supervision
from semsam_model.errors import DataError
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import Candidate
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


def told(sample: Sample) -> list[tuple[str, str | None, int | None]]:
    return [(region.granularity, region.name, region.parent) for region in sample.regions]


# ----------------------------------------------------------------------------------------------------------------- COCO


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
    assert told(sample) == [("object", "bottle", None), ("part", "cap", 0), ("object", "bottle", None)]
    assert [region.whole for region in sample.regions] == [None, whole, None]
    for index, mask in enumerate(masks):
        assert np.array_equal(sample.mask(index), mask)


def test_a_file_of_parts_alone_is_read_by_its_setting(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Car Tier", "supercategory": "Car"}]
    path = coco_file(tmp_path, categories, [{"mask": PART, "category_id": 1}])
    assert told(read_coco(path).samples[0]) == [("object", "Car Tier", None)]
    options = CocoOptions(granularity="part", names={"Tier": "tyre"}, partial=True)
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
    assert told(sample) == [("object", "trash_can", None)]


def test_what_was_looked_for_on_a_photo_is_known_for_evaluation(tmp_path: Path) -> None:
    categories = [
        {"id": 3, "name": "mug", "supercategory": "OBJECT"},
        {"id": 4, "name": "mug:handle", "supercategory": "PART"},
        {"id": 5, "name": "dog", "supercategory": "OBJECT"},
    ]
    looked_for = {"neg_category_ids": [5], "not_exhaustive_category_ids": [3, 4]}
    path = coco_file(tmp_path, categories, [{"mask": WHOLE, "category_id": 3}], **looked_for)
    (sample,) = read_coco(path, options=CocoOptions(evaluation=True)).samples
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
    assert len(dataset.skipped) == 7
    sample = dataset.samples[0]
    assert np.array_equal(sample.mask(0), WHOLE)
    for index in (1, 2):
        with pytest.raises(DataError, match=rf"a\.png, region {index} \(cup\)"):
            sample.mask(index)
    assert len(sample.regions) == 3


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=8)))
def test_whatever_stands_where_a_mask_should_gives_a_mask_or_an_error_that_names_it(segmentation: object) -> None:
    from semsam_model.data.photos import PhotoFile
    from semsam_model.data.samples import Annotation, Region
    from semsam_model.data.segmentations import CocoMask

    region = Region(CocoMask(segmentation), "object", "cup")  # type: ignore[arg-type]
    sample = Sample(PhotoFile(Path("a.png")), "set", Annotation(SIZE[1], SIZE[0], (region,)))
    try:
        assert sample.mask(0).shape == SIZE
    except DataError as error:
        assert "a.png, region 0 (cup)" in str(error)


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
    assert told(sample) == [("object", "cup", None), ("region", "sky", None), ("object", "cup", None)]
    assert np.array_equal(sample.mask(0), WHOLE & ~PART)
    assert np.array_equal(sample.mask(1), PART)
    with pytest.raises(DataError, match="no pixel of id 8"):
        sample.mask(2)
    assert len(dataset.skipped) == 1 and "image 2" in dataset.skipped[0]


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


def test_crowds_annotated_areas_and_bare_photos_are_there_for_evaluation_alone(tmp_path: Path) -> None:
    rows = [{"mask": WHOLE, "category_id": 1, "area": 99.5}, {"mask": OTHER, "category_id": 1, "iscrowd": 1}]
    path = coco_file(tmp_path, [{"id": 1, "name": "sheep"}], rows)
    photo(tmp_path / "images" / "b.png")
    content = json.loads(path.read_text())
    content["images"].append({"id": 2, "file_name": "images/b.png", "height": SIZE[0], "width": SIZE[1]})
    path.write_text(json.dumps(content))
    (training,) = read_coco(path).samples
    assert [(region.crowd, region.area) for region in training.regions] == [(False, None)]
    sheep, bare = read_coco(path, options=CocoOptions(evaluation=True)).samples
    assert [(region.crowd, region.area) for region in sheep.regions] == [(False, 99.5), (True, None)]
    assert np.array_equal(sheep.mask(1), OTHER)
    assert bare.regions == () and bare.image().shape == (*SIZE, 3)


def test_panoptic_crowds_are_there_for_evaluation_alone(tmp_path: Path) -> None:
    path = panoptic_set(tmp_path)
    read = read_panoptic(path, tmp_path / "photos", options=CocoOptions(evaluation=True)).samples[0]
    assert [region.crowd for region in read.regions] == [False, False, True, False]
    assert np.array_equal(read.mask(2), OTHER)
    assert not any(region.crowd for region in read_panoptic(path, tmp_path / "photos").samples[0].regions)


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
        for number, sample in enumerate(read_coco(path, options=CocoOptions(evaluation=True)).samples, start=1):
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


# ---------------------------------------------------------------------------------------------------------------- SA-1B


def sa1b_files(folder: Path, count: int) -> None:
    for number in range(count):
        photo(folder / f"sa_{number}.jpg", number)
        masks = (box_mask(number, 1, number + 5, 9), box_mask(1, 2, 30, 3 + number))
        content = {
            "image": {"image_id": number, "width": SIZE[1], "height": SIZE[0], "file_name": f"sa_{number}.jpg"},
            "annotations": [{"id": k, "segmentation": rle(mask)} for k, mask in enumerate(masks)],
        }
        (folder / f"sa_{number}.json").write_text(json.dumps(content))


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=f"./{file.name}")
    return path


def test_a_tar_of_sa1b_reads_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "plain", 5)
    (tmp_path / "tars").mkdir()
    tar_of(tmp_path / "plain", tmp_path / "tars" / "sa_000000.tar")
    in_folder, in_tar = read_sa1b(tmp_path / "plain", source="sa"), read_sa1b(tmp_path / "tars", source="sa")
    assert in_folder.skipped == in_tar.skipped == ()
    assert len(in_folder.samples) == len(in_tar.samples) == 5
    for plain, packed in zip(in_folder.samples, in_tar.samples, strict=True):
        assert plain.name == packed.name
        assert told(plain) == told(packed) == [("region", None, None)] * 2
        assert np.array_equal(plain.image(), packed.image())
        for index in range(2):
            assert np.array_equal(plain.mask(index), packed.mask(index))
    assert np.array_equal(in_tar.samples[3].mask(0), box_mask(3, 1, 8, 9))


def test_what_is_broken_in_sa1b_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "a" / "inner", 5)
    inner = tmp_path / "a" / "inner"
    (inner / "sa_0.json").unlink()
    (inner / "sa_1.jpg").unlink()
    (inner / "sa_2.json").write_text('{"image": ')
    (inner / "sa_3.jpg").write_bytes(b"no picture")
    (tmp_path / "a" / "empty.tar").write_bytes(b"not a tar")
    dataset = read_sa1b(tmp_path / "a")
    skipped = "\n".join(dataset.skipped)
    assert len(dataset.skipped) == 3
    for part in ("sa_0.jpg", "sa_1.json", "empty.tar"):
        assert part in skipped
    assert [sample.photo.name for sample in dataset.samples] == ["sa_2.jpg", "sa_3.jpg", "sa_4.jpg"]
    with pytest.raises(DataError, match=r"sa_2\.json"):
        dataset.samples[0].image()
    with pytest.raises(DataError, match=r"sa_3\.jpg"):
        dataset.samples[1].image()
    assert dataset.samples[2].image().shape == (*SIZE, 3)
    with pytest.raises(DataError, match="found none"):
        read_sa1b(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.4, 0.5, 0.63, 0.95])
def test_of_a_torn_tar_the_photos_before_the_tear_are_read(tmp_path: Path, share: float) -> None:
    sa1b_files(tmp_path / "plain", 6)
    whole = tar_of(tmp_path / "plain", tmp_path / "whole.tar")
    content = whole.read_bytes()
    (tmp_path / "torn.tar").write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    dataset = read_sa1b(tmp_path / "torn.tar", source="whole")
    assert 0 < len(dataset.samples) < 6
    assert "torn.tar" in dataset.skipped[0]
    for torn, sound in zip(dataset.samples, read_sa1b(whole).samples, strict=False):
        assert torn.name == sound.name
        assert np.array_equal(torn.image(), sound.image())


_opened: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_hook)


@contextmanager
def opened_under(folder: Path) -> Iterator[list[str]]:
    """Files under a folder that Python opens while the block runs; the list is filled at its end."""
    global _opened
    found: list[str] = []
    _opened = []
    try:
        yield found
    finally:
        found += [name for name in _opened if name.startswith(str(folder)) and Path(name).is_file()]
        _opened = None


def test_sa1b_is_opened_photo_by_photo_when_asked_for(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "plain", 12)
    with opened_under(tmp_path) as opened:
        samples = read_sa1b(tmp_path / "plain").samples
        assert len({(sample.source, sample.name) for sample in samples}) == 12
    assert opened == []
    with opened_under(tmp_path) as opened:
        sample = samples[7]
        sample.image()
        masks = [sample.mask(index) for index in range(len(sample.regions))]
    assert len(masks) == 2
    assert sorted(Path(name).name for name in opened) == sorted([sample.photo.name, f"{sample.path.stem}.json"])


# --------------------------------------------------------------------------------------------------------- Label Studio


CONTROL = {
    "brushlabels": "BrushLabels",
    "polygonlabels": "PolygonLabels",
    "bitmasklabels": "BitmaskLabels",
    "rectanglelabels": "RectangleLabels",
}


def candidate(rank: int, mask: np.ndarray, parent: int | None, label: str) -> Candidate:
    crop, bbox = crop_mask(mask)
    figures = {"token": 0, "level": rank, "score": 0.9, "predicted_iou": 0.9, "stability": 0.9}
    return Candidate(rank=rank, size=mask.shape, bbox=bbox, crop=crop, parent=parent, label=label, **figures)  # type: ignore[arg-type]


def accepted(kind: str, *candidates: Candidate) -> list[dict]:
    """Rows of an annotation in which every candidate that we offered was accepted."""
    tag = CONTROL[kind]
    config = LabelConfig.parse(
        f'<View><Image name="image" value="$photo"/><{tag} name="mask" toName="image">'
        f'<Label value="cup"/><Label value="handle"/></{tag}></View>'
    )
    labels = [each.label for each in candidates]
    return build_prediction(candidates, config=config, prompt_id="p", model_version="v", labels=labels)["result"]


def export(path: Path, *tasks: object) -> Path:
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize("kind", sorted(CONTROL))
def test_accepted_candidates_come_back_mask_for_mask_with_label_and_whole(tmp_path: Path, kind: str) -> None:
    photo(tmp_path / "upload" / "3" / "ab-cup.png")
    rows = accepted(kind, candidate(1, WHOLE, None, "cup"), candidate(2, PART, 1, "handle"))
    data = {"photo": "/data/upload/3/ab-cup.png"}
    task = {"id": 5, "data": data, "annotations": [{"result": rows, "was_cancelled": False}]}
    dataset = read_label_studio(export(tmp_path / "project.json", task), tmp_path)
    assert dataset.skipped == ()
    sample = dataset.samples[0]
    regions = {region.name: (index, region) for index, region in enumerate(sample.regions)}
    (at, cup), (on, handle) = regions["cup"], regions["handle"]
    assert (cup.granularity, cup.parent, handle.granularity, handle.parent) == ("object", None, "part", at)
    assert np.array_equal(sample.mask(at), WHOLE)
    assert np.array_equal(sample.mask(on), PART)
    assert cup.box_only == (kind == "rectanglelabels")
    assert sample.image().shape == (*SIZE, 3)


def test_the_last_annotation_that_was_not_cancelled_counts(tmp_path: Path) -> None:
    photo(tmp_path / "x" / "cup.png")
    rows = [accepted("brushlabels", candidate(1, mask, None, "cup")) for mask in (WHOLE, PART, OTHER)]
    annotations = [
        {"result": rows[0], "updated_at": "2024-01-01T00:00:00Z"},
        {"result": rows[1], "updated_at": "2024-03-01T00:00:00Z"},
        {"result": rows[2], "updated_at": "2024-05-01T00:00:00Z", "was_cancelled": True},
    ]
    data = {"image": "/data/local-files/?d=x%2Fcup.png"}
    untouched = {"id": 2, "data": data, "annotations": [], "predictions": [{"result": rows[0]}]}
    path = export(tmp_path / "p.json", {"id": 1, "data": data, "annotations": annotations}, untouched)
    dataset = read_label_studio(path, tmp_path)
    assert len(dataset.samples) == 1 and dataset.skipped == ()
    assert np.array_equal(dataset.samples[0].mask(0), PART)


def test_broken_tasks_and_regions_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "cup.png")
    data = {"image": "/data/upload/1/cup.png"}
    good = accepted("brushlabels", candidate(1, WHOLE, None, "cup"))
    note = {"type": "textarea", "value": {"text": ["x"]}}
    sizeless = {"id": "s", "type": "polygon", "value": {"points": [[1, 1], [9, 1], [9, 9]]}}
    ellipse = {"id": "e", "type": "ellipselabels", "value": {"x": 1}}
    torn = good[0] | {"id": "torn", "value": good[0]["value"] | {"rle": good[0]["value"]["rle"][:9]}}
    path = export(
        tmp_path / "p.json",
        {"id": 1, "data": data, "annotations": [{"result": [*good, note, sizeless, ellipse, 3, torn]}]},
        {"id": 2, "data": {"image": "/data/upload/1/../../lost.png"}, "annotations": [{"result": good}]},
        {"id": 3, "annotations": [{"result": good}]},
        7,
    )
    dataset = read_label_studio(path, tmp_path)
    assert len(dataset.samples) == 1
    sample = dataset.samples[0]
    assert np.array_equal(sample.mask(0), WHOLE)
    with pytest.raises(DataError, match=r"cup\.png, region 1 \(cup\)"):
        sample.mask(1)
    assert len(dataset.skipped) == 6
    for number, what in enumerate(("original_height", "'e'", "task 1", "task 2", "task 3", "entry 3")):
        assert what in dataset.skipped[number]
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(DataError, match="list of tasks"):
        read_label_studio(tmp_path / "object.json", tmp_path)


# -------------------------------------------------------------------------------------------------------- long rows


def test_packed_and_chained_samples_are_the_same_samples_also_in_a_worker(tmp_path: Path) -> None:
    sa1b_files(tmp_path / "sa", 4)
    rows = [{"mask": WHOLE, "category_id": 1}, {"mask": PART, "category_id": 1}]
    coco = read_coco(
        coco_file(tmp_path / "coco", [{"id": 1, "name": "cup"}], rows), supervision=Supervision(iou=False)
    ).samples
    row = chain([pack(coco), read_sa1b(tmp_path / "sa").samples, pack([])])
    assert len(row) == 5
    for samples in (row, pickle.loads(pickle.dumps(row))):
        assert [sample.name for sample in samples[::-1]] == [sample.name for sample in row][::-1]
        assert not samples[0].supervision.iou and samples[-1].supervision.iou
        assert np.array_equal(samples[0].mask(1), PART)
        assert np.array_equal(samples[-1].image(), row[4].image())
        with pytest.raises(IndexError):
            samples[5]


def test_a_photo_turned_by_exif_is_read_turned(tmp_path: Path) -> None:
    path = coco_file(tmp_path, [{"id": 1, "name": "cup"}], [{"mask": WHOLE, "category_id": 1}], file_name="turned.png")
    pixels = np.random.default_rng(4).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned clockwise
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(buffer, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(buffer.getvalue())
    assert np.array_equal(read_coco(path).samples[0].image(), pixels)


def test_a_lazy_row_makes_a_sample_only_when_it_is_asked_for() -> None:
    made: list[int] = []
    sample = Sample(None, "s", lambda: pytest.fail("read"))  # type: ignore[arg-type]
    row = LazySamples(1000, lambda index: (made.append(index), sample)[1])
    assert row[-1] is sample and row[3:9:2][1] is sample
    assert made == [999, 5]
