"""Writes to the table of projects, each inside the caller's transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, and_, func, null, select, update

from backend.label_studio.fields import clean
from backend.records import ProjectKey
from backend.store.statements import of_project, upsert
from backend.store.tables import projects


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
    row = {"origin": key.origin, "project": key.project, "title": clean(title), "label_config": clean(label_config)}
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
    row = {"origin": key.origin, "project": key.project, "title": "", "label_config": clean(label_config)}
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
    """Label Studio said that the project was deleted: it is not asked for any more."""
    connection.execute(update(projects).where(of_project(projects, key)).values(deleted_at=at, missed_at=None))


def mark_synced(connection: Connection, key: ProjectKey, at: datetime) -> None:
    """All annotations of the project were compared with Label Studio's."""
    connection.execute(update(projects).where(of_project(projects, key)).values(synced_at=at))
