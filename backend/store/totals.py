"""Running totals of each project, changed in the transaction that changes what they count.

So nobody counts all regions: whoever changes a task's regions, annotations, offers or predictions has that task counted
before and after (`changing`). `totals.changes` grows with every change of regions: whoever follows a project asks for
one number. A project that was never counted is counted once, whole.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, column, select, update, values

from backend.records import ProjectKey
from backend.store.statements import BEGUN_FROM, IS_USABLE, of_project, of_tasks, upsert
from backend.store.tables import Sha256, offers, predictions, projects, regions, totals
from backend.store.tables import annotations as annotation_table

_AT_ONCE = 500  #: tasks that are counted together


@dataclass
class _Tally:
    """What some tasks add to the totals of their project."""

    numbers: Counter[str] = field(default_factory=Counter)  #: by column of the table
    images: set[str] = field(default_factory=set)  #: digests of the photos of usable regions


class _Rows(NamedTuple):
    """What is counted of some tasks, as the store has it."""

    regions: list[Any]
    annotations: list[Any]  #: with what their predictions suggested
    offers: list[Any]


@contextlib.contextmanager
def changing(
    connection: Connection, key: ProjectKey, tasks: Collection[int], *, offers_only: bool = False
) -> Iterator[None]:
    """Inside, rows of these tasks of a project may change; afterwards the totals are right again.

    Others that change the project wait for the end of this transaction. Several projects at once: in order of their
    keys. offers_only: offers change and nothing else; without it everything but offers may.
    """
    step = 0 if offers_only else 1
    statement = upsert(connection, totals, lambda new: {"changes": totals.c.changes + step}).returning(totals.c.counted)
    if not connection.scalar(statement, {**vars(key), "changes": 1, "counted": False}):
        yield
        recount(connection, key)
        return
    if not tasks:
        yield
        return
    old = _read(connection, key, tasks)
    yield
    new = old._replace(offers=_offers(connection, key, tasks)) if offers_only else _read(connection, key, tasks, old)
    before, after = _tally(old), _tally(new)
    after.numbers.subtract(before.numbers)
    changed = before.images ^ after.images
    for image in changed - _elsewhere(connection, key, tasks, changed):
        after.numbers["images"] += 1 if image in after.images else -1
    differences = {name: totals.c[name] + number for name, number in after.numbers.items() if number}
    if differences:
        connection.execute(update(totals).where(of_project(totals, key)).values(differences))


def recount(connection: Connection, key: ProjectKey) -> None:
    """Count a whole project: once, for its first change or after a migration."""
    here = set(connection.scalars(select(regions.c.task).where(of_project(regions, key)).distinct()))
    known = and_(of_project(annotation_table, key), annotation_table.c.task.is_not(None))
    every = sorted(here.union(connection.scalars(select(annotation_table.c.task).where(known).distinct())))
    whole = _Tally()
    for first in range(0, len(every), _AT_ONCE):
        some = _tally(_read(connection, key, every[first : first + _AT_ONCE]))
        whole.numbers.update(some.numbers)
        whole.images |= some.images
    counted = {each.name: whole.numbers[each.name] for each in totals.columns if each.name not in _NOT_COUNTED}
    counted |= {"images": len(whole.images), "counted": True}
    statement = upsert(connection, totals, lambda new: counted)
    connection.execute(statement, {**vars(key), "changes": 1, **counted})


def uncounted(connection: Connection) -> list[ProjectKey]:
    """Projects that were never counted: after a migration of an old store, all."""
    same = and_(totals.c.origin == projects.c.origin, totals.c.project == projects.c.project)
    missing = select(*projects.primary_key).select_from(projects.outerjoin(totals, same))
    rows = connection.execute(missing.where(totals.c.counted.is_not(True)).order_by(*projects.primary_key))
    return [ProjectKey(row.origin, row.project) for row in rows]


_NOT_COUNTED = ("origin", "project", "changes", "counted", "images")


def _read(connection: Connection, key: ProjectKey, tasks: Collection[int], known: _Rows | None = None) -> _Rows:
    """known: rows whose offers are still right."""
    columns = ("task", "annotation", "outcome", "prompt_id", "image_sha256", "preannotated", "deleted_at")
    suggested = (
        predictions.c.regions.label("suggested"),
        predictions.c.problem,
        predictions.c.prediction.label("read"),
    )
    own = (annotation_table.c[name] for name in ("task", "annotation", "prediction", "updated_at", "deleted_at"))
    begun = select(*own, annotation_table.c.cancelled, *suggested)
    begun = begun.select_from(annotation_table.outerjoin(predictions, BEGUN_FROM))
    return _Rows(
        _rows(connection, key, tasks, select(*(regions.c[name] for name in columns)), regions),
        _rows(connection, key, tasks, begun, annotation_table),
        _offers(connection, key, tasks) if known is None else known.offers,
    )


def _offers(connection: Connection, key: ProjectKey, tasks: Collection[int]) -> list[Any]:
    columns = select(offers.c.task, offers.c.created_at, offers.c.prompt_id)
    return _rows(connection, key, tasks, columns, offers)


def _rows(connection: Connection, key: ProjectKey, tasks: Collection[int], query: Any, table: Any) -> list[Any]:
    return list(connection.execute(query.where(of_tasks(table, key, tasks))))


def _tally(rows: _Rows) -> _Tally:
    found = _Tally()
    _count_regions(found, rows.regions)
    _count_begun(found.numbers, rows.annotations, rows.regions)
    _count_rejected(found.numbers, rows.annotations, rows.regions, rows.offers)
    return found


def _count_regions(found: _Tally, region_rows: Iterable[Any]) -> None:
    for row in region_rows:
        if row.deleted_at is not None:
            found.numbers["deleted"] += 1
        elif row.outcome is None:
            found.numbers["malformed"] += 1
        else:
            found.numbers[row.outcome] += 1
            if row.preannotated and f"preannotated_{row.outcome}" in totals.c:
                found.numbers[f"preannotated_{row.outcome}"] += 1
            if row.image_sha256 is not None:
                found.images.add(row.image_sha256)


def _count_begun(numbers: Counter[str], annotation_rows: Iterable[Any], region_rows: Iterable[Any]) -> None:
    """Of annotations that were begun from a prediction: what that suggested, and what is left of it."""
    left = Counter(row.annotation for row in region_rows if row.preannotated and row.deleted_at is None)
    for row in annotation_rows:
        if row.prediction is None or row.deleted_at is not None or row.cancelled:
            continue
        if row.read is None or row.problem is not None:
            numbers["unread"] += 1
        elif row.suggested:
            numbers["begun"] += 1
            numbers["suggested"] += row.suggested
            numbers["kept"] += left[row.annotation]


def _count_rejected(
    numbers: Counter[str], annotation_rows: Iterable[Any], region_rows: Iterable[Any], offer_rows: Iterable[Any]
) -> None:
    """Prompts of which nothing was accepted, on tasks that were submitted after them."""
    submitted: dict[int, Any] = {}
    for row in annotation_rows:
        if row.updated_at is not None and row.deleted_at is None and not row.cancelled:
            submitted[row.task] = max(row.updated_at, submitted.get(row.task, row.updated_at))
    accepted = defaultdict(set)
    for row in region_rows:
        if row.deleted_at is None:
            accepted[row.task].add(row.prompt_id)
    for row in offer_rows:
        was_submitted = row.task in submitted and submitted[row.task] >= row.created_at
        numbers["rejected"] += was_submitted and row.prompt_id not in accepted[row.task]


def _elsewhere(connection: Connection, key: ProjectKey, tasks: Collection[int], images: Collection[str]) -> set[str]:
    """Which of these photos usable regions of other tasks of the project lie on."""
    if not images:
        return set()
    asked = values(column("image", Sha256), name="asked").data([(image,) for image in sorted(images)]).cte()
    same = (of_project(regions, key), regions.c.image_sha256 == asked.c.image, regions.c.task.not_in(sorted(tasks)))
    return set(connection.scalars(select(asked.c.image).where(select(regions.c.task).where(*same, IS_USABLE).exists())))
