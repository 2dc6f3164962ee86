"""Of several annotations of a task the one that was submitted or updated last counts, also where nothing is in it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.labelled_photos import newest_annotations
from backend.corrections.queries import bare_photos, emptied_tasks, stream_newest, stream_regions
from backend.label_studio.events import parse_webhook
from backend.store.database import Store
from backend.store.tables import regions, tasks
from tests.backend.annotations import KEY, ORIGIN, SIZE, annotation, brush_row, event, square
from tests.backend.stored import photo

DRAWN = [brush_row("a", square(3, 3, 9))]
#: Task -> its annotations in the order of their changes: what is in them, and whether they were skipped.
SUBMITTED: dict[int, list[tuple[list[Any], bool]]] = {
    1: [(DRAWN, False), ([], False)],
    2: [([], False), (DRAWN, False)],
    3: [(DRAWN, False), ([], True)],
    4: [([], False)],
}


def fill(store: Store) -> None:
    for task, submitted in SUBMITTED.items():
        for number, (rows, cancelled) in enumerate(submitted):
            body = annotation(10 * task + number, rows, task=task, updated=number, was_cancelled=cancelled)
            enqueue(store, parse_webhook(event("ANNOTATION_CREATED", annotation=body)).to_event(ORIGIN))
    process_inbox(store)


def test_an_empty_annotation_counts_where_it_is_the_last_that_was_submitted(store: Store) -> None:
    fill(store)
    assert {each.key.task for each in stream_regions(store, KEY)} == {1, 2, 3}
    assert {each.key.task for each in stream_newest(store, KEY)} == {2, 3}
    assert emptied_tasks(store, KEY) == {1}
    assert [each.task for each in bare_photos(store, KEY)] == [1, 4]


def test_export_and_fine_tuning_leave_older_annotations_out_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMSAM_DATA_DIR", str(tmp_path))
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    fill(store)
    archive = PhotoArchive(tmp_path / "photos")
    digests = {task: archive.keep(photo(task, SIZE)) for task in SUBMITTED}
    with store.write() as connection:
        for table in (tasks, regions):
            for task, digest in digests.items():
                connection.execute(table.update().where(table.c.task == task).values(image_sha256=digest))
    store.close()
    with closing(Store.open(f"sqlite:///{tmp_path}/semsam.db")) as again:
        found_by_photo = newest_annotations(again, KEY, sorted(digests.values()))
        assert {own[0].key.task for own in found_by_photo} == {2, 3}
    for form, annotated in (("coco", {2, 3}), ("labelstudio", {1, 2, 3})):
        out = tmp_path / form
        arguments = ["export", "--project", "7", "--complete", "--format", form, "--out", str(out)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert ("older annotations of 1 tasks" in done.output) == (form == "coco")
        found = dict[int, bool]()
        for split in ("train", "val"):
            content = json.loads((out / f"{split}.json").read_text())
            if form == "coco":
                full = {each["image_id"] for each in content["annotations"]}
                found |= {each["id"]: each["id"] in full for each in content["images"]}
            else:
                each_task = ((each["meta"]["semsam"]["task"], each["annotations"]) for each in content)
                found |= {task: any(each["result"] for each in listed) for task, listed in each_task}
        assert found == {task: task in annotated for task in SUBMITTED}
