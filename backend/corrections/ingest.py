"""Deliveries of Label Studio -> the store's tables: noted at once, worked in later, each in one transaction.

A delivery lies in the inbox from before it is acknowledged until the transaction that works it in, so it can be neither
lost nor half done. Working in twice changes nothing: of an annotation the newest `updated_at` counts, and a deletion is
final, unless Label Studio itself lists the annotation later (`backend.corrections.sync`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, null, or_, select, update

from backend.corrections.outcomes import judge, seconds_until
from backend.corrections.queries import to_suggestion
from backend.errors import BadRequest, StoreUnavailable
from backend.label_studio.annotations import AnnotatedRegion, Annotation, MalformedRegion, parse_annotation
from backend.label_studio.events import WebhookEvent
from backend.label_studio.fields import clean
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey, Suggestion
from backend.store.database import Store, upsert
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import inbox, offers, projects, regions, tasks
from semsam_model.masks.codecs import encode_coco_rle
from semsam_model.masks.geometry import crop_mask

log = logging.getLogger(__name__)

_MAX_RAW = 100_000  #: characters of a malformed region kept


def enqueue(store: Store, event: WebhookEvent, now: datetime | None = None) -> None:
    """Note an event. When this returns, it is on disk. Raises StoreError."""
    with store.write() as connection:
        connection.execute(insert(inbox), {"received_at": now or datetime.now(UTC), "delivery": event.to_json()})


def process_inbox(store: Store) -> int:
    """Work in everything that waits in the inbox; how many deliveries that was.

    One that cannot be worked in stays there with its reason. Raises StoreUnavailable when the database fails: what
    waits goes on waiting.
    """
    done = 0
    while True:
        with store.read() as connection:
            query = select(inbox).where(inbox.c.problem.is_(None)).order_by(inbox.c.id).limit(1)
            row = connection.execute(query).one_or_none()
        if row is None:
            return done
        try:
            _process(store, row.id, WebhookEvent.from_json(row.delivery), row.received_at)
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever it is, the deliveries behind this one must not wait for ever
            log.warning(
                "delivery %d cannot be worked in: %s", row.id, error, exc_info=not isinstance(error, BadRequest)
            )
            with store.write() as connection:
                problem = clean(f"{type(error).__name__}: {error}")[:2000]
                connection.execute(update(inbox).where(inbox.c.id == row.id).values(problem=problem))
        done += 1


def _process(store: Store, number: int, event: WebhookEvent, received_at: datetime) -> None:
    key = event.key
    config = LabelConfig() if event.label_config is None else config_or_empty(event.label_config)
    annotations = [parse_annotation(each, project=key.project, task=event.task) for each in event.annotations]
    prepared = [(annotation, prepare(store, key, annotation, config)) for annotation in annotations]
    with store.write() as connection:
        if event.title is not None and event.label_config is not None:
            note_project(connection, key, event.title, event.label_config, event.project_updated_at)
        if event.task is not None and event.image_url is not None:
            note_task(connection, key, event.task, event.image_url)
        for annotation, rows in prepared:
            apply(connection, key, annotation, rows, received_at)
        mark_deleted(connection, key, event.deleted_annotations, received_at)
        for task in event.deleted_tasks:
            mark_task_deleted(connection, key, task, received_at)
        if event.project_deleted:
            connection.execute(update(projects).where(is_project(key)).values(deleted_at=received_at, missed_at=None))
        else:
            found_again(connection, key, received_at)
        connection.execute(delete(inbox).where(inbox.c.id == number))


def config_or_empty(xml: str) -> LabelConfig:
    """A labeling config that cannot be read says nothing about labels, and makes no correction worthless."""
    try:
        return LabelConfig.parse(xml)
    except BadRequest:
        return LabelConfig()


# ----------------------------------------------------------------------------------------------- rows, outside the lock


def prepare(store: Store, key: ProjectKey, annotation: Annotation, config: LabelConfig) -> list[dict[str, Any]]:
    """Rows of the table of regions for an annotation: masks decoded, held against what was offered."""
    if annotation.cancelled:
        return []
    known: dict[str, tuple[Suggestion, datetime | None] | None] = {}
    rows = []
    for region in annotation.regions(config):
        if isinstance(region, MalformedRegion):
            log.warning("project %s annotation %d: %s", key, annotation.id, region.problem)
            rows.append(_malformed_row(region))
            continue
        if region.prompt_id is not None and not region.preannotated and region.prompt_id not in known:
            known[region.prompt_id] = _suggestion_and_next_prompt(store, key, annotation.task, region.prompt_id)
        rows.append(_usable_row(region, known.get(region.prompt_id or ""), annotation))
    return [_common(key, annotation) | row for row in rows]


def _common(key: ProjectKey, annotation: Annotation) -> dict[str, Any]:
    """Every column, so that all rows of one statement have the same."""
    row: dict[str, Any] = dict.fromkeys(column.name for column in regions.columns)
    return row | {
        "origin": key.origin,
        "project": key.project,
        "task": annotation.task,
        "annotation": annotation.id,
        "annotator": annotation.annotator,
        "ground_truth": annotation.ground_truth,
        "updated_at": annotation.updated_at,
        "labels": [],
        "preannotated": False,
    }


def _malformed_row(region: MalformedRegion) -> dict[str, Any]:
    raw = json.dumps(list(region.rows))[:_MAX_RAW]
    return {"region": region.id, "problem": clean(region.problem)[:2000], "raw": raw}


def _usable_row(
    region: AnnotatedRegion, known: tuple[Suggestion, datetime | None] | None, annotation: Annotation
) -> dict[str, Any]:
    offer, next_prompt = known or (None, None)
    judgement = judge(region, offer)
    height, width = region.mask.shape
    click = judgement.click or (None, None)
    return {
        "region": region.id,
        "image_sha256": offer.image_sha256 if offer else None,
        "width": width,
        "height": height,
        "labels": list(region.labels),
        "granularity": region.granularity,
        "parent": region.parent,
        "mask": encode_coco_rle(*crop_mask(region.mask), (height, width))["counts"],
        "outcome": judgement.outcome,
        "prompt_id": region.prompt_id,
        "rank": region.rank,
        "level": region.level,
        "score": region.score,
        "model_version": region.model_version,
        "iou_with_offer": judgement.iou_with_offer,
        "click_x": click[0],
        "click_y": click[1],
        "seconds": seconds_until(annotation.updated_at, offer.created_at, next_prompt) if offer else None,
        "preannotated": region.preannotated,
    }


def _suggestion_and_next_prompt(
    store: Store, key: ProjectKey, task: int, prompt_id: str
) -> tuple[Suggestion, datetime | None] | None:
    """What was offered, if on this very task, and when the task's next prompt was answered."""
    mine = and_(offers.c.origin == key.origin, offers.c.project == key.project, offers.c.task == task)
    with store.read() as connection:
        row = connection.execute(select(offers).where(mine, offers.c.prompt_id == prompt_id)).one_or_none()
        if row is None:
            return None
        later = select(func.min(offers.c.created_at)).where(mine, offers.c.created_at > row.created_at)
        return to_suggestion(row), connection.scalar(later)


# ------------------------------------------------------------------------------------------------- writes, inside of it


def note_project(
    connection: Connection, key: ProjectKey, title: str, label_config: str, updated_at: datetime | None
) -> None:
    """Title and labeling config, unless newer ones are known. updated_at: by Label Studio's clock."""
    updated_at = updated_at or datetime.now(UTC)
    statement = upsert(connection, projects).values(
        origin=key.origin,
        project=key.project,
        title=clean(title),
        label_config=clean(label_config),
        updated_at=updated_at,
    )
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["origin", "project"],
        set_={"title": new.title, "label_config": new.label_config, "updated_at": new.updated_at},
        where=projects.c.updated_at <= new.updated_at,
    )
    connection.execute(statement)


def is_project(key: ProjectKey) -> ColumnElement[bool]:
    """Condition: of the table of projects, this one."""
    return and_(projects.c.origin == key.origin, projects.c.project == key.project)


def note_missed(connection: Connection, key: ProjectKey, asked: datetime) -> None:
    """Label Studio has no such project, or does not show it to us: marked until it is found again.

    One whose deletion was told stays as it is.
    """
    told = and_(projects.c.deleted_at.is_not(None), projects.c.missed_at.is_(None))
    values = {"deleted_at": func.coalesce(projects.c.deleted_at, asked), "missed_at": asked}
    connection.execute(update(projects).where(is_project(key), ~told).values(**values))


def found_again(connection: Connection, key: ProjectKey, heard: datetime) -> None:
    """Take back `note_missed`: the project was heard of after that."""
    mine = and_(is_project(key), projects.c.missed_at < heard)
    connection.execute(update(projects).where(mine).values(deleted_at=None, missed_at=None))


def is_introduced(connection: Connection, key: ProjectKey, label_config: str) -> bool:
    """Whether `note_project_config` would change nothing."""
    same = and_(projects.c.label_config == clean(label_config), projects.c.deleted_at.is_(None))
    return connection.scalar(select(projects.c.project).where(is_project(key), same)) is not None


def note_project_config(connection: Connection, key: ProjectKey, label_config: str) -> None:
    """A project that introduced itself: Label Studio says its labeling config there and not its title."""
    statement = upsert(connection, projects).values(
        origin=key.origin,
        project=key.project,
        title="",
        label_config=clean(label_config),
        updated_at=datetime.fromtimestamp(0, UTC),
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["origin", "project"],
            set_={"label_config": statement.excluded.label_config, "deleted_at": null(), "missed_at": null()},
        )
    )


def note_task(connection: Connection, key: ProjectKey, task: int, image_url: str) -> None:
    """The picture that a task names. Another one than before has to be fetched."""
    statement = upsert(connection, tasks).values(
        origin=key.origin, project=key.project, task=task, image_url=clean(image_url)
    )
    statement = statement.on_conflict_do_update(
        index_elements=["origin", "project", "task"],
        set_={"image_url": statement.excluded.image_url, "image_sha256": null(), "problem": null(), "tried_at": null()},
        where=or_(tasks.c.image_url.is_(None), tasks.c.image_url != statement.excluded.image_url),
    )
    connection.execute(statement)


def apply(
    connection: Connection,
    key: ProjectKey,
    annotation: Annotation,
    rows: list[dict[str, Any]],
    received_at: datetime,
    *,
    listed_at: datetime | None = None,
) -> bool:
    """Make the store hold this annotation, unless it holds a newer one; whether anything changed.

    rows: of `prepare`. listed_at: when Label Studio was asked for its annotations and named this one, which takes back
    a deletion noted before; None for a webhook.
    """
    if not _claim(connection, key, annotation, received_at, listed_at):
        return False
    mine = and_(regions.c.origin == key.origin, regions.c.annotation == annotation.id)
    before = connection.execute(select(regions.c.region, regions.c.seconds).where(mine)).all()
    seconds = {row.region: row.seconds for row in before}
    connection.execute(update(regions).where(mine, regions.c.deleted_at.is_(None)).values(deleted_at=received_at))
    if rows:
        task = and_(tasks.c.origin == key.origin, tasks.c.project == key.project, tasks.c.task == annotation.task)
        picture = connection.execute(select(tasks).where(task)).one_or_none()
        if picture is not None:
            rows = [row | _picture(row, picture.image_sha256, picture.image_url) for row in rows]
        # the first submit is the one that the accept was followed by
        rows = [row | {"seconds": seconds.get(row["region"]) or row["seconds"]} for row in rows]
        statement = upsert(connection, regions)
        primary = [column.name for column in regions.primary_key]
        values = {name: statement.excluded[name] for name in rows[0] if name not in primary}
        connection.execute(statement.on_conflict_do_update(index_elements=primary, set_=values), rows)
    return True


def _picture(row: Mapping[str, Any], sha256: str | None, url: str | None) -> dict[str, Any]:
    return {"image_sha256": row["image_sha256"] or sha256, "image_url": url}


def _claim(
    connection: Connection,
    key: ProjectKey,
    annotation: Annotation,
    received_at: datetime,
    listed_at: datetime | None,
) -> bool:
    """Write the annotation's own row if this is news: one statement, so that of two writers the newer one wins."""
    statement = upsert(connection, annotation_rows).values(
        origin=key.origin,
        annotation=annotation.id,
        project=key.project,
        task=annotation.task,
        annotator=annotation.annotator,
        cancelled=annotation.cancelled,
        ground_truth=annotation.ground_truth,
        created_at=annotation.created_at,
        updated_at=annotation.updated_at,
        received_at=received_at,
        deleted_at=None,
        prediction=annotation.prediction,
    )
    old, new = annotation_rows.c, statement.excluded
    is_news: ColumnElement[bool] = and_(
        old.deleted_at.is_(None), or_(old.updated_at.is_(None), old.updated_at < new.updated_at)
    )
    if listed_at is not None:
        not_older = or_(old.updated_at.is_(None), old.updated_at <= new.updated_at)
        is_news = or_(is_news, and_(old.deleted_at < listed_at, not_older))
    changed = {column.name: new[column.name] for column in annotation_rows.columns if not column.primary_key}
    # Label Studio forgets it with the prediction, and what the annotation was begun from stays true
    changed["prediction"] = func.coalesce(new.prediction, old.prediction)
    statement = statement.on_conflict_do_update(index_elements=["origin", "annotation"], set_=changed, where=is_news)
    return connection.execute(statement.returning(annotation_rows.c.annotation)).one_or_none() is not None


def mark_deleted(connection: Connection, key: ProjectKey, gone: tuple[int, ...], now: datetime) -> None:
    """Mark annotations and their regions. One that nobody has heard of is remembered: its creation may come later."""
    for annotation in gone:
        statement = upsert(connection, annotation_rows).values(
            origin=key.origin,
            annotation=annotation,
            project=key.project,
            cancelled=False,
            ground_truth=False,
            received_at=now,
            deleted_at=now,
        )
        statement = statement.on_conflict_do_update(
            index_elements=["origin", "annotation"],
            set_={"deleted_at": now},
            where=annotation_rows.c.deleted_at.is_(None),
        )
        connection.execute(statement)
        mine = and_(regions.c.origin == key.origin, regions.c.annotation == annotation)
        connection.execute(update(regions).where(mine, regions.c.deleted_at.is_(None)).values(deleted_at=now))


def mark_task_deleted(connection: Connection, key: ProjectKey, task: int, now: datetime) -> None:
    """Mark a task and everything that is known of it. Where it is listed again, it is read again."""
    statement = upsert(connection, tasks).values(origin=key.origin, project=key.project, task=task, deleted_at=now)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["origin", "project", "task"],
            set_={"deleted_at": func.coalesce(tasks.c.deleted_at, now), "seen": null()},
        )
    )
    mark_deleted(connection, key, live_annotations(connection, key, task), now)


def live_annotations(connection: Connection, key: ProjectKey, task: int) -> tuple[int, ...]:
    """Annotations of a task that are not marked as deleted."""
    found = select(annotation_rows.c.annotation).where(
        annotation_rows.c.origin == key.origin,
        annotation_rows.c.project == key.project,
        annotation_rows.c.task == task,
        annotation_rows.c.deleted_at.is_(None),
    )
    return tuple(connection.scalars(found))
