"""Label Studio's JSON export: accepted suggestions come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction
from semsam_model.data.readers.label_studio import read_label_studio
from semsam_model.errors import DataError
from semsam_model.masks.geometry import crop_mask
from semsam_model.types import Candidate
from tests.semsam_model.data.readers.files import OTHER, PART, SIZE, WHOLE, photo

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
    assert len(dataset.samples) == 1 and dataset.masks_lost == 2
    for number, what in enumerate(("cancelled", "not the last updated", "only predictions")):
        assert what in dataset.skipped[number]
    assert np.array_equal(dataset.samples[0].mask(0), PART)


POLYGON = {"type": "polygon", "value": {"points": [[25, 25], [75, 25], [75, 75], [25, 75]]}}
OVAL = {"type": "ellipse", "value": {"x": 50, "y": 50, "radiusX": 40, "radiusY": 25, "rotation": 30}}


def test_a_region_without_id_or_size_and_one_of_another_size_lie_over_the_photo_as_it_is(tmp_path: Path) -> None:
    photo(tmp_path / "cup.png")
    half = {"original_width": SIZE[1] // 2, "original_height": SIZE[0] // 2}
    brush = accepted("brushlabels", candidate(1, WHOLE, None, "cup"))[0] | half | {"id": 9}
    labels = {"id": 5, "type": "labels", "value": {"labels": ["far"]}}
    rows = [POLYGON, POLYGON | half | {"id": 5}, labels, OVAL, brush]
    path = export(tmp_path / "p.json", {"id": 1, "data": {"image": "cup.png"}, "annotations": [{"result": rows}]})
    dataset = read_label_studio(path, tmp_path)
    (sample,) = dataset.samples
    assert (sample.height, sample.width) == SIZE
    assert [region.name for region in sample.regions] == [None, "far", None]
    assert np.array_equal(sample.mask(0), sample.mask(1)) and sample.mask(0).sum() == SIZE[0] * SIZE[1] // 4
    assert sample.mask(2).sum() == pytest.approx(np.pi * 0.4 * SIZE[1] * 0.25 * SIZE[0], rel=0.03)
    assert dataset.masks_lost == 1 and "16x12" in dataset.skipped[0] and "32x24" in dataset.skipped[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"id": 1, "image": "a.png", "annotator": 1, "annotation_id": 5, "poly": []}], "JSON-MIN.*export as JSON"),
        ([{"id": 1, "data": {"image": "a.png"}, "completions": [{"result": []}]}], "before 1.0: import it"),
        ([{"id": 1, "data": {"image": "a"}, "annotations": [], "predictions": [{"result": []}]}], "submit them"),
        ({"images": [], "annotations": []}, "this is COCO-style JSON; read it as kind coco"),
        ([{"id": 5, "result": [], "task": 3}], "an annotation without its task's data"),
    ],
)
def test_another_kind_of_file_is_refused_with_what_to_export_instead(
    tmp_path: Path, content: object, expected: str
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=expected):
        read_label_studio(tmp_path / "p.json", tmp_path)


def test_target_storage_is_read_one_annotation_a_file(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "cup.png")
    task = {"id": 1, "data": {"image": "s3://bucket/cup.png"}}
    for number, day in ((5, 1), (6, 2)):
        rows = [POLYGON | {"id": str(number)}] * (number - 4)
        content = {"id": number, "result": rows, "task": task, "updated_at": f"2024-01-0{day}T00:00:00Z"}
        (tmp_path / "target").mkdir(exist_ok=True)
        (tmp_path / "target" / str(number)).write_text(json.dumps(content))
    dataset = read_label_studio(tmp_path / "target", tmp_path / "photos")
    assert [len(sample.regions) for sample in dataset.samples] == [2]  # the newer of the task's two annotations
    assert dataset.masks_lost == 1
    one = read_label_studio(tmp_path / "target" / "5", tmp_path / "photos")
    assert len(one.samples[0].regions) == 1


def test_photos_that_were_submitted_empty_are_there_for_evaluation_and_named_otherwise(tmp_path: Path) -> None:
    photo(tmp_path / "cup.png")
    path = export(tmp_path / "p.json", {"id": 1, "data": {"image": "cup.png"}, "annotations": [{"result": None}]})
    (bare,) = read_label_studio(path, tmp_path, evaluation=True).samples
    assert bare.regions == () and (bare.height, bare.width) == SIZE
    dataset = read_label_studio(path, tmp_path)
    assert not dataset.samples and "nothing on it" in dataset.skipped[0]


def test_broken_tasks_and_regions_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "cup.png")
    data = {"image": "/data/upload/1/cup.png"}
    good = accepted("brushlabels", candidate(1, WHOLE, None, "cup"))
    note = {"type": "textarea", "value": {"text": ["x"]}}
    vector = {"id": "e", "type": "vectorlabels", "value": {"x": 1}}
    torn = good[0] | {"id": "torn", "value": good[0]["value"] | {"rle": good[0]["value"]["rle"][:9]}}
    path = export(
        tmp_path / "p.json",
        {"id": 1, "data": data, "annotations": [{"result": [*good, note, vector, 3, torn]}]},
        {"id": 2, "data": {"image": "/data/upload/1/../../lost.png"}, "annotations": [{"result": good}]},
        {"id": 3, "annotations": [{"result": good}]},
        7,
        {
            "id": 5,
            "data": {"text": "x" * 300, "link": "http://[", "image": "lost.png"},
            "annotations": [{"result": good}],
        },
    )
    dataset = read_label_studio(path, tmp_path)
    assert len(dataset.samples) == 1
    sample = dataset.samples[0]
    assert np.array_equal(sample.mask(0), WHOLE)
    with pytest.raises(DataError, match=r"cup\.png, region 1 \(cup\)"):
        sample.mask(1)
    named = "\n".join(dataset.skipped)
    for what in (
        "'e' of task 1",
        "region 3 of task 1",
        "(2, photo",
        "task 3: no task with its data",
        "entry 3",
        "5, photo lost.png",
    ):
        assert what in named
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(DataError, match="a Label Studio export in JSON"):
        read_label_studio(tmp_path / "object.json", tmp_path)
