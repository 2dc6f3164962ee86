"""The store brought up to date with Label Studio: what no webhook brought is fetched, what is gone is marked.

A webhook is one attempt of one second. This makes it harmless to miss one: the annotations of every task that changed
since it was last read are read through the API and saved as an event's would be; annotations and tasks that Label
Studio no longer lists are marked as deleted once it has said so about each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from backend.corrections.archive import PhotoArchive
from backend.corrections.outcomes import config_or_empty, region_rows
from backend.corrections.photos import Fetched, fetch_photos
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.updates import (
    annotated_tasks,
    live_annotations,
    mark_deleted,
    mark_missed,
    mark_seen,
    mark_synced,
    mark_task_deleted,
    mark_there,
    save_annotation,
    save_project,
    save_task,
)
from backend.errors import BadRequest, NotFound
from backend.label_studio.annotations import Annotation, parse_annotation
from backend.label_studio.client import LabelStudio, task_pages
from backend.label_studio.events import image_url
from backend.label_studio.fields import is_id
from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.statements import of_project
from backend.store.tables import tasks
from semsam_model.errors import Stopped
from semsam_model.types import ShouldStop, never_stop

log = logging.getLogger(__name__)


@dataclass
class Synced:
    """What a comparison found. `changed` and `deleted` count annotations."""

    tasks: int = 0  #: listed
    read: int = 0  #: of them, read with their annotations, because they had changed
    changed: int = 0
    deleted: int = 0
    problems: list[str] = field(default_factory=list)  #: annotations that could not be read

    def __str__(self) -> str:
        annotations = f"{self.changed} annotations new or newer, {self.deleted} gone"
        bad = f", {len(self.problems)} unreadable" if self.problems else ""
        return f"{self.tasks} tasks, {self.read} of them changed: {annotations}{bad}"


def sync_project(
    store: Store,
    label_studio: LabelStudio,
    key: ProjectKey,
    *,
    everything: bool = False,
    on_task: Callable[[int, int], None] = lambda done, total: None,
    should_stop: ShouldStop = never_stop,
) -> Synced:
    """Compare one project. everything: read tasks that did not change, too. on_task(done, total): after each.

    Repeatable, and may be cut off anywhere: what was done stays done. should_stop: asked before each task. Raises
    Stopped, StoreError, LabelStudioError; NotFound when Label Studio has no such project, or does not show it to us,
    which is then marked (`mark_missed`); its corrections stay as they are.
    """
    name = label_studio.project_on(key.origin, key.project)
    began = datetime.now(UTC)
    try:
        project = label_studio.get_project(key.project, project=name)
    except NotFound:
        with store.write() as connection:
            mark_missed(connection, key, began)
        raise
    label_config = str(project.get("label_config") or "")
    with store.write() as connection:
        save_project(connection, key, str(project.get("title") or ""), label_config, began)
        mark_there(connection, key, began)
    comparison = _Comparison(store, label_studio, key, name, label_config)
    for page, total in task_pages(label_studio, key.project, name):
        stamps = {
            task["id"]: str(task.get("updated_at")) for task in page if isinstance(task, dict) and is_id(task.get("id"))
        }
        seen = comparison.seen_stamps(list(stamps))
        for task, stamp in stamps.items():
            if should_stop():
                raise Stopped(f"project {key}: comparison ended early")
            comparison.listed_task(task, stamp, everything or seen.get(task) != stamp)
            on_task(len(comparison.listed), total)
    with store.read() as connection:
        known = annotated_tasks(connection, key, received_before=began)
    for number in known:
        if should_stop():
            raise Stopped(f"project {key}: comparison ended early")
        if number not in comparison.listed:
            comparison.read_task(number, None)
    with store.write() as connection:
        mark_synced(connection, key, began)
    return comparison.found


@dataclass
class _Comparison:
    """A comparison that is under way."""

    store: Store
    label_studio: LabelStudio
    key: ProjectKey
    name: str  #: of the project, as `LabelStudio` takes it
    label_config: str
    listed: set[int] = field(default_factory=set)
    found: Synced = field(default_factory=Synced)

    def seen_stamps(self, listed: list[int]) -> dict[int, str | None]:
        """Of these tasks, as far as they are known, the stamps that were seen last: one query for a page of tasks."""
        query = select(tasks.c.task, tasks.c.seen).where(of_project(tasks, self.key), tasks.c.task.in_(listed))
        with self.store.read() as connection:
            return {row.task: row.seen for row in connection.execute(query)}

    def listed_task(self, task: int, stamp: str, changed: bool) -> None:
        """Note a task that Label Studio lists, and read it if it has changed.

        stamp: the task's `updated_at`; Label Studio counts each change of an annotation as a change of its task.
        """
        self.listed.add(task)
        self.found.tasks = len(self.listed)
        if changed:
            self.read_task(task, stamp)
            self.found.read += 1

    def read_task(self, task: int, stamp: str | None) -> None:
        """Make the store hold a task's annotations. stamp: None for a task that was not listed."""
        asked = datetime.now(UTC)
        try:
            answer = self.label_studio.get_task(self.key.project, task, project=self.name)
        except NotFound:
            with self.store.write() as connection:
                self.found.deleted += len(live_annotations(connection, self.key, task))
                mark_task_deleted(connection, self.key, task, asked)
            return
        there, with_rows = self._parsed(task, answer.get("annotations") or [])
        url = image_url(self.label_config, answer["data"]) if isinstance(answer.get("data"), dict) else None
        with self.store.write() as connection:
            if url is not None and with_rows:
                save_task(connection, self.key, task, url)
            for annotation, rows in with_rows:
                self.found.changed += save_annotation(connection, self.key, annotation, rows, asked, listed_at=asked)
            gone = set(live_annotations(connection, self.key, task, received_before=asked)) - there
            mark_deleted(connection, self.key, sorted(gone), asked)
            self.found.deleted += len(gone)
            if stamp is not None:
                mark_seen(connection, self.key, task, stamp)

    def _parsed(self, task: int, values: list[Any]) -> tuple[set[int], list[tuple[Annotation, list[dict[str, Any]]]]]:
        """Ids of all annotations that are there, and those that can be read, each with its rows of regions."""
        config = config_or_empty(self.label_config)
        there, with_rows = set(), []
        for each in values:
            if isinstance(each, dict) and is_id(each.get("id")):
                there.add(each["id"])
            try:
                annotation = parse_annotation(each, project=self.key.project, task=task)
                with_rows.append((annotation, region_rows(self.store, self.key, annotation, config)))
            except BadRequest as error:
                self.found.problems.append(f"task {task}: {error}")
                log.warning("project %s task %d: %s", self.key, task, error)
        return there, with_rows


def bring_up_to_date(
    store: Store,
    label_studio: LabelStudio,
    photos: PhotoArchive,
    key: ProjectKey,
    *,
    everything: bool = False,
    on_task: Callable[[int, int], None] = lambda done, total: None,
    should_stop: ShouldStop = never_stop,
) -> tuple[Synced, Fetched]:
    """Compare a project's annotations, then judge its pre-annotated regions, then fetch the photos of its regions.

    What failed a moment ago is tried again at once. Events that wait in the inbox are the caller's to process first.
    everything, on_task: see `sync_project`. should_stop: asked between any two tasks, predictions and photos. Raises
    Stopped, StoreError, LabelStudioError; what was done before stays done.
    """
    synced = sync_project(store, label_studio, key, everything=everything, on_task=on_task, should_stop=should_stop)
    judge_preannotated(store, label_studio, key, retry=True, should_stop=should_stop)
    return synced, fetch_photos(store, label_studio, photos, key, retry=True, should_stop=should_stop)
