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
    assert len(dataset.skipped) == 7
    for number, what in enumerate(("original_height", "'e'", "task 1", "task 2", "task 3", "entry 3", "task 5")):
        assert what in dataset.skipped[number]
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(DataError, match="list of tasks"):
        read_label_studio(tmp_path / "object.json", tmp_path)
