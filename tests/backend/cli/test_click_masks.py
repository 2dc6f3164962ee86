"""`semsam click` with the default model on the sample photos gives the masks that it gave when the fixture was made.

python -m tests.backend.cli.test_click_masks      writes the fixture anew, for a new default model
"""

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from backend.cli.main import app
from tests.paths import FIXTURES, SAMPLES

FIXTURE = FIXTURES / "click_masks.json"
CLICKS = {
    "astronaut-face": ("astronaut.jpg", ["--point", "222,108"]),
    "astronaut-box": ("astronaut.jpg", ["--box", "60,10,400,505"]),
    "cat-head": ("cat.jpg", ["--point", "210,150"]),
    "cat-eye": ("cat.jpg", ["--point", "177,109"]),
    "coffee-cup": ("coffee.jpg", ["--point", "330,150"]),
    "coffee-saucer-not-cup": ("coffee.jpg", ["--point", "140,200", "--not", "330,120"]),
    "rocket-whole": ("rocket.jpg", ["--point", "321,213"]),
    "rocket-two-points": ("rocket.jpg", ["--point", "321,213", "--point", "321,330"]),
}
SAME = ("rank", "level", "token", "area", "bbox", "parent", "label")
NEAR = ("score", "predicted_iou", "stability")


def answer(name: str, out: Path) -> dict[str, Any]:
    photo, prompt = CLICKS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of summands depends on it
    try:
        result = CliRunner().invoke(app, ["click", str(SAMPLES / photo), *prompt, "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return json.loads((out / "candidates.json").read_text())


def processor() -> str:
    """Its name as Linux gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, str]:
    """What decides the last bit of a sum."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
    }


@pytest.mark.parametrize("name", CLICKS)
def test_a_click_on_a_sample_gives_the_same_candidates_as_before(name: str, tmp_path: Path) -> None:
    """To the bit where the machine computes as the one that wrote the fixture did, else nearly."""
    fixture = json.loads(FIXTURE.read_text())
    before, now = fixture["clicks"][name], answer(name, tmp_path)
    assert now["image"] == before["image"] and now["model"] == before["model"]
    assert len(now["candidates"]) == len(before["candidates"])
    exact = fixture["machine"] == machine()
    for new, old in zip(now["candidates"], before["candidates"], strict=True):
        for field in NEAR:
            assert new[field] == pytest.approx(old[field], abs=1e-6 if exact else 1e-3), field
        if exact:
            assert {f: new[f] for f in SAME} == {f: old[f] for f in SAME}
            assert new["segmentation"] == old["segmentation"]
        else:
            iou = coco_mask.iou([new["segmentation"]], [old["segmentation"]], [0])[0, 0]
            assert iou > 0.99


def write_fixture(folder: Path) -> None:
    clicks = {name: answer(name, folder / name) for name in CLICKS}
    FIXTURE.write_text(json.dumps({"machine": machine(), "clicks": clicks}, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        write_fixture(Path(made))
