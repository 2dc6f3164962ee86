"""What cannot be written holds up nothing that comes after it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.corrections.queries import count, list_projects
from backend.corrections.writer import StoreWriter
from backend.label_studio.events import parse_webhook
from backend.label_studio.fields import MAX_ID
from backend.metrics import Metrics
from backend.store.database import Store
from tests.backend.annotations import CONFIG, KEY, ORIGIN, annotation, answered, brush_row, event, square
from tests.backend.stored import find_suggestion
from tests.waiting import eventually


def test_what_the_database_does_not_take_is_dropped_and_the_rest_written(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    writer = StoreWriter(store, Metrics())
    good, (row,) = answered([square(5, 5, 20)])
    writer.add_project(replace(KEY, project=MAX_ID + 1), CONFIG)
    writer.add_project(KEY, CONFIG)
    writer.add_answer(replace(good, task=MAX_ID + 1))
    writer.start()
    try:
        eventually(lambda: "suggestions are not stored" in caplog.text)
        writer.add_answer(good)
        body = event("ANNOTATION_CREATED", annotation=annotation(1, [brush_row("a", square(1, 1, 5))]))
        writer.enqueue(parse_webhook(body).to_event(ORIGIN))
        eventually(lambda: find_suggestion(store, row["meta"]["prompt_id"]) is not None)
        eventually(lambda: count(store, KEY).regions == 1)
        assert [each.key for each in list_projects(store)] == [KEY]
    finally:
        writer.stop()
