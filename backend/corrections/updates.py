"""Writes to the tables of projects, tasks, annotations and regions, each inside the caller's transaction.

Nothing is removed: what Label Studio deleted is marked, and an annotation's newest `updated_at` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, null, or_, select, update

from backend.corrections.addresses import save_address
from backend.label_studio.annotations import Annotation
from backend.label_studio.fields import clean
from backend.records import ProjectKey
from backend.store.statements import of_project, of_task, upsert, without_key
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import projects, regions, tasks
from backend.store.totals import changing

#: Annotations that are written, or marked as deleted, in one transaction: others wait for its end.
PIECE, GONE_PIECE = 20, 50


def save_task(connection: Connection, key: ProjectKey, task: int, image_url: str) -> None:
    """Save what a task names as its photo. Another photo than before has to be fetched."""
    stored = save_address(connection, clean(image_url))
    statement = upsert(
        connection,
        tasks,
        lambda new: {"image_url": new.image_url, "image_sha256": null(), "problem": null(), "tried_at": null()},
        where=lambda new: or_(tasks.c.image_url.is_(None), tasks.c.image_url != new.image_url),
    )
    connection.execute(statement, {**vars(key), "task": task, "image_url": stored})


def save_annotation(
    connection: Connection,
    key: ProjectKey,
    annotation: Annotation,
    rows: list[dict[str, Any]],
    received_at: datetime,
    *,
    listed_at: datetime | None = None,
) -> bool:
    """Make the store hold this annotation, unless it holds a newer one; whether anything changed.

    rows: of `region_rows`. listed_at: when Label Studio was asked for its annotations and listed this one, which undoes
    an earlier deletion; None for a webhook.
    """
    with changing(connection, key, [annotation.task]):
        if not _save_if_news(connection, key, annotation, received_at, listed_at):
            return False
        _save_regions(connection, key, annotation, rows, received_at)
    return True


def _save_regions(
    connection: Connection, key: ProjectKey, annotation: Annotation, rows: list[dict[str, Any]], received_at: datetime
) -> None:
    """Write an annotation's regions; those that it has no more are marked as deleted."""
    mine = and_(of_task(regions, key, annotation.task), regions.c.annotation == annotation.id)
    before = connection.execute(select(regions.c.region, regions.c.seconds).where(mine)).all()
    seconds = {row.region: row.seconds for row in before}
    connection.execute(update(regions).where(mine, regions.c.deleted_at.is_(None)).values(deleted_at=received_at))
    if rows:
        photo = connection.execute(select(tasks).where(of_task(tasks, key, annotation.task))).one_or_none()
        if photo is not None:
            # the digest comes when the region is compared with the photo: `photos.fetch_photos`
            rows = [row | {"image_url": photo.image_url} for row in rows]
        # seconds until the first submit: that is the one that followed the accept
        rows = [row | {"seconds": seconds.get(row["region"]) or row["seconds"]} for row in rows]
        connection.execute(upsert(connection, regions), rows)


def _save_if_news(
    connection: Connection,
    key: ProjectKey,
    annotation: Annotation,
    received_at: datetime,
    listed_at: datetime | None,
) -> bool:
    """Write the annotation's own row if this is news: one statement, so that of two writers the newer one wins."""
    old = annotation_rows.c

    def changes(new: Any) -> dict[str, Any]:
        # Label Studio forgets the prediction's id when it deletes the prediction; we go on knowing it
        return without_key(annotation_rows, new) | {"prediction": func.coalesce(new.prediction, old.prediction)}

    def is_news(new: Any) -> ColumnElement[bool]:
        newer = and_(old.deleted_at.is_(None), or_(old.updated_at.is_(None), old.updated_at < new.updated_at))
        if listed_at is None:
            return newer
        not_older = or_(old.updated_at.is_(None), old.updated_at <= new.updated_at)
        return or_(newer, and_(old.deleted_at < listed_at, not_older))

    same = ("task", "annotator", "cancelled", "ground_truth", "created_at", "updated_at", "prediction")
    row = {
        **vars(key),
        **{name: getattr(annotation, name) for name in same},
        "annotation": annotation.id,
        "received_at": received_at,
        "deleted_at": None,
    }
    statement = upsert(connection, annotation_rows, changes, where=is_news).values(row).returning(old.annotation)
    return connection.execute(statement).one_or_none() is not None


def mark_deleted(connection: Connection, key: ProjectKey, gone: Sequence[int], now: datetime) -> None:
    """Mark annotations and their regions. One that is not stored yet is remembered: its creation may come later.

    gone: few, since others wait for the end of the transaction, see `GONE_PIECE`.
    """
    statement = upsert(
        connection,
        annotation_rows,
        lambda new: {"deleted_at": now},
        where=lambda new: annotation_rows.c.deleted_at.is_(None),
    )
    if not gone:
        return
    row = {**vars(key), "cancelled": False, "ground_truth": False, "received_at": now, "deleted_at": now}
    known = and_(annotation_rows.c.origin == key.origin, annotation_rows.c.annotation.in_(gone))
    tasks_of = select(annotation_rows.c.task).where(known, annotation_rows.c.task.is_not(None))
    affected = set(connection.scalars(tasks_of))
    live = and_(of_project(regions, key), regions.c.task.in_(affected), regions.c.annotation.in_(gone))
    with changing(connection, key, affected):
        connection.execute(statement, [row | {"annotation": annotation} for annotation in gone])
        connection.execute(update(regions).where(live, regions.c.deleted_at.is_(None)).values(deleted_at=now))


def mark_task_deleted(connection: Connection, key: ProjectKey, task: int, now: datetime) -> None:
    """Mark a task and all its annotations. Where Label Studio lists it again, it is read again."""
    statement = upsert(
        connection, tasks, lambda new: {"deleted_at": func.coalesce(tasks.c.deleted_at, now), "seen": null()}
    )
    connection.execute(statement, {**vars(key), "task": task, "deleted_at": now})
    mark_deleted(connection, key, live_annotations(connection, key, task), now)


def mark_seen(connection: Connection, key: ProjectKey, task: int, stamp: str) -> None:
    """Note that the task's annotations were compared with Label Studio's. stamp: the task's `updated_at` there."""
    statement = upsert(connection, tasks, lambda new: {"seen": stamp, "deleted_at": null()})
    connection.execute(statement, {**vars(key), "task": task, "seen": stamp})


def live_annotations(
    connection: Connection, key: ProjectKey, task: int, *, received_before: datetime | None = None
) -> list[int]:
    """Annotations of a task that are not marked as deleted. received_before: without those that came later."""
    query = select(annotation_rows.c.annotation).where(
        of_task(annotation_rows, key, task), annotation_rows.c.deleted_at.is_(None)
    )
    if received_before is not None:
        query = query.where(annotation_rows.c.received_at < received_before)
    return list(connection.scalars(query))


def annotated_tasks(connection: Connection, key: ProjectKey, received_before: datetime) -> list[int]:
    """Tasks with annotations that are not marked as deleted, without those that came later."""
    query = select(annotation_rows.c.task).distinct()
    query = query.where(
        of_project(annotation_rows, key),
        annotation_rows.c.task.is_not(None),
        annotation_rows.c.deleted_at.is_(None),
        annotation_rows.c.received_at < received_before,
    )
    return sorted(connection.scalars(query))


def save_project(
    connection: Connection, key: ProjectKey, title: str, label_config: str, updated_at: datetime | None
) -> None:
    """Save title and labeling config, unless newer ones are stored. updated_at: by Label Studio's clock."""
    statement = upsert(
        connection,
        projects,
        lambda new: {"title": new.title, "label_config": new.label_config, "updated_at": new.updated_at},
        where=lambda new: projects.c.updated_at <= new.updated_at,
    )
    row = {**vars(key), "title": clean(title), "label_config": clean(label_config)}
    connection.execute(statement, row | {"updated_at": updated_at or datetime.now(UTC)})


def has_config(connection: Connection, key: ProjectKey, label_config: str) -> bool:
    """Whether `save_config` would change nothing."""
    same = and_(projects.c.label_config == clean(label_config), projects.c.deleted_at.is_(None))
    return connection.scalar(select(projects.c.project).where(of_project(projects, key), same)) is not None


def save_config(connection: Connection, key: ProjectKey, label_config: str) -> None:
    """Save the labeling config that a project introduced itself with: Label Studio does not say its title then."""
    statement = upsert(
        connection,
        projects,
        lambda new: {"label_config": new.label_config, "deleted_at": null(), "missed_at": null()},
    )
    row = {**vars(key), "title": "", "label_config": clean(label_config)}
    connection.execute(statement, row | {"updated_at": datetime.fromtimestamp(0, UTC)})


def mark_missed(connection: Connection, key: ProjectKey, asked: datetime) -> None:
    """Mark a project that Label Studio does not have, or does not show to us, until it is found again.

    One of which Label Studio said that it was deleted stays as it is.
    """
    is_final = and_(projects.c.deleted_at.is_not(None), projects.c.missed_at.is_(None))
    values = {"deleted_at": func.coalesce(projects.c.deleted_at, asked), "missed_at": asked}
    connection.execute(update(projects).where(of_project(projects, key), ~is_final).values(values))


def mark_found(connection: Connection, key: ProjectKey, heard: datetime) -> None:
    """Undo `mark_missed`: the project was heard of after that."""
    missed = projects.c.missed_at < heard
    connection.execute(
        update(projects).where(of_project(projects, key), missed).values(deleted_at=None, missed_at=None)
    )


def mark_there(connection: Connection, key: ProjectKey, asked: datetime) -> None:
    """Undo every mark: Label Studio showed the project. A deletion that it told of since we asked stands."""
    marked = and_(of_project(projects, key), projects.c.deleted_at < asked)
    connection.execute(update(projects).where(marked).values(deleted_at=None, missed_at=None))


def mark_project_deleted(connection: Connection, key: ProjectKey, at: datetime) -> None:
    """Mark a project of which Label Studio said that it was deleted: it is not asked for any more."""
    connection.execute(update(projects).where(of_project(projects, key)).values(deleted_at=at, missed_at=None))


def mark_synced(connection: Connection, key: ProjectKey, at: datetime) -> None:
    """Note that all annotations of the project were compared with Label Studio's."""
    connection.execute(update(projects).where(of_project(projects, key)).values(synced_at=at))
