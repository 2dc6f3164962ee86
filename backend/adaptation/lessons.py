"""What projects have learned, in the store: lessons by region and model, whether a project learns, what it forgot.

A lesson is what one accepted region teaches one model (`adaptation.lessons`), kept so that a restart looks at no
photo again. Its bytes are of use for the region as it was at `updated_at` only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select

from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from backend.store.statements import IS_USABLE, of_project, of_region, to_record, upsert
from backend.store.tables import learning, lessons, regions, totals

NEWEST = 2000  #: no older region of a project is learned from


@dataclass(frozen=True)
class LearningState:
    """Whether a project learns, and since when: regions that were submitted earlier are forgotten."""

    enabled: bool = True
    forgotten_at: datetime | None = None  #: by Label Studio's clock, as regions have it


@dataclass(frozen=True)
class TrainingRegion:
    """A region that a project can learn from."""

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
    """Whether a project learns, as last set. Raises StoreError."""
    with store.read() as connection:
        return _state(connection, key)


def switch_learning(store: Store, key: ProjectKey, enabled: bool) -> None:
    """Let a project learn or not; what it has learned is kept meanwhile. Raises StoreError."""
    with store.write() as connection:
        _set(connection, key, LearningState(enabled, _state(connection, key).forgotten_at))


def forget(store: Store, key: ProjectKey) -> int:
    """Forget every region that the store knows of now; what is submitted afterwards teaches again.

    Returns how many lessons were removed; the regions stay. Raises StoreError.
    """
    with store.write() as connection:
        newest = connection.scalar(select(func.max(regions.c.updated_at)).where(of_project(regions, key)))
        if newest is not None:
            _set(connection, key, LearningState(_state(connection, key).enabled, newest))
        return connection.execute(delete(lessons).where(of_project(lessons, key))).rowcount


def training_regions(store: Store, key: ProjectKey, most: int = NEWEST) -> list[TrainingRegion]:
    """The newest usable regions of a project, oldest first, less what was forgotten. Raises StoreError."""
    columns = (*regions.primary_key, regions.c.updated_at, regions.c.image_sha256, regions.c.labels)
    newest_first = [column.desc() for column in (regions.c.updated_at, *regions.primary_key)]
    with store.read() as connection:
        query = select(*columns).where(IS_USABLE, _teaches(key, _state(connection, key)))
        rows = connection.execute(query.order_by(*newest_first).limit(most)).all()
    return [
        to_record(TrainingRegion, row, key=to_record(RegionKey, row), label=row.labels[0] if row.labels else "")
        for row in reversed(rows)
    ]


def fingerprint(store: Store, key: ProjectKey) -> tuple[object, ...]:
    """Differs when `training_regions` or `learning_state` may do. Raises StoreError."""
    with store.read() as connection:
        changes = connection.scalar(select(totals.c.changes).where(of_project(totals, key)))
        return _state(connection, key), changes


def kept_lessons(
    store: Store, key: ProjectKey, model: str, tasks: Collection[int] | None = None
) -> dict[RegionKey, KeptLesson]:
    """Lessons of a project, or of these tasks of it, for the model with this digest. Raises StoreError."""
    query = select(lessons).where(of_project(lessons, key), lessons.c.model == model)
    if tasks is not None:
        query = query.where(lessons.c.task.in_(sorted(tasks)))
    with store.read() as connection:
        rows = connection.execute(query).all()
    return {to_record(RegionKey, row): KeptLesson(row.updated_at, row.lesson) for row in rows}


def keep_lesson(store: Store, key: RegionKey, model: str, kept: KeptLesson) -> None:
    """Save a lesson, in place of an earlier one of this region and model. Raises StoreError."""
    values = {**vars(key), "model": model, "updated_at": kept.updated_at, "lesson": kept.data}
    with store.write() as connection:
        connection.execute(upsert(connection, lessons), values)


def drop_lessons(store: Store, keys: Sequence[RegionKey]) -> None:
    """Delete the lessons of these regions, of every model. Raises StoreError."""
    if not keys:
        return
    with store.write() as connection:
        for key in keys:
            connection.execute(delete(lessons).where(of_region(lessons, key)))


def _state(connection: Connection, key: ProjectKey) -> LearningState:
    row = connection.execute(select(learning).where(of_project(learning, key))).one_or_none()
    return to_record(LearningState, row) if row else LearningState()


def _set(connection: Connection, key: ProjectKey, state: LearningState) -> None:
    values = {**vars(key), **vars(state), "changed_at": datetime.now(UTC)}
    connection.execute(upsert(connection, learning), values)


def _teaches(key: ProjectKey, state: LearningState) -> ColumnElement[bool]:
    """Condition: the region is of this project, its photo is known, and it is not forgotten."""
    teaches = and_(of_project(regions, key), regions.c.image_sha256.is_not(None))
    return teaches if state.forgotten_at is None else and_(teaches, regions.c.updated_at > state.forgotten_at)
