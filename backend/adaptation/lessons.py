"""What projects have learned, in the store: lessons by region and model, whether a project learns, what it forgot.

A lesson is what one accepted region teaches one model (`adaptation.lessons`), kept so that a restart looks at no
photo again. Its bytes are of use for the region as it was at `updated_at` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, select

from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from backend.store.statements import IS_USABLE, insert_if_new, of_project, to_record, upsert
from backend.store.tables import learning, lesson_sets, lessons, projects, regions, totals

NEWEST = 2000  #: no older region of a project is learned from
_AT_ONCE = 200  #: lessons that are read in one query
_DROPPED = 50  #: lessons that are deleted in one transaction
#: What a lesson has of its region's key; the rest is its set's.
_OF_REGION = lessons.c["task", "annotation", "region"]


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
        return connection.execute(delete(lessons).where(_of_project(key))).rowcount


def training_regions(store: Store, key: ProjectKey, most: int = NEWEST) -> list[TrainingRegion]:
    """The newest usable regions of a project, oldest first, less what was forgotten. Raises StoreError."""
    key_columns = [regions.c[each.name] for each in fields(RegionKey)]
    columns = (*key_columns, regions.c.updated_at, regions.c.image_sha256, regions.c.labels)
    newest_first = [column.desc() for column in (regions.c.updated_at, *key_columns)]
    with store.read() as connection:
        query = select(*columns).where(IS_USABLE, _teaches(key, _state(connection, key)))
        rows = connection.execute(query.order_by(*newest_first).limit(most)).all()
    return [
        TrainingRegion(RegionKey(*of_key), updated_at, image_sha256, labels[0] if labels else "")
        for *of_key, updated_at, image_sha256, labels in reversed(rows)
    ]


@dataclass(frozen=True)
class Look:
    """All that what a project learns depends on: another one, and it is to be looked at again."""

    label_config: str
    state: LearningState
    changes: int  #: of its regions, so far


def looks(store: Store) -> dict[ProjectKey, Look]:
    """Every project that is not deleted, by key: asked every few seconds, so one query. Raises StoreError."""
    joined = projects
    for table in (totals, learning):
        same = and_(table.c.origin == projects.c.origin, table.c.project == projects.c.project)
        joined = joined.outerjoin(table, same)  # type: ignore[assignment]
    columns = [*projects.primary_key, projects.c.label_config, totals.c.changes, *learning.c["enabled", "forgotten_at"]]
    query = select(*columns).select_from(joined)
    with store.read() as connection:
        rows = connection.execute(query.where(projects.c.deleted_at.is_(None)).order_by(*projects.primary_key)).all()
    return {
        to_record(ProjectKey, row): Look(
            row.label_config,
            LearningState() if row.enabled is None else LearningState(row.enabled, row.forgotten_at),
            row.changes or 0,
        )
        for row in rows
    }


def lesson_keys(store: Store, key: ProjectKey, model: str) -> list[RegionKey]:
    """Regions of a project that the store keeps a lesson of, for the model with this digest. Raises StoreError."""
    with store.read() as connection:
        rows = connection.execute(select(*_OF_REGION).where(_of_project(key, model)))
        return [RegionKey(**vars(key), **row) for row in rows.mappings()]


def kept_lessons(store: Store, keys: Sequence[RegionKey], model: str) -> dict[RegionKey, KeptLesson]:
    """Lessons of these regions, of one project, for the model with this digest. Raises StoreError."""
    found: dict[RegionKey, KeptLesson] = {}
    for first in range(0, len(keys), _AT_ONCE):
        some = keys[first : first + _AT_ONCE]
        project = ProjectKey(some[0].origin, some[0].project)
        query = select(*_OF_REGION, lessons.c.updated_at, lessons.c.lesson).where(_of_project(project, model))
        query = query.where(lessons.c.task.in_({each.task for each in some}))
        with store.read() as connection:
            rows = connection.execute(query.where(lessons.c.region.in_({each.region for each in some}))).all()
        for *of_region, updated_at, data in rows:
            found[RegionKey(*vars(project).values(), *of_region)] = KeptLesson(updated_at, data)
    return {key: found[key] for key in keys if key in found}


def keep_lesson(store: Store, key: RegionKey, model: str, kept: KeptLesson) -> None:
    """Save a lesson, in place of an earlier one of this region and model. Raises StoreError."""
    of_project = {"origin": key.origin, "project": key.project, "model": model}
    values = {**{each.name: getattr(key, each.name) for each in _OF_REGION}, "updated_at": kept.updated_at}
    number = select(lesson_sets.c.id).where(*(lesson_sets.c[name] == value for name, value in of_project.items()))
    with store.write() as connection:
        lesson_set = connection.scalar(number)
        if lesson_set is None:
            connection.execute(insert_if_new(connection, lesson_sets), of_project)
            lesson_set = connection.scalar(number)
        connection.execute(upsert(connection, lessons), values | {"lesson_set": lesson_set, "lesson": kept.data})


def drop_lessons(store: Store, keys: Sequence[RegionKey]) -> None:
    """Delete the lessons of these regions, of one project, of every model; a piece in a transaction, since each is
    large and others wait for its end. Raises StoreError.
    """
    named = [column == bindparam(f"of_{column.name}") for column in _OF_REGION]
    for first in range(0, len(keys), _DROPPED):
        some = keys[first : first + _DROPPED]
        project = ProjectKey(some[0].origin, some[0].project)
        with store.write() as connection:
            connection.execute(
                delete(lessons).where(_of_project(project), *named),
                [{f"of_{each.name}": getattr(key, each.name) for each in _OF_REGION} for key in some],
            )


def _of_project(key: ProjectKey, model: str | None = None) -> ColumnElement[bool]:
    """Condition: the lesson is of this project, and of the model with this digest where one is given."""
    sets = select(lesson_sets.c.id).where(of_project(lesson_sets, key))
    return lessons.c.lesson_set.in_(sets if model is None else sets.where(lesson_sets.c.model == model))


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
