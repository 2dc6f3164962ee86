"""Reads of the store: projects, regions in the order of their keys, suggestions, counts. Rows become `records`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, not_, select, tuple_

from backend.errors import StoreError
from backend.records import (
    OUTCOMES,
    BarePhoto,
    Counts,
    Preannotated,
    ProjectKey,
    RegionKey,
    StoredProject,
    StoredRegion,
    SuggestedCandidate,
    Suggestion,
    SuggestionOutcome,
)
from backend.store.database import Store
from backend.store.statements import IS_USABLE, of_project, of_region, to_record
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import inbox, projects, regions, tasks, totals
from backend.store.totals import recount

PAGE = 200  #: regions in memory at a time
#: A photo or prediction that could not be fetched from Label Studio is tried again after this time.
RETRY_AFTER = timedelta(minutes=10)
BATCH = 50  #: missing photos, or predictions and regions to judge, that are read from the store at once

_KEY = tuple(regions.primary_key)


def list_projects(store: Store) -> list[StoredProject]:
    """Every project, deleted ones too, by key."""
    with store.read() as connection:
        rows = connection.execute(select(projects).order_by(*projects.primary_key)).all()
    return [to_record(StoredProject, row, key=to_record(ProjectKey, row)) for row in rows]


def find_project(store: Store, project: int, origin: str | None = None) -> StoredProject:
    """The project with this id. Raises StoreError when there is none, or several servers have one."""
    known = list_projects(store)
    found = [each for each in known if each.key.project == project and origin in (None, each.key.origin)]
    if not found:
        names = ", ".join(str(each.key) for each in known) or "none"
        raise StoreError(f"project {project}: not in the store; it knows {names}. `semsam sync` asks Label Studio")
    if len(found) > 1:
        servers = ", ".join(each.key.origin for each in found)
        raise StoreError(f"project {project}: on several servers, {servers}; name one of them")
    return found[0]


def stream_regions(store: Store, key: ProjectKey, page: int = PAGE) -> Iterator[StoredRegion]:
    """Every usable region of a project in the order of its key, `page` in memory at a time.

    Each page is one consistent view; what changes meanwhile is seen or not, but no region comes twice. Raises
    StoreError.
    """
    after: RegionKey | None = None
    query = select(regions).where(of_project(regions, key), IS_USABLE)
    query = query.order_by(*_KEY).limit(page)
    while True:
        with store.read() as connection:
            rows = connection.execute(query if after is None else query.where(_beyond(after))).all()
        for row in rows:
            yield to_region(row)
        if len(rows) < page:
            return
        after = to_record(RegionKey, rows[-1])


def _beyond(key: RegionKey) -> Any:
    """Condition: the region comes after this one of the same project."""
    columns = (regions.c.task, regions.c.annotation, regions.c.region)
    return tuple_(*columns) > tuple_(key.task, key.annotation, key.region)


def find_region(store: Store, key: RegionKey) -> StoredRegion | None:
    """The region, if it is usable and not deleted."""
    with store.read() as connection:
        row = connection.execute(select(regions).where(IS_USABLE, of_region(regions, key))).one_or_none()
    return to_region(row) if row else None


def problems(store: Store, key: ProjectKey) -> dict[RegionKey, str]:
    """Regions that cannot be used, with the reason."""
    live = and_(of_project(regions, key), regions.c.deleted_at.is_(None))
    query = select(regions).where(live, regions.c.problem.is_not(None)).order_by(*_KEY)
    with store.read() as connection:
        rows = connection.execute(query).all()
    return {to_record(RegionKey, row): row.problem for row in rows}


def stream_newest(store: Store, key: ProjectKey) -> Iterator[StoredRegion]:
    """As `stream_regions`, without the tasks whose last submitted annotation has nothing in it: older ones of the same
    task do not count.
    """
    emptied = emptied_tasks(store, key)
    return (region for region in stream_regions(store, key) if region.key.task not in emptied)


def emptied_tasks(store: Store, key: ProjectKey) -> frozenset[int]:
    """Tasks whose last submitted annotation has no region at all, though an older one has."""
    return frozenset(task for task, emptied in _bare_tasks(store, key).items() if emptied)


def bare_photos(store: Store, key: ProjectKey) -> list[BarePhoto]:
    """Photos of tasks whose last submitted annotation has no region at all, in the order of the tasks."""
    found = _bare_tasks(store, key)
    columns = tasks.c.task, tasks.c.image_sha256, tasks.c.image_url
    query = select(*columns).where(of_project(tasks, key), tasks.c.deleted_at.is_(None)).order_by(tasks.c.task)
    with store.read() as connection:
        return [BarePhoto(*row) for row in connection.execute(query) if row.task in found]


def _bare_tasks(store: Store, key: ProjectKey) -> dict[int, bool]:
    """Task whose last submitted annotation has no region -> whether an older one has."""
    mine = annotation_rows.c
    drawn = select(regions.c.region).where(
        of_project(regions, key),
        regions.c.task == mine.task,
        regions.c.annotation == mine.annotation,
        regions.c.deleted_at.is_(None),
    )
    query = select(mine.task, drawn.exists().label("drawn")).where(
        of_project(annotation_rows, key),
        mine.deleted_at.is_(None),
        mine.updated_at.is_not(None),
        not_(mine.cancelled),
    )
    found: dict[int, list[bool]] = {}
    with store.read() as connection:
        for row in connection.execute(query.order_by(mine.task, mine.updated_at, mine.annotation)):
            found.setdefault(row.task, []).append(row.drawn)
    return {task: any(each) for task, each in found.items() if not each[-1]}


def count(store: Store, key: ProjectKey) -> Counts:
    """What a project holds, by its running totals."""
    with store.read() as connection:
        row = connection.execute(select(totals).where(of_project(totals, key), totals.c.counted)).one_or_none()
    if row is not None:
        return _counts(row)
    with store.write() as connection:  # one that nobody has changed yet
        recount(connection, key)
        return _counts(connection.execute(select(totals).where(of_project(totals, key))).one())


def count_all(store: Store) -> dict[ProjectKey, Counts]:
    """As `count`, for every project that was counted before."""
    with store.read() as connection:
        rows = connection.execute(select(totals).where(totals.c.counted)).all()
    return {to_record(ProjectKey, row): _counts(row) for row in rows}


def _counts(row: Row[Any]) -> Counts:
    by_outcome: dict[str, int] = {name: getattr(row, name) for name in OUTCOMES}
    preannotated = Preannotated(
        annotations=row.begun,
        accepted=row.preannotated_accepted,
        corrected=row.preannotated_corrected,
        relabelled=row.preannotated_relabelled,
        deleted=max(0, row.suggested - row.kept),
        unread=row.unread,
    )
    numbers = {name: getattr(row, name) for name in ("images", "rejected", "malformed", "deleted")}
    return Counts(sum(by_outcome.values()), by_outcome=by_outcome, preannotated=preannotated, **numbers)


def newest_suggestion_outcomes(store: Store, most: int) -> list[SuggestionOutcome]:
    """The newest outcomes of clicks, of all projects, oldest first; pre-annotated regions do not count."""
    columns = (regions.c.updated_at, regions.c.outcome, regions.c.rank, regions.c.seconds)
    clicked = and_(IS_USABLE, regions.c.rank.is_not(None), not_(regions.c.preannotated))
    newest = select(*columns).where(clicked).order_by(regions.c.updated_at.desc()).limit(most)
    with store.read() as connection:
        rows = connection.execute(newest).all()
    return [SuggestionOutcome(*row) for row in reversed(rows)]


def count_waiting(store: Store) -> int:
    """Webhook events that are acknowledged and not processed yet."""
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(inbox).where(inbox.c.problem.is_(None))) or 0


def begun_from_a_prediction(key: ProjectKey) -> ColumnElement[bool]:
    """Condition: the annotation is of this project, counts, and was begun from a prediction."""
    return and_(
        of_project(annotation_rows, key),
        annotation_rows.c.prediction.is_not(None),
        annotation_rows.c.deleted_at.is_(None),
        not_(annotation_rows.c.cancelled),
    )


def to_region(row: Row[Any]) -> StoredRegion:
    """A row of the table `regions`, of a region that can be used, as a value."""
    return to_record(
        StoredRegion,
        row,
        key=to_record(RegionKey, row),
        labels=tuple(row.labels),
        mask={"size": [row.height, row.width], "counts": row.mask},
        click=None if row.click_x is None else (row.click_x, row.click_y),
    )


def to_suggestion(row: Row[Any]) -> Suggestion:
    """A row of the table `offers` as a value."""
    size = row.height, row.width
    return to_record(
        Suggestion,
        row,
        key=to_record(ProjectKey, row),
        size=size,
        clicks=tuple(map(tuple, row.prompt["clicks"])),
        boxes=tuple(map(tuple, row.prompt["boxes"])),
        text=row.prompt["text"],
        candidates=tuple(
            SuggestedCandidate(**each | {"mask": {"size": list(size), "counts": each["mask"]}})
            for each in row.candidates
        ),
    )
