"""Webhook events of Label Studio -> the store: put into the inbox at once, processed later.

An event lies in the inbox from before it is acknowledged until the last transaction that processes it, so it can be
neither lost nor left half done. Processing an event twice changes nothing: the newest `updated_at` of an annotation
counts, and a deletion is final, unless Label Studio itself lists the annotation later (`backend.corrections.sync`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from backend.corrections.outcomes import config_or_empty, region_rows
from backend.corrections.updates import (
    GONE_PIECE,
    PIECE,
    live_annotations,
    mark_deleted,
    mark_found,
    mark_project_deleted,
    mark_task_deleted,
    save_annotation,
    save_project,
    save_task,
)
from backend.errors import BadRequest, StoreUnavailable
from backend.label_studio.annotations import Annotation, parse_annotation
from backend.label_studio.events import WebhookEvent
from backend.label_studio.fields import clean
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.tables import inbox

log = logging.getLogger(__name__)

TELL_S = 2.0  #: seconds after which it is told at the latest that something was processed


def enqueue(store: Store, event: WebhookEvent, now: datetime | None = None) -> None:
    """Put an event into the inbox. When this returns, it is on disk. Raises StoreError."""
    with store.write() as connection:
        connection.execute(insert(inbox), _inbox_row(event, now or datetime.now(UTC)))


def _inbox_row(event: WebhookEvent, now: datetime) -> dict[str, Any]:
    return {"received_at": now, "delivery": event.to_json()}


class Arrivals:
    """Events that requests bring at the same time go into the inbox together: each commit waits for the disk.

    Thread-safe.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[tuple[dict[str, Any], Future[None]]] = deque()
        self._lock = threading.Lock()

    def enqueue(self, event: WebhookEvent) -> None:
        """Put an event into the inbox. When this returns, it is on disk. Raises StoreError, as for those beside it."""
        mine: Future[None] = Future()
        self._waiting.append((_inbox_row(event, datetime.now(UTC)), mine))
        with self._lock:
            if not mine.done():  # else whoever was here before has taken it along
                self._put()
        mine.result()

    def _put(self) -> None:
        some: list[tuple[dict[str, Any], Future[None]]] = []
        try:
            with self._store.write() as connection:
                some = self._taken()  # only now: others came while this one waited for its turn
                connection.execute(insert(inbox), [row for row, _ in some])
        except BaseException as error:
            for _, future in some or self._taken():
                future.set_exception(error)
        else:
            for _, future in some:
                future.set_result(None)

    def _taken(self) -> list[tuple[dict[str, Any], Future[None]]]:
        return [self._waiting.popleft() for _ in range(len(self._waiting))]


def process_inbox(store: Store, on_project: Callable[[ProjectKey], object] = lambda key: None) -> int:
    """Process every event in the inbox, in the order received, but those that another process has; how many those were.

    on_project: told the projects of these, once none waits any more or `TELL_S` have passed: whoever is told begins
    work that would slow down the events behind.
    An event that cannot be processed stays there with the reason. Raises StoreUnavailable when the database fails:
    the events wait on.
    """
    processed = number = 0
    changed: set[ProjectKey] = set()
    tell_at = time.monotonic() + TELL_S
    waiting = select(inbox.c.id).where(inbox.c.problem.is_(None)).order_by(inbox.c.id).limit(1)
    try:
        while True:
            with store.read() as connection:
                after = connection.scalar(waiting.where(inbox.c.id > number))
            if after is None:
                return processed
            number = after
            with store.claim(f"event {number}") as mine:
                processed += mine and _process_or_note(store, number, changed.add)
            if time.monotonic() >= tell_at:
                _tell(changed, on_project)
                tell_at = time.monotonic() + TELL_S
    finally:
        _tell(changed, on_project)


def _tell(changed: set[ProjectKey], on_project: Callable[[ProjectKey], object]) -> None:
    while changed:
        on_project(changed.pop())


def _process_or_note(store: Store, number: int, on_project: Callable[[ProjectKey], object]) -> bool:
    """Process an event, or note why it cannot be; False where another process has done that."""
    waits = inbox.c.id == number, inbox.c.problem.is_(None)
    with store.read() as connection:
        row = connection.execute(select(inbox).where(*waits)).one_or_none()
    if row is None:
        return False
    try:
        event = WebhookEvent.from_json(row.delivery)
        _process(store, number, event, row.received_at)
        on_project(event.key)
    except StoreUnavailable:
        raise
    except Exception as error:  # whatever it is, the events behind this one must not wait for ever
        unforeseen = not isinstance(error, BadRequest)
        log.warning("webhook event %d cannot be processed: %s", number, error, exc_info=unforeseen)
        with store.write() as connection:
            problem = clean(f"{type(error).__name__}: {error}")[:2000]
            connection.execute(update(inbox).where(*waits).values(problem=problem))
    return True


def _process(store: Store, number: int, event: WebhookEvent, received_at: datetime) -> None:
    """Work an event in, a piece at a time where it is large: what a piece did is done again when this is cut off."""
    *earlier, last = _pieces(store, event, received_at)
    for piece in earlier:
        with store.write() as connection:
            piece(connection)
    with store.write() as connection:
        last(connection)
        if event.project_deleted:
            mark_project_deleted(connection, event.key, received_at)
        else:
            mark_found(connection, event.key, received_at)
        connection.execute(delete(inbox).where(inbox.c.id == number))


def _pieces(store: Store, event: WebhookEvent, received_at: datetime) -> Sequence[Callable[[Connection], None]]:
    """What an event changes, each piece for one transaction; at least one. Raises BadRequest, StoreError."""
    key = event.key
    config = LabelConfig() if event.label_config is None else config_or_empty(event.label_config)
    annotations = [parse_annotation(each, project=key.project, task=event.task) for each in event.annotations]
    with_rows = [(annotation, region_rows(store, key, annotation, config)) for annotation in annotations]
    gone = list(event.deleted_annotations)
    if event.deleted_tasks:
        with store.read() as connection:
            for task in event.deleted_tasks:
                gone += live_annotations(connection, key, task)

    def save(some: Sequence[tuple[Annotation, list[dict[str, Any]]]], connection: Connection) -> None:
        if event.title is not None and event.label_config is not None:
            save_project(connection, key, event.title, event.label_config, event.project_updated_at)
        if event.task is not None and event.image_url is not None:
            save_task(connection, key, event.task, event.image_url)
        for annotation, rows in some:
            save_annotation(connection, key, annotation, rows, received_at)

    def remove(some: Sequence[int], connection: Connection) -> None:
        mark_deleted(connection, key, some, received_at)

    def remove_tasks(some: Sequence[int], connection: Connection) -> None:
        for task in some:
            mark_task_deleted(connection, key, task, received_at)

    works: list[tuple[Callable[[Any, Connection], None], Sequence[Any], int]] = [(save, with_rows, PIECE)]
    works += [(remove, gone, GONE_PIECE), (remove_tasks, event.deleted_tasks, PIECE)]
    pieces = [partial(work, each[at : at + many]) for work, each, many in works for at in range(0, len(each), many)]
    return pieces or [partial(save, [])]
