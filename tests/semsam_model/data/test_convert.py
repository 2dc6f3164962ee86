"""Converted files hold the same masks with the same names."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli.main import app
from semsam_model.data.convert import Target, convert, read_any
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
