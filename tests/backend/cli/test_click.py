"""`semsam click`: real files, one clear line for a mistake."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.backend.cli.semsam import semsam

SIZE = (75, 121)


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
    assert result.code == 0, result.stderr
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
    assert result.code == 0, result.stderr
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
    assert result.code == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_photo_and_one_that_is_no_picture_are_named(tmp_path: Path, weights: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    for path in (tmp_path / "none.jpg", text):
        result = semsam("click", path, "--point", "1,1", "--model", "tiny", "--weights", weights, "--out", tmp_path)
        assert result.code == 1 and str(path) in result.stderr
