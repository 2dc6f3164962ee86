"""No statement that runs all the time reads all regions or offers, on either database: what they cost does not grow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text, update

from backend.adaptation.concepts import examples_of, fit_worth
from backend.adaptation.lessons import (
    KeptLesson,
    drop_lessons,
    keep_lesson,
    kept_lessons,
    lesson_keys,
    looks,
    training_regions,
)
from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.photos import fetch_photos
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.queries import find_region
from backend.corrections.settling import settle
from backend.corrections.suggestions import save_suggestions
from backend.finetuning import jobs
from backend.finetuning.worker import request_due
from backend.label_studio.events import parse_webhook
from backend.records import ProjectKey
from backend.service.status import read_status
from backend.settings import Settings
from backend.store.database import Store
from backend.store.statements import of_task
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import tasks
from benchmarks.made_store import BEGAN, LABEL_CONFIG, fill
from tests.backend.annotations import annotation, answered, at, brush_row, square
from tests.backend.store.test_totals import Studio, preannotated_row

ORIGIN = "http://ls:8080"
KEY = ProjectKey(ORIGIN, 1)
TASK = 4
LARGE = ("regions", "offers")
#: What a search in a large table has to go by, one of them at least; a server or a project alone is everything.
NARROW = ("task", "annotation", "prompt_id", "image_sha256")
#: Indices of few rows, whatever the size of the store: what is still to be done.
FEW = ("regions_without_photo", "regions_unjudged", "offers_unsettled")
#: Indices in the order in which a query wants its first rows.
IN_ORDER = ("regions_taught", "regions_of_clicks", "offers_unsettled")


def body(action: str, **more: Any) -> dict[str, Any]:
    project = {"id": 1, "title": "p", "label_config": LABEL_CONFIG, "updated_at": BEGAN.isoformat()}
    data = {"id": TASK, "data": {"image": "/data/4.jpg"}}
    return {"action": action, "project": project, "task": data} | more


def put(store: Store, value: Mapping[str, Any]) -> None:
    enqueue(store, parse_webhook(value).to_event(ORIGIN))
    process_inbox(store)


class Actions:
    """What runs all the time, on a store that `fill` made, with the real functions."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.photos, self.times = store, PhotoArchive(folder), 0

    def delivery(self) -> None:
        """An annotation comes, changes and goes; its picture and prediction are fetched, its regions judged."""
        self.times += 1
        _, rows = answered([square(1, 1, 9)], task=TASK)
        rows += [brush_row("a", square(20, 10, 8), label="label 1"), preannotated_row("p0", 0)]
        number = 10**6 + self.times
        made = annotation(number, rows, task=TASK, project=1, parent_prediction=number, updated=1)
        put(self.store, body("ANNOTATION_CREATED", annotation=made))
        with self.store.write() as connection:
            connection.execute(update(tasks).where(of_task(tasks, KEY, TASK)).values(image_sha256=None))
        judge_preannotated(self.store, Studio(), KEY, retry=True)  # type: ignore[arg-type]
        fetch_photos(self.store, Studio(), self.photos, KEY)  # type: ignore[arg-type]
        put(self.store, body("ANNOTATION_UPDATED", annotation=made | {"updated_at": at(2).isoformat()}))
        put(self.store, body("ANNOTATIONS_DELETED", annotations=[{"id": number}]))
        put(self.store, body("TASKS_DELETED", tasks=[{"id": 10**6}]))

    def click(self) -> None:
        answer, _ = answered([square(1, 1, 9)], task=TASK)
        suggestion = answer.suggestion()
        assert suggestion is not None
        with self.store.write() as connection:
            save_suggestions(connection, [replace(suggestion, key=KEY)])
        examples_of(self.store, KEY, TASK, (40, 60))

    def look(self) -> None:
        """Of the learner, and what it reads when there is something new."""
        assert KEY in looks(self.store)
        *_, newest = training_regions(self.store, KEY, most=20)
        assert find_region(self.store, newest.key)
        keep_lesson(self.store, newest.key, "m", KeptLesson(newest.updated_at, b"lesson"))
        assert list(kept_lessons(self.store, [newest.key], "m")) == lesson_keys(self.store, KEY, "m") == [newest.key]
        drop_lessons(self.store, [newest.key])
        fit_worth(self.store, KEY, "v")

    def status(self) -> None:
        assert read_status(self.store).projects[0].counts.regions

    def job_check(self) -> None:
        assert jobs.new_corrections(self.store, KEY, most=5) == (5, None)
        assert request_due(self.store, Settings(finetune_after_corrections=50))
        assert request_due(self.store, Settings(finetune_after_corrections=50)) == []

    def settling(self) -> None:
        sum(settle(self.store, timedelta(days=1), BEGAN + timedelta(days=1)))

    def all(self) -> dict[str, Callable[[], None]]:
        names = ("delivery", "click", "look", "status", "job_check", "settling")
        return {name: getattr(self, name) for name in names}


@contextmanager
def statements(store: Store) -> Iterator[dict[str, Any]]:
    """Every statement that runs inside, with the parameters of its first run."""
    found: dict[str, Any] = {}

    def noted(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if re.match("SELECT|INSERT|UPDATE|DELETE|WITH", statement) and "advisory" not in statement:
            found.setdefault(statement, parameters[0] if many else parameters)

    event.listen(store._engine, "before_cursor_execute", noted)
    try:
        yield found
    finally:
        event.remove(store._engine, "before_cursor_execute", noted)


def reads(store: Store, statement: str, parameters: Any) -> Iterator[tuple[str, str | None, str]]:
    """What a statement reads of the large tables by the database's own plan: (table, index, by which columns)."""
    with store.read() as connection:
        if store.dialect == "sqlite":
            for *_, line in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                if found := re.match(r"(?:SCAN|SEARCH) (\w+)(?:.*? INDEX (\w+))?(?: \((.*)\))?", line):
                    yield found[1], found[2], found[3] or ""
            return
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # tables of the test are small
        cursor = psycopg.ClientCursor(connection.connection.driver_connection)  # type: ignore[arg-type]
        (plan,) = cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters).fetchone() or ()  # type: ignore
        nodes = [plan[0]["Plan"]]
        while nodes:
            node = nodes.pop()
            nodes += node.get("Plans", ())
            if node["Node Type"] in ("Bitmap Heap Scan", "ModifyTable"):
                continue  # what it reads those below it say
            if "Index Name" in node or "Relation Name" in node:
                index = node.get("Index Name")
                table = node.get("Relation Name") or str(index).partition("_")[0]
                yield table, index, node.get("Index Cond", "")


def judged(statement: str, table: str, index: str | None, by: str) -> bool:
    """Whether what is read of a table stays small."""
    if table not in LARGE or index in FEW or any(re.search(rf"\b{name}\b", by) for name in NARROW):
        return True
    if index == "sqlite_autoindex_offers_1" or index == "offers_pkey":
        return True
    return index in IN_ORDER and "LIMIT" in statement


def test_no_statement_that_runs_all_the_time_reads_a_large_table_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.service.status.RECENT", 20)  # few of those in the store, as in a large one
    monkeypatch.setattr("backend.adaptation.concepts.NEWEST", 3)
    fill(store, ORIGIN, 400, 2)
    bad, read = [], set()
    for name, action in Actions(store, tmp_path).all().items():
        with statements(store) as found:
            action()
        for statement, parameters in found.items():
            if statement.startswith("INSERT") and "SELECT" not in statement:
                continue
            for table, index, by in reads(store, statement, parameters):
                read.add(table)
                if not judged(statement, table, index, by):
                    bad.append(f"{name}: {table} by {index} ({by}): {statement}")
    assert {*LARGE} <= read
    assert not bad, "\n\n".join(bad)


def test_a_scan_is_seen(store: Store) -> None:
    fill(store, ORIGIN, 20, 1)
    statement = "SELECT count(*) FROM regions WHERE origin = 'http://ls:8080' AND project = 1 AND seconds > 3"
    parameters: Any = () if store.dialect == "sqlite" else {}
    assert not all(judged(statement, *each) for each in reads(store, statement, parameters))


@pytest.mark.slow
def test_the_work_of_what_runs_all_the_time_does_not_grow_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite counts the steps of its machine; no clock is asked."""
    monkeypatch.setattr("backend.service.status.RECENT", 20)
    steps: dict[int, dict[str, int]] = {}
    for size in (200, 800):
        counted = 0

        def tick() -> int:
            nonlocal counted
            counted += 1
            return 0

        store = Store.open(f"sqlite:///{tmp_path}/{size}.db")
        fill(store, ORIGIN, size, 1)
        with store.write() as connection:  # those from predictions are looked through in an index
            connection.execute(update(annotation_rows).values(prediction=None))
        event.listen(store._engine, "checkout", lambda raw, *_: raw.set_progress_handler(tick, 10))
        steps[size] = {}
        for name, action in Actions(store, tmp_path / str(size)).all().items():
            counted = 0
            action()
            steps[size][name] = counted
        store.close()
    small, large = steps.values()
    grown = {name: large[name] / small[name] for name in small}
    assert max(grown.values()) < 1.3, (grown, steps)
