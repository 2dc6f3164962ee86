"""Annotated photos are read from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from semsam_model.data.folder import read_labels, read_samples
from semsam_model.errors import DataError
from tests.semsam_model.houses import batches, write_source


def test_a_source_is_read_with_names_parents_and_masks(tmp_path: Path) -> None:
    write_source(tmp_path, "houses", 2, partial=True)
    dataset = read_samples(tmp_path)
    assert [sample.source for sample in dataset.samples] == ["houses", "houses"]
    assert dataset.skipped == ()
    sample = dataset.samples[0]
    assert [(r.name, r.granularity, r.parent) for r in sample.regions] == [
        ("house", "object", None),
        ("window", "part", 0),
        ("window", "part", 0),
    ]
    assert sample.partial
    assert np.argwhere(sample.mask(1)).min(0).tolist() == [10, 12]
    assert (sample.image()[sample.mask(1)] == (200, 40, 30)).all()


def test_polygons_and_plain_rle_are_the_same_mask(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 1)
    window = read_samples(tmp_path).samples[0].mask(1)
    runs = np.flatnonzero(np.diff(np.concatenate(([0], window.T.ravel().astype(int), [0]))))
    counts = np.diff(np.concatenate(([0], runs, [window.size]))).tolist()
    content["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": counts}
    content["annotations"][2]["segmentation"] = [[12, 10, 24, 10, 24, 24, 12, 24]]
    (tmp_path / "houses.json").write_text(json.dumps(content))
    sample = read_samples(tmp_path).samples[0]
    assert (sample.mask(1) == window).all()
    assert (sample.mask(2) == window).all()


def test_broken_entries_photos_masks_and_files_are_skipped_and_named(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 4)
    del content["annotations"][0]["image_id"]
    content["annotations"][4]["granularity"] = "galaxy"
    content["annotations"][7]["segmentation"]["counts"] = "torn"
    content["images"].append({"id": 99, "file_name": "houses/99.png"})
    (tmp_path / "houses" / "3.png").unlink()
    (tmp_path / "houses" / "1.png").write_bytes(b"not a picture")
    (tmp_path / "houses.json").write_text(json.dumps(content))
    (tmp_path / "torn.json").write_text('{"images": [')
    dataset = read_samples(tmp_path)
    skipped = "\n".join(dataset.skipped)
    assert dataset.masks_lost == 2 + 3
    for part in ("torn.json", "annotation 0", "annotation 11", "houses/99.png", "3.png'"):
        assert part in skipped
    assert {s.path.name for s in dataset.samples} == {"0.png", "1.png", "2.png"}

    source = batches(dataset.samples)
    made = [source[index] for index in range(len(source))]
    assert "houses/1.png" not in {name for batch in made for name in batch.names}
    skipped = " ".join(line for batch in made for line in batch.skipped)
    assert "1.png" in skipped
    assert "2.png, region 1 (window)" in skipped


def test_labels_are_read_whether_or_not_the_photos_are_there(tmp_path: Path) -> None:
    content = write_source(tmp_path, "houses", 2)
    content["categories"] += [{"id": 3, "name": "door"}, {"id": 4, "name": "roof"}]
    content["annotations"][4]["category_id"] = 3  # on the photo that is missing
    (tmp_path / "houses.json").write_text(json.dumps(content))
    (tmp_path / "houses" / "1.png").unlink()
    dataset = read_samples(tmp_path)
    used = {("object", "house", None), ("part", "window", None), ("part", "door", None)}
    assert len(dataset.samples) == 1 and dataset.photos == 2
    assert dataset.labels == {"houses": used}
    (tmp_path / "houses" / "0.png").unlink()
    assert read_labels(tmp_path) == used
    with pytest.raises(DataError, match="nowhere"):
        read_labels(tmp_path / "nowhere")


def test_a_folder_without_anything_usable_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_samples(tmp_path / "nowhere")
    write_source(tmp_path, "houses", 1)
    with pytest.raises(DataError, match=r"castles\.json; sources here: houses"):
        read_samples(tmp_path, ["castles"])
    (tmp_path / "houses" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.png"):
        batches(read_samples(tmp_path).samples)[0]
