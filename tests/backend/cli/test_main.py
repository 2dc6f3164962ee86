"""The command line as a user meets it: a real process, real files, one clear line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from semsam_model.checkpoints.header import read_header

SIZE = (75, 121)


def semsam(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from backend.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored on its side: 75x121 once its EXIF orientation is applied."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    Image.fromarray(np.rot90(pixels).copy()).save(path, exif=exif)
    return path


def test_click_writes_masks_a_contact_sheet_and_candidates(tmp_path: Path, weights: Path, photo: Path) -> None:
    result = semsam("click", photo, "--point", "60,40", "--model", "tiny", "--weights", weights, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "candidates.json").read_text())
    assert (written["image"]["height"], written["image"]["width"]) == SIZE
    assert written["model"]["name"] == "tiny" and written["model"]["version"].startswith("tiny-")
    assert written["candidates"]
    for i, c in enumerate(written["candidates"], 1):
        assert c["rank"] == i
        assert 1 <= c["level"] <= 6 and 0 <= c["token"] <= 5 and 0 <= c["score"] <= 1
        mask = coco.decode(c["segmentation"])
        assert mask.shape == SIZE
        assert c["area"] == mask.sum()
        assert c["bbox"] == coco.toBbox(c["segmentation"]).tolist()
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / f"mask_{i}.png"), cv2.IMREAD_UNCHANGED) > 0, mask > 0)
    assert cv2.imread(str(tmp_path / "contact_sheet.png")).shape[1] > 800


def test_all_levels_gives_each_of_the_six(tmp_path: Path, weights: Path, photo: Path) -> None:
    result = semsam(
        "click", photo, "--point", "60,40", "--all-levels", "--model", "tiny", "--weights", weights, "--out", tmp_path
    )
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "candidates.json").read_text())["candidates"]
    assert sorted(c["level"] for c in written) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--point", "60"], "expected X,Y"),
        (["--point", "a,b"], "expected X,Y"),
        (["--box", "1,2,3"], "expected X0,Y0,X1,Y1"),
        (["--not", "5,5"], "at least one positive click"),
        (["--point", "500,40"], "inside the photo"),
        (["--box", "50,50,40,60"], "x0 < x1"),
        (["--point", "60,40", "--model", "huge"], "expected one of"),
        (["--point", "60,40", "--not", "5,5", "--all-levels"], "exactly one --point or --box"),
        (["--point", "60,40", "--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_expected(
    tmp_path: Path, weights: Path, photo: Path, arguments: list[str], says: str
) -> None:
    model = [] if "--model" in arguments else ["--model", "tiny", "--weights", str(weights)]
    result = semsam("click", photo, "--out", tmp_path / "out", *arguments, *model)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_photo_and_one_that_is_no_picture_are_named(tmp_path: Path, weights: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    for path in (tmp_path / "none.jpg", text):
        result = semsam("click", path, "--point", "1,1", "--model", "tiny", "--weights", weights, "--out", tmp_path)
        assert result.returncode == 1 and str(path) in result.stderr


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "in.pth"
    source.write_bytes(b"not a checkpoint")
    result = semsam("weights", "convert", source, "--model", "swin_t", "--out", tmp_path / "out.safetensors")
    assert result.returncode == 1 and str(source) in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", [[], ["click"], ["serve"], ["train"], ["demo"], ["weights", "convert"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = semsam(*command, "--help")
    assert result.returncode == 0 and "Usage" in result.stdout


def test_made_data_is_written_and_checked(tmp_path: Path) -> None:
    made = semsam("data", "make", "--out", tmp_path, "--count", 2, "--size", 64)
    assert made.returncode == 0, made.stderr
    config = tmp_path / "mixture.yaml"
    config.write_text("sources: [{name: made, kind: coco, path: synthetic.json, feeds: [masks, object_names]}]")
    checked = semsam("data", "check", config, "--root", tmp_path, "--out", tmp_path / "out")
    assert checked.returncode == 0, checked.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["by_source"]["made"]["photos"] == 2
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 0
    lost = semsam("data", "check", config, "--root", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert lost.returncode == 1 and "synthetic.json" in lost.stderr and "Traceback" not in lost.stderr


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Two photos of a bright square, one a source."""
    for source in ("near", "far"):
        pixels = np.random.default_rng(1).integers(0, 60, (*SIZE, 3), np.uint8)
        pixels[20:50, 30:80] += 150
        (tmp_path / source).mkdir()
        Image.fromarray(pixels).save(tmp_path / source / "0.png")
        content = {
            "images": [{"id": 1, "file_name": f"{source}/0.png", "width": SIZE[1], "height": SIZE[0]}],
            "categories": [{"id": 1, "name": "square"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[30, 20, 80, 20, 80, 50, 30, 50]]}
            ],
        }
        (tmp_path / f"{source}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_ranker_is_trained_into_weights_and_measured(annotated: Path, weights: Path, tmp_path: Path) -> None:
    ranked, out = tmp_path / "ranked.safetensors", tmp_path / "out"
    result = semsam("train-ranker", "--weights", weights, "--data", annotated, "--out", ranked)
    assert result.returncode == 0, result.stderr
    assert read_header(ranked).card["ranker"]["photos"] == 2
    result = semsam(
        *("evaluate", "clicks", annotated, "--out", out, "--model", "tiny", "--weights", ranked),
        *("--noc", 1, "--grabcut", 1),
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((out / "report.json").read_text())
    assert content["ranker"] == "learned"
    assert set(content["by_source"]) == {"near", "far"}
    for row in content["by_source"].values():
        assert row["n"] == 1
        assert all(0 <= row[measure] <= 100 for measure in ("oracle", "first", "told", "max"))
        assert 1 <= row["noc80"] <= row["noc90"] <= 20
    assert set(content["baselines"]) == {"predicted_iou", "largest", "grabcut"}
    assert (out / "report.html").read_text().startswith("<!doctype html>")
