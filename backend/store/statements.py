"""What several rooms share: conditions, joins, INSERT with ON CONFLICT, rows as records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, bindparam, update
from sqlalchemy.dialects import postgresql, sqlite

from backend.records import ProjectKey, RegionKey
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import predictions, regions

Record = TypeVar("Record")

_KEY = tuple(regions.primary_key)

#: Regions that can be used; one with a problem has no outcome, and the other way round. Indices have this condition.
IS_USABLE = and_(regions.c.deleted_at.is_(None), regions.c.problem.is_(None))
#: Joins an annotation with the prediction that it was begun from.
BEGUN_FROM = and_(
    predictions.c.origin == annotation_rows.c.origin, predictions.c.prediction == annotation_rows.c.prediction
)
#: Joins a region with its annotation, by the first columns of the regions' key.
BELONGS_TO = and_(*(regions.c[name] == annotation_rows.c[name] for name in ("origin", "project", "task", "annotation")))


def of_project(table: Table, key: ProjectKey) -> ColumnElement[bool]:
    """Condition: the row is of this project."""
    return and_(table.c.origin == key.origin, table.c.project == key.project)


def of_task(table: Table, key: ProjectKey, task: int) -> ColumnElement[bool]:
    """Condition: the row is of this task."""
    return and_(of_project(table, key), table.c.task == task)


def of_tasks(table: Table, key: ProjectKey, tasks: Collection[int]) -> ColumnElement[bool]:
    """Condition: the row is of one of these tasks. One alone is by far the most frequent, and quicker than a list."""
    if len(tasks) == 1:
        return of_task(table, key, *tasks)
    return and_(of_project(table, key), table.c.task.in_(sorted(tasks)))


def of_region(table: Table, key: RegionKey) -> ColumnElement[bool]:
    """Condition: the row is of this region."""
    return and_(*(table.c[name] == value for name, value in vars(key).items()))


def change_regions(
    connection: Connection,
    changes: Iterable[tuple[RegionKey, datetime, Mapping[str, Any]]],
    *conditions: ColumnElement[bool],
) -> None:
    """Change regions that are still as of a time and meet the conditions: (region, its `updated_at`, new values).

    Those with the same columns go in one statement, which takes a tenth of the time.
    """
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, updated_at, values in changes:
        if values:
            same = {f"same_{name}": value for name, value in {**vars(key), "updated_at": updated_at}.items()}
            new = {f"new_{name}": value for name, value in values.items()}
            alike.setdefault(tuple(values), []).append(same | new)
    mine = [regions.c[name] == bindparam(f"same_{name}") for name in (*(each.name for each in _KEY), "updated_at")]
    for names, rows in alike.items():
        statement = update(regions).where(*mine, *conditions)
        connection.execute(statement.values({name: bindparam(f"new_{name}") for name in names}), rows)


def insert_if_new(connection: Connection, table: Table) -> Any:
    """An INSERT that leaves a row as it is where the primary key is taken."""
    return _insert(connection.dialect.name, table).on_conflict_do_nothing()


def upsert(
    connection: Connection,
    table: Table,
    changes: Callable[[Any], Mapping[str, Any]] | None = None,
    where: Callable[[Any], ColumnElement[bool]] | None = None,
) -> Any:
    """An INSERT that changes the row that is there where the primary key is taken.

    changes: what to set, given the columns of the new row; by default all of them. where: on which condition; given
    the same.
    """
    statement = _insert(connection.dialect.name, table)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_=without_key(table, new) if changes is None else changes(new),
        where=None if where is None else where(new),
    )


def without_key(table: Table, new: Any) -> dict[str, Any]:
    """The columns of a new row that are not of the primary key, by name."""
    return {column.name: new[column.name] for column in table.columns if not column.primary_key}


def to_record(record: Callable[..., Record], row: Row[Any], **values: Any) -> Record:
    """A row as a dataclass: each field has `values`' entry of its name, else the row's column."""
    names = [each.name for each in fields(record) if each.name not in values]  # type: ignore[arg-type]
    return record(**{name: getattr(row, name) for name in names}, **values)


@cache  # making the columns of the new row takes longer than running the statement
def _insert(dialect: str, table: Table) -> Any:
    """Both databases write ON CONFLICT alike; SQLAlchemy has it in their dialects only."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
