"""What projects have learned, in the store: lessons by region and model, whether a project learns, what it forgot.

A lesson is what one accepted region teaches one model (`adaptation.lessons`), kept so that a restart looks at no
photo again. Its bytes are of use for the region as it was at `updated_at` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select

from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from backend.store.tables import learning, lessons, regions

NEWEST = 2000  #: no older region of a project is learned from


@dataclass(frozen=True)
class LearningState:
    """Whether a project learns, and since when: regions that were submitted earlier are forgotten."""

    enabled: bool = True
    forgotten_at: datetime | None = None  #: by Label Studio's clock, as regions have it


@dataclass(frozen=True)
class TrainingRegion:
    """A region that can teach."""

    key: RegionKey
    updated_at: datetime
    image_sha256: str
    label: str  #: its first label; "" without one


@dataclass(frozen=True)
class KeptLesson:
    """Bytes of a lesson, as `Lesson.from_bytes` reads them."""

    updated_at: datetime  #: of the region that taught it
    data: bytes


def learning_state(store: Store, key: ProjectKey) -> LearningState:
    """As last set. Raises StoreError."""
    with store.read() as connection:
        return _state(connection, key)


def switch_learning(store: Store, key: ProjectKey, enabled: bool) -> None:
    """Whether a project learns; what it has learned is kept meanwhile. Raises StoreError."""
    with store.write() as connection:
        _set(connection, key, LearningState(enabled, _state(connection, key).forgotten_at))


def forget(store: Store, key: ProjectKey) -> int:
    """Forget every region that the store knows of now; what is submitted afterwards teaches again.

    Returns how many lessons were removed; the regions stay. Raises StoreError.
    """
    with store.write() as connection:
        newest = connection.scalar(select(func.max(regions.c.updated_at)).where(_of(regions, key)))
        if newest is not None:
            _set(connection, key, LearningState(_state(connection, key).enabled, newest))
        return connection.execute(delete(lessons).where(_of(lessons, key))).rowcount


def training_regions(store: Store, key: ProjectKey, most: int = NEWEST) -> list[TrainingRegion]:
    """The newest regions of a project that can teach, oldest first, less what was forgotten. Raises StoreError."""
    columns = (*_region_columns(regions), regions.c.updated_at, regions.c.image_sha256, regions.c.labels)
    with store.read() as connection:
        query = select(*columns).where(_usable(key, _state(connection, key)))
        newest_first = [column.desc() for column in (regions.c.updated_at, *_region_columns(regions))]
        rows = connection.execute(query.order_by(*newest_first).limit(most)).all()
    found = [
        TrainingRegion(RegionKey(*row[:5]), row.updated_at, row.image_sha256, row.labels[0] if row.labels else "")
        for row in rows
    ]
    return found[::-1]


def fingerprint(store: Store, key: ProjectKey) -> tuple[object, ...]:
    """Differs when `training_regions` or `learning_state` may do. Raises StoreError."""
    with store.read() as connection:
        state = _state(connection, key)
        # asked every few seconds: answered by an index alone, in which there is no outcome where there is a problem
        usable = _usable(key, state, sound=regions.c.outcome.is_not(None))
        query = select(func.count(), func.max(regions.c.updated_at)).where(usable)
        return (state, *connection.execute(query).one())


def kept_lessons(store: Store, key: ProjectKey, model: str) -> dict[RegionKey, KeptLesson]:
    """Lessons of a project for the model with this digest. Raises StoreError."""
    columns = (*_region_columns(lessons), lessons.c.updated_at, lessons.c.lesson)
    with store.read() as connection:
        rows = connection.execute(select(*columns).where(_of(lessons, key), lessons.c.model == model)).all()
    return {RegionKey(*row[:5]): KeptLesson(row.updated_at, row.lesson) for row in rows}


def keep_lesson(store: Store, key: RegionKey, model: str, kept: KeptLesson) -> None:
    """In place of an earlier one of this region and model. Raises StoreError."""
    with store.write() as connection:
        connection.execute(delete(lessons).where(_is(key), lessons.c.model == model))
        values = {"model": model, "updated_at": kept.updated_at, "lesson": kept.data}
        connection.execute(insert(lessons).values(**_values(key), **values))


def drop_lessons(store: Store, keys: Iterable[RegionKey]) -> None:
    """Lessons of these regions, of every model. Raises StoreError."""
    dropped = list(keys)
    if not dropped:
        return
    with store.write() as connection:
        for key in dropped:
            connection.execute(delete(lessons).where(_is(key)))


def _state(connection: Connection, key: ProjectKey) -> LearningState:
    row = connection.execute(select(learning).where(_of(learning, key))).one_or_none()
    return LearningState(row.enabled, row.forgotten_at) if row else LearningState()


def _set(connection: Connection, key: ProjectKey, state: LearningState) -> None:
    connection.execute(delete(learning).where(_of(learning, key)))
    values = {"enabled": state.enabled, "forgotten_at": state.forgotten_at, "changed_at": datetime.now(UTC)}
    connection.execute(insert(learning).values(origin=key.origin, project=key.project, **values))


def _of(table: Any, key: ProjectKey) -> Any:
    return and_(table.c.origin == key.origin, table.c.project == key.project)


def _usable(key: ProjectKey, state: LearningState, sound: Any = None) -> Any:
    usable = [
        _of(regions, key),
        regions.c.deleted_at.is_(None),
        regions.c.problem.is_(None) if sound is None else sound,
        regions.c.image_sha256.is_not(None),
    ]
    if state.forgotten_at is not None:
        usable.append(regions.c.updated_at > state.forgotten_at)
    return and_(*usable)


def _region_columns(table: Any) -> tuple[Any, ...]:
    return table.c.origin, table.c.project, table.c.task, table.c.annotation, table.c.region


def _values(key: RegionKey) -> dict[str, Any]:
    names = ("origin", "project", "task", "annotation", "region")
    return {name: getattr(key, name) for name in names}


def _is(key: RegionKey) -> Any:
    return and_(*(lessons.c[name] == value for name, value in _values(key).items()))
