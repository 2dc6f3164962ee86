"""Converted files hold the same masks with the same names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from backend.cli.main import app
from semsam_model.data.convert import Target, convert, read_any
from semsam_model.data.readers.yolo import read_yolo
from semsam_model.data.samples import Dataset
from semsam_model.data.synthetic import write_scenes
from semsam_model.errors import DataError

TARGETS: tuple[Target, ...] = ("coco", "sa1b", "yolo", "labelstudio")


def content(datasets: list[Dataset]) -> Counter[tuple[str | None, bytes]]:
    return Counter(
        (region.name, sample.mask(index).tobytes())
        for dataset in datasets
        for sample in dataset.samples
        for index, region in enumerate(sample.regions)
    )


@pytest.mark.parametrize("target", TARGETS)
def test_masks_and_names_are_the_same_after_the_way_there_and_back(tmp_path: Path, target: Target) -> None:
    write_scenes(tmp_path / "made", 3, size=(64, 64))
    before = read_any(tmp_path / "made" / "synthetic.json")
    done = convert(before, target, tmp_path / "there")
    assert done.photos == 3 and done.masks == sum(len(s.regions) for s in before[0].samples)
    assert done.masks_lost == 0 and not done.skipped
    there = tmp_path / "there"
    read = read_any(there / "tasks.json", there) if target == "labelstudio" else read_any(there)
    convert(read, "coco", tmp_path / "back")
    assert content(read_any(tmp_path / "back")) == content(before)


def test_the_command_names_what_was_left_out_and_refuses_a_full_folder(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "made", 2, size=(64, 64))
    file = json.loads(path.read_text())
    count = len(file["annotations"])
    file["annotations"][0]["image_id"] = 77
    file["annotations"][1]["segmentation"]["counts"] = "torn"
    path.write_text(json.dumps(file))
    arguments = ["data", "convert", str(path), "--to", "yolo", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"2 photos with {count - 2} masks written" in done.output.replace("\n", " ")
    assert "2 masks left out" in done.output and "its image 77 is not in the file" in done.output
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, DataError) and "new or empty folder" in str(again.exception)


def test_yolo_has_photos_to_validate_on_and_only_such_as_its_users_can_open(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "made", 12, size=(32, 32))
    first = json.loads(path.read_text())["images"][0]["file_name"]
    file = tmp_path / "made" / first
    Image.open(file).convert("RGB").save(file.with_suffix(".gif"))
    path.write_text(path.read_text().replace(first, str(Path(first).with_suffix(".gif"))))
    for share, expected in ((0.25, range(1, 8)), (0.0, [0]), (1.0, [12])):
        out = tmp_path / str(share)
        done = convert(read_any(path), "yolo", out, validation_share=share)
        counts = {split: len(list((out / "images" / split).iterdir())) for split in ("train", "val")}
        assert counts["val"] in expected and sum(counts.values()) == 12
        content = yaml.safe_load((out / "data.yaml").read_text())
        for split in ("train", "val"):  # what trains on it refuses an empty folder
            assert any((out / content[split]).iterdir())
        assert bool(done.skipped) == (not all(counts.values()))
        assert not list(out.rglob("*.gif")) and len(read_yolo(out).samples) == 12
    (sample,) = (sample for sample in read_any(path)[0].samples if sample.photo.name.endswith("gif"))
    assert any(np.array_equal(sample.image(), other.image()) for other in read_yolo(tmp_path / "0.25").samples)


def test_a_conversion_that_was_killed_leaves_nothing_that_looks_whole_and_begins_anew(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "made", 3, size=(32, 32))

    def kill() -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    (out / ".converting" / "images").mkdir(parents=True)  # as a kill leaves it
    with pytest.raises(KeyboardInterrupt):
        convert(read_any(path), "coco", out, kill)
    assert not list(out.iterdir())
    convert(read_any(path), "coco", out)
    assert sorted(item.name for item in out.iterdir()) == ["annotations.json", "images"]


FULL = """
import resource, sys
from backend.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # of each file, as a disk that is full
main(sys.argv[1:])
"""


@pytest.mark.parametrize("target", TARGETS)
def test_a_disk_that_is_full_is_one_line_that_names_the_file(tmp_path: Path, target: Target) -> None:
    path = write_scenes(tmp_path / "made", 1, size=(96, 96))
    arguments = ["data", "convert", str(path), "--to", target, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("semsam:"))
    assert str(tmp_path / "out" / ".converting") in line and "File too large" in line
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").iterdir())


OTHER_FILES: dict[str, tuple[Any, str]] = {
    "list.json": ([], "no task"),
    "tasks.json": ({"tasks": []}, "no task"),
    "results.json": ([{"image_id": 1, "category_id": 1, "score": 0.5}], "list of results in COCO's form"),
    "boxes.json": ([{"image": "a.png", "annotations": []}], "CreateML"),
    "min.json": ([{"image": "a.png", "id": 1, "annotation_id": 2}], "JSON-MIN"),
    "other.json": ({"title": "a project"}, "no task with its data"),
    "export.zip": ("PK", "unpack it first"),
    "voc.xml": ("<annotation><object/></annotation>", "Pascal VOC's XML of boxes"),
    "folder/notes.csv": ("x", "no annotations in it"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_no_file_of_masks_is_refused_with_what_it_is(tmp_path: Path, name: str) -> None:
    content, said = OTHER_FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=said):
        convert(read_any(path.parent if "/" in name else path), "coco", tmp_path / "out")
