"""Reads of the store: projects, regions in the order of their keys, suggestions, counts. Rows become `records`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, not_, or_, select, tuple_

from backend.errors import StoreError
from backend.records import (
    OUTCOMES,
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
from backend.store.statements import BEGUN_FROM, IS_USABLE, of_project, of_region
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import inbox, offers, predictions, projects, regions

PAGE = 200  #: regions in memory at a time

_KEY = tuple(regions.primary_key)


def list_projects(store: Store) -> list[StoredProject]:
    """Every project, deleted ones too, by key."""
    with store.read() as connection:
        rows = connection.execute(select(projects).order_by(projects.c.origin, projects.c.project)).all()
    names = [name for name in StoredProject.__dataclass_fields__ if name != "key"]
    return [
        StoredProject(ProjectKey(row.origin, row.project), **{name: getattr(row, name) for name in names})
        for row in rows
    ]


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
            yield _region(row)
        if len(rows) < page:
            return
        after = _region_key(rows[-1])


def _beyond(key: RegionKey) -> Any:
    columns = (regions.c.task, regions.c.annotation, regions.c.region)
    return tuple_(*columns) > tuple_(key.task, key.annotation, key.region)


def find_region(store: Store, key: RegionKey) -> StoredRegion | None:
    """The region, if it is usable and not deleted."""
    with store.read() as connection:
        row = connection.execute(select(regions).where(IS_USABLE, of_region(regions, key))).one_or_none()
    return _region(row) if row else None


def problems(store: Store, key: ProjectKey) -> dict[RegionKey, str]:
    """Regions that cannot be used, with the reason."""
    live = and_(of_project(regions, key), regions.c.deleted_at.is_(None))
    query = select(regions).where(live, regions.c.problem.is_not(None)).order_by(*_KEY)
    with store.read() as connection:
        rows = connection.execute(query).all()
    return {_region_key(row): row.problem for row in rows}


def find_suggestion(store: Store, prompt_id: str) -> Suggestion | None:
    """What was suggested under this prompt id."""
    with store.read() as connection:
        row = connection.execute(select(offers).where(offers.c.prompt_id == prompt_id)).one_or_none()
    return to_suggestion(row) if row else None


def rejected_prompts(key: ProjectKey) -> Select[Any]:
    """Query: `prompt_id` of prompts of which nothing was accepted, on tasks that were submitted after them."""
    submitted = select(annotation_rows.c.annotation).where(
        annotation_rows.c.origin == offers.c.origin,
        annotation_rows.c.project == offers.c.project,
        annotation_rows.c.task == offers.c.task,
        annotation_rows.c.updated_at >= offers.c.created_at,
        annotation_rows.c.deleted_at.is_(None),
        not_(annotation_rows.c.cancelled),
    )
    accepted = select(regions.c.region).where(regions.c.prompt_id == offers.c.prompt_id, regions.c.deleted_at.is_(None))
    return select(offers.c.prompt_id).where(of_project(offers, key), submitted.exists(), ~accepted.exists())


def count(store: Store, key: ProjectKey) -> Counts:
    """How much a project has given."""
    mine = of_project(regions, key)
    there = regions.c.deleted_at.is_(None)
    amount = func.count()
    with store.read() as connection:
        pairs = connection.execute(
            select(regions.c.outcome, amount.label("number")).where(mine, there).group_by(regions.c.outcome)
        ).all()
        usable = and_(mine, there, regions.c.outcome.is_not(None))
        images = connection.scalar(
            select(amount).select_from(
                select(regions.c.image_sha256).distinct().where(usable, regions.c.image_sha256.is_not(None)).subquery()
            )
        )
        deleted = connection.scalar(select(amount).select_from(regions).where(mine, regions.c.deleted_at.is_not(None)))
        rejected = connection.scalar(select(amount).select_from(rejected_prompts(key).subquery()))
    found = {row.outcome: row.number for row in pairs}
    malformed = found.pop(None, 0)
    by_outcome = dict.fromkeys(OUTCOMES, 0) | found
    counts = (images or 0, by_outcome, rejected or 0, malformed, deleted or 0)
    return Counts(sum(by_outcome.values()), *counts, count_preannotated(store, key))


def newest_suggestion_outcomes(store: Store, most: int) -> list[SuggestionOutcome]:
    """Of all projects, those of clicks alone: the newest, oldest first."""
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


def count_preannotated(store: Store, key: ProjectKey) -> Preannotated:
    """What became of a project's pre-annotated regions."""
    begun = begun_from_a_prediction(key)
    mine = and_(of_project(regions, key), regions.c.preannotated, regions.c.deleted_at.is_(None))
    amount = func.count().label("number")
    known = and_(predictions.c.problem.is_(None), predictions.c.regions > 0)
    with store.read() as connection:
        outcomes = connection.execute(select(regions.c.outcome, amount).where(mine).group_by(regions.c.outcome)).all()
        offered = connection.execute(
            select(amount, func.sum(predictions.c.regions).label("regions"))
            .select_from(annotation_rows.join(predictions, BEGUN_FROM))
            .where(begun, known)
        ).one()
        judged = select(annotation_rows.c.annotation).join(predictions, BEGUN_FROM).where(begun, known)
        kept = connection.scalar(select(amount).select_from(regions).where(mine, regions.c.annotation.in_(judged)))
        unread = connection.scalar(
            select(amount)
            .select_from(annotation_rows.outerjoin(predictions, BEGUN_FROM))
            .where(begun, or_(predictions.c.prediction.is_(None), predictions.c.problem.is_not(None)))
        )
    found = {row.outcome: row.number for row in outcomes if row.outcome in ("accepted", "corrected", "relabelled")}
    deleted = max(0, (offered.regions or 0) - (kept or 0))
    return Preannotated(offered.number, **found, deleted=deleted, unread=unread or 0)


def _region_key(row: Row[Any]) -> RegionKey:
    return RegionKey(row.origin, row.project, row.task, row.annotation, row.region)


def _region(row: Row[Any]) -> StoredRegion:
    return StoredRegion(
        key=_region_key(row),
        image_sha256=row.image_sha256,
        image_url=row.image_url,
        width=row.width,
        height=row.height,
        labels=tuple(row.labels),
        granularity=row.granularity,
        parent=row.parent,
        mask={"size": [row.height, row.width], "counts": row.mask},
        outcome=row.outcome,
        updated_at=row.updated_at,
        annotator=row.annotator,
        ground_truth=row.ground_truth,
        prompt_id=row.prompt_id,
        rank=row.rank,
        level=row.level,
        score=row.score,
        model_version=row.model_version,
        iou_with_offer=row.iou_with_offer,
        click=None if row.click_x is None else (row.click_x, row.click_y),
        seconds=row.seconds,
        preannotated=row.preannotated,
    )


def to_suggestion(row: Row[Any]) -> Suggestion:
    """A row of the table `offers` as a value."""
    return Suggestion(
        prompt_id=row.prompt_id,
        key=ProjectKey(row.origin, row.project),
        task=row.task,
        image_sha256=row.image_sha256,
        size=(row.height, row.width),
        clicks=tuple((x, y, positive) for x, y, positive in row.prompt["clicks"]),
        boxes=tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in row.prompt["boxes"]),
        text=row.prompt["text"],
        candidates=tuple(
            SuggestedCandidate(
                region=each["region"],
                rank=each["rank"],
                level=each["level"],
                score=each["score"],
                bbox=tuple(each["bbox"]),
                mask={"size": [row.height, row.width], "counts": each["mask"]},
                label=each["label"],
                names=tuple((name, score) for name, score in each["names"]),
            )
            for each in row.candidates
        ),
        model_version=row.model_version,
        milliseconds=row.milliseconds,
        created_at=row.created_at,
    )
