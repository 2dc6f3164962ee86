"""A project that opens already labelled: predictions for twenty tasks, one opened, put right and submitted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from backend.corrections import count, stream_regions
from backend.demo import DemoProject
from backend.records import Preannotated, ProjectKey, StoredRegion
from backend.store import Store
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.journeys.demo_process import ROOT
from tests.journeys.test_click_in_label_studio import mask_of

pytestmark = pytest.mark.browser

LABELS = (
    '<Label value="person" kind="object" background="#2563eb"/>',
    '<Label value="cat" kind="object" background="#d97706"/>',
    '<Label value="face" of="person" background="#dc2626"/>',
    '<Label value="hair" of="person" background="#16a34a"/>',
)
VIEWS, COPIES = 5, 4
PARTS = ("face", "hair")
ON_THE_SUIT = (460, 200)  #: row and column of the first view
TASKS = VIEWS * COPIES


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """A person in every other view and a cat in the rest, mirrored or smaller; each view in several files."""
    astronaut, cat = (Image.open(ROOT / "samples" / f"{name}.jpg").convert("RGB") for name in ("astronaut", "cat"))
    views = [astronaut, cat, ImageOps.mirror(astronaut), ImageOps.mirror(cat), ImageOps.scale(astronaut, 0.7)]
    made = []
    for number in range(TASKS):
        made.append(tmp_path / f"{number:02}.jpg")
        views[number % VIEWS].save(made[-1], quality=95)
    return made


def stored(studio: Studio, project: int, judged: Preannotated) -> dict[str, StoredRegion]:
    """Regions in the running backend's store, as soon as they have been held against the prediction like that."""
    store, key = Store.open(f"sqlite:///{studio.demo.data}/semsam.db"), ProjectKey(studio.url, project)
    end = time.monotonic() + 60
    while count(store, key).preannotated != judged and time.monotonic() < end:
        time.sleep(0.1)
    assert count(store, key).preannotated == judged
    found = {each.key.region: each for each in stream_regions(store, key)}
    store.close()
    return found


def regions(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in prediction["result"] if row["type"] == "brushlabels"]


def name_of(row: dict[str, Any]) -> str:
    return row["value"]["brushlabels"][0]


def test_predictions_for_twenty_tasks_and_one_put_right_and_submitted(
    editor: Editor, studio: Studio, project: Callable[..., DemoProject], photographs: list[Path], tmp_path: Path
) -> None:
    labeling = (ROOT / "configs" / "labeling.xml").read_text()
    config = tmp_path / "labeling.xml"
    labels = rf"\1{''.join(LABELS)}\2"
    config.write_text(re.sub(r"(<BrushLabels[^>]*>).*?(</BrushLabels>)", labels, labeling, flags=re.S))
    made = project(photographs, str(config))

    table = editor.data_manager()
    table.open(made.id)
    table.select_all(TASKS)
    answer = table.retrieve_predictions(TASKS)
    assert answer["processed_items"] == TASKS
    every = studio.api.call("GET", "/api/predictions", params={"project": made.id})
    predictions = {each["task"]: each for each in every}
    assert set(predictions) == set(made.tasks)
    for number, task in enumerate(made.tasks):
        rows = regions(predictions[task])
        assert ("person", "cat")[number % VIEWS % 2] in map(name_of, rows)
        for of_parts in (True, False):
            masks = [mask_of(row) for row in rows if (name_of(row) in PARTS) == of_parts]
            assert not masks or np.sum(masks, axis=0).max() == 1

    rows = regions(predictions[made.tasks[0]])
    editor.open_annotation(made.id, made.tasks[0], regions=len(rows))
    editor.screenshot("10-preannotated")
    person, face = rows
    assert [name_of(row) for row in rows] == ["person", "face"]  # the part is drawn on top
    assert face["parentID"] == person["id"]
    assert editor.panel() == [(name_of(row), f"{row['score']:.2f}", depth) for depth, row in enumerate(rows)]

    before, (y, x) = mask_of(person), ON_THE_SUIT
    assert before[y, x]
    height, width = before.shape
    editor.select("person")
    editor.erase(((x - 20) / width, y / height), ((x + 20) / width, y / height))
    editor.screenshot("10-put-right")
    editor.submit()

    (annotation,) = studio.api.call("GET", f"/api/tasks/{made.tasks[0]}/annotations/")
    submitted = {name_of(row): row for row in regions(annotation)}
    assert {name: row["id"] for name, row in submitted.items()} == {"person": person["id"], "face": face["id"]}
    after = mask_of(submitted["person"])
    assert not after[y, x]
    assert 0.97 < after.sum() / before.sum() < 1 and not (after & ~before).any()
    assert np.array_equal(mask_of(submitted["face"]), mask_of(face))
    assert submitted["face"]["parentID"] == person["id"]
    kept = stored(studio, made.id, Preannotated(annotations=1, accepted=1, corrected=1))
    assert {each.key.region: each.outcome for each in kept.values()} == {
        person["id"]: "corrected",
        face["id"]: "accepted",
    }
    assert kept[face["id"]].parent == person["id"]
    assert {each.model_version for each in kept.values()} == {predictions[made.tasks[0]]["model_version"]}
    assert {name: each.iou_with_offer for name, each in kept.items()} == {
        person["id"]: pytest.approx(after.sum() / before.sum()),
        face["id"]: 1,
    }
    assert all(each.preannotated and each.seconds is None for each in kept.values())
    without = [row for row in annotation["result"] if row["id"] != face["id"]]
    studio.api.call("PATCH", f"/api/annotations/{annotation['id']}/", json={"result": without})
    assert set(stored(studio, made.id, Preannotated(annotations=1, corrected=1, deleted=1))) == {person["id"]}
