"""The whole loop in a real Label Studio: clicks are corrected, corrections make a version, the version answers.

The worker that takes the job is the one that `make run` starts; the gate is the real one, the job a short one
(finetune.yaml) on made pictures (micrographs.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pycocotools.coco import COCO

from backend.corrections.queries import count, stream_regions
from backend.demo.project import DemoProject
from backend.finetuning import jobs
from backend.records import ProjectKey
from backend.store.database import Store
from semsam_model.data.split import SPLITS
from semsam_model.masks.clicker import innermost
from semsam_model.masks.codecs import decode_coco_rle
from semsam_model.masks.geometry import iou
from tests.backend.annotations import brush_row
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.journeys.micrographs import SIDE, Micrograph, draw, draw_split
from tests.journeys.test_click_in_label_studio import mask_of, start
from tests.paths import SAMPLES
from tests.waiting import eventually

pytestmark = pytest.mark.browser

ROCKET = SAMPLES / "rocket.jpg"
ON_THE_ROCKET, BESIDE_IT = (0.50, 0.50), (0.20, 0.60)
#: Pictures that fine-tuning learns from, and that the gate judges by.
LEARN, HELD_OUT = 6, 8
#: One for each click: what was clicked and left unsubmitted is a draft, and a click on its point asks for nothing.
UNSEEN = (draw(10_000), draw(10_001))


@pytest.fixture
def semsam(studio: Studio) -> Iterator[Callable[..., str]]:
    """Runs `semsam ...` on the demo's data and returns what it prints; in the end the base model answers again."""
    environment = {**os.environ, "SEMSAM_DATA_DIR": str(studio.demo.data)}

    def run(*arguments: str | Path | int) -> str:
        command = [Path(sys.executable).with_name("semsam"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("versions", "activate", "base")


def accept_one_and_correct_another(editor: Editor, made: DemoProject) -> tuple[dict[str, Any], dict[str, Any]]:
    """On the first photo: a click each, and of the second mask some is erased. The rows as they were offered."""
    start(editor, made, "click_all")
    rows = []
    for place in (ON_THE_ROCKET, BESIDE_IT):
        answer = editor.click(place)
        rows.append(next(row for row in reversed(answer.regions) if editor.can_accept_with_the_mouse(row["id"])))
        editor.accept_with_the_mouse(rows[-1]["id"])
        editor.reject_all()
    accepted, corrected = map(mask_of, rows)
    height, width = corrected.shape
    from_here = innermost(corrected & ~accepted)
    at = from_here.x / width, from_here.y / height
    editor.select_at(at, rows[1]["id"])
    editor.erase(at, (at[0], min(at[1] + 0.2, 0.99)))
    editor.screenshot("11-erased")
    editor.submit()
    return rows[0], rows[1]


def label_all(studio: Studio, tasks: Sequence[int], pictures: Sequence[Micrograph]) -> None:
    """Draws every cell by hand, over the API."""
    for task, picture in zip(tasks, pictures, strict=True):
        rows = [brush_row(f"cell-{task}-{number}", cell) for number, cell in enumerate(picture.cells)]
        studio.api.call("POST", f"/api/tasks/{task}/annotations/", json={"result": rows, "lead_time": 1})


def live(studio: Studio) -> str:
    """Name of the version that answers."""
    return requests.get(f"{studio.backend_url}/health", timeout=30).json()["model_version"]


def version_of_a_click(editor: Editor, made: DemoProject, unseen: int, screenshot: str) -> str:
    """What the answer to a click on a cell that nobody has labelled says it comes from."""
    start(editor, made, "click_all", task=1 + LEARN + HELD_OUT + unseen)
    place = innermost(UNSEEN[unseen].cells[0])
    answer = editor.click((place.x / SIDE, place.y / SIDE))
    editor.screenshot(screenshot)
    assert {row["meta"]["model_version"] for row in answer.regions} == {answer.model_version}
    return answer.model_version


def masks_in_coco(folder: Path) -> dict[str, np.ndarray]:
    """Region -> mask, as pycocotools reads an export."""
    found = {}
    for split in SPLITS:
        coco = COCO(folder / f"{split}.json")
        found |= {each["provenance"]["region"]: coco.annToMask(each).astype(bool) for each in coco.anns.values()}
    return found


def masks_in_label_studio(studio: Studio, project: int) -> dict[str, np.ndarray]:
    """Region -> mask, of everything annotated in a project."""
    tasks = studio.api.call("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
    rows = [row for task in tasks for annotation in task["annotations"] for row in annotation["result"]]
    return {row["id"]: mask_of(row) for row in rows if row["type"] == "brushlabels"}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return set(found) == set(expected) and all(np.array_equal(mask, expected[name]) for name, mask in found.items())


def test_corrections_make_a_version_that_answers_until_it_is_rolled_back_and_are_exported(
    editor: Editor,
    studio: Studio,
    project: Callable[..., DemoProject],
    backends_store: Store,
    semsam: Callable[..., str],
    tmp_path: Path,
) -> None:
    pictures = draw_split(LEARN, HELD_OUT)
    photographs = [ROCKET]
    for number, picture in enumerate([*pictures, *UNSEEN]):
        photographs.append(tmp_path / f"{number:02}.png")
        photographs[-1].write_bytes(picture.png)
    made = project(photographs, "labeling_brush.xml")
    key = ProjectKey(studio.url, made.id)
    base = live(studio)

    # one accepted, one corrected with the eraser: both are in the store
    accepted, corrected = accept_one_and_correct_another(editor, made)
    eventually(lambda: count(backends_store, key).regions == 2)
    stored = {region.key.region: region for region in stream_regions(backends_store, key)}
    now = masks_in_label_studio(studio, made.id)
    for row, outcome in ((accepted, "accepted"), (corrected, "corrected")):
        region, before = stored[row["id"]], mask_of(row)
        assert (region.outcome, region.model_version, region.rank) == (outcome, base, row["meta"]["candidate"])
        assert np.array_equal(decode_coco_rle(dict(region.mask)), now[row["id"]])
        assert region.iou_with_offer == pytest.approx(iou(before, now[row["id"]]))
    assert np.array_equal(now[accepted["id"]], mask_of(accepted))
    assert 0 < now[corrected["id"]].sum() < mask_of(corrected).sum()

    # Start Training; the worker takes the job, and the gate decides
    label_all(studio, made.tasks[1 : 1 + len(pictures)], pictures)
    editor.start_training(made.id)
    editor.screenshot("11-start-training")
    (job,) = jobs.list_jobs(backends_store, key)
    assert job.trigger == "button"
    eventually(lambda: jobs.find(backends_store, job.id).finished_at is not None, seconds=600)
    job = jobs.find(backends_store, job.id)
    assert job.state == "promoted", job.message
    assert (job.parent, job.regions) == (base, 2 + 3 * len(pictures))
    assert job.verdict["gain"]["low"] > 0

    # it answers the next click; rolled back, the one before it does
    assert job.version is not None
    eventually(lambda: live(studio) == job.version)
    assert version_of_a_click(editor, made, 0, "11-new-version") == job.version
    assert base in semsam("versions", "rollback")
    eventually(lambda: live(studio) == base)
    assert version_of_a_click(editor, made, 1, "11-rolled-back") == base

    # what was submitted leaves as it is
    expected = masks_in_label_studio(studio, made.id)
    assert len(expected) == job.regions
    semsam("export", "--project", made.id, "--format", "coco", "--out", tmp_path / "coco")
    assert same(masks_in_coco(tmp_path / "coco"), expected)
    out = tmp_path / "label-studio"
    semsam("export", "--project", made.id, "--format", "labelstudio", "--images", "none", "--out", out)
    copy = {"title": "imported from the loop", "label_config": (out / "labeling.xml").read_text()}
    copied = studio.api.call("POST", "/api/projects", json=copy)["id"]
    for split in SPLITS:
        studio.api.call("POST", f"/api/projects/{copied}/import", json=json.loads((out / f"{split}.json").read_text()))
    assert same(masks_in_label_studio(studio, copied), expected)
