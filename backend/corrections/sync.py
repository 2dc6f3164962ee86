"""The store against Label Studio's own list: whatever a webhook did not bring is fetched, what is gone is marked.

A webhook is one attempt of one second. This is what makes it harmless to miss one: of every task that changed since it
was last looked at, the annotations are read through the API and applied as a delivery would be; annotations and tasks
that Label Studio no longer lists are marked as deleted once it has said so about each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, and_, select, update

from backend.corrections.ingest import (
    apply,
    config_or_empty,
    is_project,
    live_annotations,
    mark_deleted,
    mark_task_deleted,
    note_missed,
    note_project,
    note_task,
    prepare,
)
from backend.errors import BadRequest, NotFound
from backend.label_studio.annotations import parse_annotation
from backend.label_studio.client import LabelStudio, all_tasks
from backend.label_studio.events import image_url
from backend.label_studio.fields import is_id
from backend.records import ProjectKey
from backend.store.database import Store, upsert
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import projects, tasks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synced:
    """What a comparison found. `changed` and `deleted` count annotations."""

    tasks: int  #: listed
    read: int  #: of them, read with their annotations, because they had changed
    changed: int
    deleted: int
    problems: tuple[str, ...] = ()  #: annotations that could not be read

    def __str__(self) -> str:
        bad = f", {len(self.problems)} unreadable" if self.problems else ""
        return (
            f"{self.tasks} tasks, {self.read} of them changed: {self.changed} annotations new or newer,"
            f" {self.deleted} gone{bad}"
        )


def sync_project(
    store: Store,
    label_studio: LabelStudio,
    key: ProjectKey,
    *,
    everything: bool = False,
    on_task: Callable[[int, int], None] = lambda done, total: None,
) -> Synced:
    """Compare one project. everything: read tasks that did not change, too. on_task(done, total) after each.

    Repeatable, and may be cut off anywhere: what was done stays done. Raises StoreError, LabelStudioError; NotFound
    when Label Studio has no such project, or does not show it to us, which is then marked (`note_missed`), its
    corrections staying as they are.
    """
    name = label_studio.project_on(key.origin, key.project)
    began = datetime.now(UTC)
    try:
        project = label_studio.get_project(key.project, project=name)
    except NotFound:
        with store.write() as connection:
            note_missed(connection, key, began)
        raise
    xml = str(project.get("label_config") or "")
    with store.write() as connection:
        note_project(connection, key, str(project.get("title") or ""), xml, began)
        # a deletion that was told since we asked stands
        there = and_(is_project(key), projects.c.deleted_at < began)
        connection.execute(update(projects).where(there).values(deleted_at=None, missed_at=None))
    listed: set[int] = set()
    read = changed = deleted = 0
    problems: list[str] = []
    for task, stamp, total in _listed(label_studio, key, name):
        listed.add(task)
        if everything or _seen(store, key, task) != stamp:
            news, gone, bad = _read_task(store, label_studio, key, name, task, stamp, xml)
            read, changed, deleted = read + 1, changed + news, deleted + gone
            problems += bad
        on_task(len(listed), total)
    for task in _known_tasks(store, key, before=began):
        if task not in listed:
            news, gone, bad = _read_task(store, label_studio, key, name, task, None, xml)
            changed, deleted = changed + news, deleted + gone
            problems += bad
    with store.write() as connection:
        connection.execute(update(projects).where(is_project(key)).values(synced_at=began))
    return Synced(len(listed), read, changed, deleted, tuple(problems))


def _listed(label_studio: LabelStudio, key: ProjectKey, name: str) -> Iterator[tuple[int, str, int]]:
    """(id, when it changed last, number of tasks) of every task; Label Studio counts each annotation as a change."""
    for task, total in all_tasks(label_studio, key.project, name):
        if isinstance(task, dict) and is_id(task.get("id")):
            yield task["id"], str(task.get("updated_at")), total


def _read_task(
    store: Store,
    label_studio: LabelStudio,
    key: ProjectKey,
    name: str,
    task: int,
    stamp: str | None,
    label_config: str,
) -> tuple[int, int, list[str]]:
    """Make the store hold a task's annotations; (changed, deleted, unreadable)."""
    asked = datetime.now(UTC)
    try:
        answer = label_studio.get_task(task, project=name)
    except NotFound:
        with store.write() as connection:
            gone = len(live_annotations(connection, key, task))
            mark_task_deleted(connection, key, task, asked)
        return 0, gone, []
    config = config_or_empty(label_config)
    problems: list[str] = []
    prepared, there = [], set()
    for each in answer.get("annotations") or []:
        if isinstance(each, dict) and is_id(each.get("id")):
            there.add(each["id"])
        try:
            annotation = parse_annotation(each, project=key.project, task=task)
            prepared.append((annotation, prepare(store, key, annotation, config)))
        except BadRequest as error:
            problems.append(f"task {task}: {error}")
            log.warning("project %s task %d: %s", key, task, error)
    url = image_url(label_config, answer["data"]) if isinstance(answer.get("data"), dict) else None
    changed = 0
    with store.write() as connection:
        if url is not None and prepared:
            note_task(connection, key, task, url)
        for annotation, rows in prepared:
            changed += apply(connection, key, annotation, rows, asked, listed_at=asked)
        gone_now = tuple(sorted(set(_heard_of_before(connection, key, task, asked)) - there))
        mark_deleted(connection, key, gone_now, asked)
        if stamp is not None:
            _note_seen(connection, key, task, stamp)
    return changed, len(gone_now), problems


def _seen(store: Store, key: ProjectKey, task: int) -> str | None:
    mine = and_(tasks.c.origin == key.origin, tasks.c.project == key.project, tasks.c.task == task)
    with store.read() as connection:
        return connection.scalar(select(tasks.c.seen).where(mine))


def _note_seen(connection: Connection, key: ProjectKey, task: int, stamp: str) -> None:
    statement = upsert(connection, tasks).values(origin=key.origin, project=key.project, task=task, seen=stamp)
    statement = statement.on_conflict_do_update(
        index_elements=["origin", "project", "task"], set_={"seen": stamp, "deleted_at": None}
    )
    connection.execute(statement)


def _known_tasks(store: Store, key: ProjectKey, before: datetime) -> list[int]:
    """Tasks with annotations that are not marked, and that we had heard of by then."""
    query = (
        select(annotation_rows.c.task)
        .distinct()
        .where(
            annotation_rows.c.origin == key.origin,
            annotation_rows.c.project == key.project,
            annotation_rows.c.task.is_not(None),
            annotation_rows.c.deleted_at.is_(None),
            annotation_rows.c.received_at < before,
        )
    )
    with store.read() as connection:
        return sorted(connection.scalars(query))


def _heard_of_before(connection: Connection, key: ProjectKey, task: int, asked: datetime) -> list[int]:
    """A task's annotations that are not marked, but for those that a webhook brought since we asked."""
    query = select(annotation_rows.c.annotation).where(
        annotation_rows.c.origin == key.origin,
        annotation_rows.c.project == key.project,
        annotation_rows.c.task == task,
        annotation_rows.c.deleted_at.is_(None),
        annotation_rows.c.received_at < asked,
    )
    return list(connection.scalars(query))
