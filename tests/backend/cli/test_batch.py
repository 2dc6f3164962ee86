"""`semsam batch` as a command: a project, a list, a prefix of an object store; the predictions are the service's."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backend.batch.annotator import Annotator
from backend.batch.run import read_config
from semsam_model.checkpoints.header import read_header
from tests.backend.batch.studio_with_photos import Studio, at_work
from tests.backend.batch.test_run import rows
from tests.backend.batch.test_sources import s3
from tests.backend.photo_studio import CONFIG, NAMED, photo, png
from tests.backend.preannotating import settings
from tests.backend.studio_http import TOKEN
from tests.paths import ROOT

__all__ = ["s3"]


@pytest.fixture(scope="module")
def annotators(region_weights: Path) -> dict[str, Annotator]:
    """By labeling config."""
    chosen = settings("http://localhost:1", region_weights, region_weights.parent)
    return {xml: Annotator(chosen, region_weights, read_config(xml)) for xml in (CONFIG, NAMED)}


def semsam(folder: Path, weights: Path, *arguments: str, **variables: str) -> str:
    """What the command says, run in a folder."""
    command = [sys.executable, "-c", "from backend.cli.main import main; main()", "batch", *arguments]
    variables |= {"SEMSAM_MODEL": "tiny", "SEMSAM_WEIGHTS": str(weights), "SEMSAM_PREANNOTATE_THRESHOLD": "0"}
    environment = os.environ | variables | {"PYTHONPATH": str(ROOT), "COLUMNS": "500"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def lines(expected: dict[str, bytes], annotator: Annotator) -> list[dict[str, Any]]:
    found = [{"data": {"image": name}, "predictions": [annotator(content)]} for name, content in expected.items()]
    return sorted(found, key=lambda row: str(row["data"]))


@pytest.mark.slow
def test_a_project_gets_the_predictions_that_it_lacks_and_no_faster_than_it_was_asked(
    region_weights: Path, annotators: dict[str, Annotator], tmp_path: Path
) -> None:
    version = read_header(region_weights).version.version
    studio = Studio("a.png", "b.png", "missing.png", "a.png", "turned.png", config=NAMED)
    studio.predictions[4].append({"model_version": version})
    with at_work(studio) as url:
        own = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": TOKEN}
        said = semsam(tmp_path, region_weights, "--project", "1", "--rate", "2", **own)
    for number in (1, 2, 5):
        content = studio.files[studio.images[number]]
        assert studio.predictions[number] == [{"task": number, **annotators[NAMED](content)}]
    assert studio.versions()[3] == [] and studio.versions()[4] == [version]
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(studio.written)) and len(studio.written) == 3
    assert "task 3: " in said and "missing.png: not found (404)" in said
    assert f"{version}: 3 photos annotated with " in said and ", 1 were done before, 1 failed" in said


@pytest.mark.slow
def test_a_list_is_annotated_by_two_processes_whatever_is_in_it(
    region_weights: Path, annotators: dict[str, Annotator], tmp_path: Path
) -> None:
    good = {f"{number}.png": png(photo(number)) for number in range(5)}
    for name, content in (good | {"broken.png": good["0.png"][:40]}).items():
        (tmp_path / name).write_bytes(content)
    names = [*(name.encode() for name in good), b"broken.png", b"\xff\0.png", b"\xfe.png"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(names))
    (tmp_path / "labeling.xml").write_text(CONFIG)
    own = ["--out", "out.jsonl", "--labeling", "labeling.xml", "--workers", "2"]
    said = semsam(tmp_path, region_weights, "--files", "list.txt", *own)
    assert rows(tmp_path / "out.jsonl") == lines(good, annotators[CONFIG])
    assert ": 5 photos annotated with " in said and ", 0 were done before, 3 failed" in said
    for reason in ("broken.png: photo: ", "ValueError: embedded null byte", "\\udcfe.png: [Errno 2] "):
        assert reason in said


@pytest.mark.slow
def test_a_prefix_is_annotated_into_a_file_that_names_its_objects(
    s3: Any, region_weights: Path, annotators: dict[str, Annotator], tmp_path: Path
) -> None:
    good = {f"s3://photos/new/{number}.png": png(photo(number)) for number in range(2)}
    for address, content in good.items():
        s3.put_object(Bucket="photos", Key=address.removeprefix("s3://photos/"), Body=content)
    s3.put_object(Bucket="photos", Key="new/broken.png", Body=b"no picture")
    (tmp_path / "labeling.xml").write_text(CONFIG)
    own = ["--out", "out.jsonl", "--labeling", "labeling.xml"]
    said = semsam(tmp_path, region_weights, "--prefix", "s3://photos/new/", *own)
    assert rows(tmp_path / "out.jsonl") == lines(good, annotators[CONFIG])
    assert "s3://photos/new/broken.png: photo: " in said and ", 0 were done before, 1 failed" in said
