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

from backend.corrections.queries import count, stream_regions
from backend.demo.project import DemoProject
from backend.inference.preannotation import UNFINISHED
from backend.records import Preannotated, ProjectKey, StoredRegion
from backend.store.database import Store
from tests.journeys.browser import Editor
from tests.journeys.conftest import Studio
from tests.journeys.test_click_in_label_studio import mask_of
from tests.paths import CONFIGS, SAMPLES

pytestmark = pytest.mark.browser

LABELS = (
    '<Label value="person" kind="object" background="#2563eb"/>',
    '<Label value="cat" kind="object" background="#d97706"/>',
    '<Label value="hair" of="person" background="#16a34a"/>',
    '<Label value="skin" of="person" background="#dc2626"/>',
)
VIEWS, COPIES = 5, 4
PARTS = ("hair", "skin")
ON_THE_SUIT = (460, 200)  #: row and column of the first view
TASKS = VIEWS * COPIES


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """A person in every other view and a cat in the rest, mirrored or smaller; each view in several files."""
    astronaut, cat = (Image.open(SAMPLES / f"{name}.jpg").convert("RGB") for name in ("astronaut", "cat"))
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
    labeling = (CONFIGS / "labeling_brush.xml").read_text()
    config = tmp_path / "labeling.xml"
    labels = rf"\1{''.join(LABELS)}\2"
    config.write_text(re.sub(r"(<BrushLabels[^>]*>).*?(</BrushLabels>)", labels, labeling, flags=re.S))
    made = project(photographs, str(config))

    table = editor.data_manager()
    predictions: dict[int, dict[str, Any]] = {}
    for _ in range(5):  # a slow machine does not get through in the time of one request, and is asked again
        table.open(made.id)
        table.select_all(TASKS)
        assert table.retrieve_predictions(TASKS)["processed_items"] == TASKS
        every = studio.api.call("GET", "/api/predictions", params={"project": made.id})
        predictions = {each["task"]: each for each in every if not each["model_version"].endswith(UNFINISHED)}
        if len(predictions) == TASKS:
            break
    assert set(predictions) == set(made.tasks)
    for number, task in enumerate(made.tasks):
        rows = regions(predictions[task])
        assert ("person", "cat")[number % VIEWS % 2] in map(name_of, rows)
        for of_parts in (True, False):
            masks = [mask_of(row) for row in rows if (name_of(row) in PARTS) == of_parts]
            assert not masks or np.sum(masks, axis=0).max() == 1

    rows = regions(predictions[made.tasks[0]])
    editor.open_annotation(made.id, made.tasks[0], regions=len(rows))
    editor.show_region_labels()
    editor.screenshot("10-preannotated")
    person = max(rows, key=lambda row: row["score"])
    rest = [row for row in rows if row is not person]
    parents = {name_of(row): row.get("parentID") for row in rest}
    assert name_of(person) == "person" and "hair" in parents
    assert parents == {name: person["id"] if name in PARTS else None for name in parents}
    seen = [(name_of(row), f"{row['score']:.2f}", int("parentID" in row)) for row in rows]
    assert sorted(editor.panel()) == sorted(seen)

    before, (y, x) = mask_of(person), ON_THE_SUIT
    assert before[y, x]
    height, width = before.shape
    editor.select("person", f"{person['score']:.2f}")
    editor.erase(((x - 20) / width, y / height), ((x + 20) / width, y / height))
    editor.screenshot("10-put-right")
    editor.submit()

    (annotation,) = studio.api.call("GET", f"/api/tasks/{made.tasks[0]}/annotations/")
    submitted = {row["id"]: row for row in regions(annotation)}
    assert set(submitted) == {row["id"] for row in rows}
    after = mask_of(submitted[person["id"]])
    assert not after[y, x]
    assert 0.97 < after.sum() / before.sum() < 1 and not (after & ~before).any()
    for row in rest:
        again = submitted[row["id"]]
        assert np.array_equal(mask_of(again), mask_of(row))
        assert (name_of(again), again.get("parentID")) == (name_of(row), row.get("parentID"))
    kept = stored(studio, made.id, Preannotated(annotations=1, accepted=len(rest), corrected=1))
    assert {name: (each.outcome, each.iou_with_offer) for name, each in kept.items()} == {
        person["id"]: ("corrected", pytest.approx(after.sum() / before.sum())),
        **{row["id"]: ("accepted", 1) for row in rest},
    }
    assert {each.parent for each in kept.values()} == {None, person["id"]}
    assert {each.model_version for each in kept.values()} == {predictions[made.tasks[0]]["model_version"]}
    assert all(each.preannotated and each.seconds is None for each in kept.values())
    without = [row for row in annotation["result"] if row["id"] != rest[0]["id"]]
    studio.api.call("PATCH", f"/api/annotations/{annotation['id']}/", json={"result": without})
    judged = Preannotated(annotations=1, accepted=len(rest) - 1, corrected=1, deleted=1)
    assert set(stored(studio, made.id, judged)) == {row["id"] for row in rows} - {rest[0]["id"]}
