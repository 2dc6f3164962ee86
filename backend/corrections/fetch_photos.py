"""Pictures that corrections refer to, fetched once and kept: training and export then need no Label Studio."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, or_, select, update

from backend.corrections.photo_archive import PhotoArchive
from backend.label_studio.client import LabelStudio
from backend.label_studio.fields import clean
from backend.records import ProjectKey
from backend.store.database import Store
from backend.store.tables import regions, tasks
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

RETRY_AFTER = timedelta(minutes=10)
_BATCH = 50


def fetch_photos(
    store: Store,
    label_studio: LabelStudio,
    photos: PhotoArchive,
    key: ProjectKey,
    *,
    retry: bool = False,
    on_picture: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Fetch and keep what is missing of a project; (kept, could not be kept: the log and the store say why).

    One that failed is tried again after `RETRY_AFTER`, or, with `retry`, now. on_picture: called after each.
    Raises StoreError.
    """
    name = label_studio.project_on(key.origin, key.project)
    began = datetime.now(UTC)
    kept = failed = 0
    while waiting := _waiting(store, key, began if retry else began - RETRY_AFTER):
        for task, url, known in waiting:
            if known is not None:  # a region came while its picture was kept, and knew nothing of it
                _note(store, key, task, known, None)
                continue
            problem = sha256 = None
            try:
                sha256 = photos.keep(label_studio.fetch_image(url, project=name, task_id=task))
            except (SemsamError, OSError) as error:
                problem = str(error)
                if isinstance(error, OSError):
                    log.warning("project %s task %d: picture not kept: %s", key, task, error)
            _note(store, key, task, sha256, problem)
            kept, failed = kept + (sha256 is not None), failed + (sha256 is None)
            on_picture()
    return kept, failed


def _waiting(store: Store, key: ProjectKey, tried_before: datetime) -> list[tuple[int, str, str | None]]:
    """(task, what it names as its picture, digest if that is kept) where a picture or a region's digest is missing."""
    used = select(regions.c.region).where(
        regions.c.origin == tasks.c.origin,
        regions.c.project == tasks.c.project,
        regions.c.task == tasks.c.task,
        regions.c.deleted_at.is_(None),
        regions.c.problem.is_(None),
    )
    missing = and_(
        tasks.c.image_sha256.is_(None),
        or_(tasks.c.tried_at.is_(None), tasks.c.tried_at < tried_before),
        used.exists(),
    )
    # asked of the regions: they are few, in an index, and the tasks with a picture are many
    without = select(regions.c.task).where(
        regions.c.origin == key.origin,
        regions.c.project == key.project,
        regions.c.deleted_at.is_(None),
        regions.c.image_sha256.is_(None),
        regions.c.problem.is_(None),
    )
    late = and_(tasks.c.image_sha256.is_not(None), tasks.c.task.in_(without))
    query = select(tasks.c.task, tasks.c.image_url, tasks.c.image_sha256).where(
        tasks.c.origin == key.origin,
        tasks.c.project == key.project,
        tasks.c.image_url.is_not(None),
        or_(missing, late),
    )
    with store.read() as connection:
        rows = connection.execute(query.order_by(tasks.c.task).limit(_BATCH)).all()
    return [(row.task, row.image_url, row.image_sha256) for row in rows]


def _note(store: Store, key: ProjectKey, task: int, sha256: str | None, problem: str | None) -> None:
    """Regions drawn by hand get the digest, too. Those offered on another file keep theirs, and the task says so."""
    here = and_(tasks.c.origin == key.origin, tasks.c.project == key.project, tasks.c.task == task)
    mine = and_(regions.c.origin == key.origin, regions.c.project == key.project, regions.c.task == task)
    with store.write() as connection:
        if sha256 is not None:
            connection.execute(
                update(regions).where(mine, regions.c.image_sha256.is_(None)).values(image_sha256=sha256)
            )
            other = select(regions.c.image_sha256).where(mine, regions.c.image_sha256 != sha256).limit(1)
            if before := connection.scalar(other):
                problem = f"the picture is another file ({sha256}) than the one that was labeled ({before})"
        values = {"image_sha256": sha256, "problem": problem and clean(problem)[:2000], "tried_at": datetime.now(UTC)}
        connection.execute(update(tasks).where(here).values(values))
