"""Photos of regions, fetched once and kept in the archive: training and export then need no Label Studio."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, not_, or_, select, update

from backend.corrections.addresses import whole_address
from backend.corrections.archive import PhotoArchive
from backend.corrections.outcomes import config_or_empty, fitted_row
from backend.corrections.queries import BATCH, RETRY_AFTER
from backend.errors import PhotosUnavailable, TokenRefused, Unreachable
from backend.label_studio.annotations import WAITS_FOR_PHOTO
from backend.label_studio.client import LabelStudio
from backend.label_studio.fields import clean
from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from backend.store.statements import IS_USABLE, change_regions, of_project, of_task, to_record
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import projects, regions, tasks
from backend.store.totals import changing
from semsam_model.data.samples import photo_size
from semsam_model.errors import DataError, SemsamError, Stopped
from semsam_model.masks.geometry import Size
from semsam_model.types import ShouldStop, never_stop

log = logging.getLogger(__name__)

_TOGETHER, _TOGETHER_S = 20, 2.0  #: photos that are saved together, and after how many seconds at the latest


#: Regions that were not compared with their photo yet.
_LACKS_PHOTO = and_(
    regions.c.deleted_at.is_(None),
    or_(regions.c.problem.is_(None), regions.c.problem == WAITS_FOR_PHOTO),
    regions.c.image_sha256.is_(None),
)


class Fetched(NamedTuple):
    """Numbers of photos. The log and the store say why one could not be fetched."""

    fetched: int
    failed: int


def fetch_photos(
    store: Store,
    label_studio: LabelStudio,
    photos: PhotoArchive,
    key: ProjectKey,
    *,
    retry: bool = False,
    should_stop: ShouldStop = never_stop,
) -> Fetched:
    """Fetch the photos of a project's annotations that are missing in the archive, and fit its regions to them.

    One that failed is tried again after `RETRY_AFTER`, or, with `retry`, now. should_stop: asked before each. What was
    done stays done. Raises Stopped, StoreError; Unreachable, TokenRefused where Label Studio is away, PhotosUnavailable
    where the archive is.
    """
    name = label_studio.project_on(key.origin, key.project)
    began = datetime.now(UTC)
    fetched = failed = 0
    while missing := _missing(store, key, began if retry else began - RETRY_AFTER):
        looked: list[_Looked] = []  # not in the store yet: other writers are not to wait for a commit a photo
        since = time.monotonic()
        try:
            for task, url, known in missing:
                if should_stop():
                    raise Stopped(f"project {key}: fetching photos ended early")
                problem, content = None, None
                sha256 = known  # a region came while the photo was being fetched, and lacks its digest
                if known is None:
                    try:
                        content = label_studio.fetch_image(whole_address(store, url), project=name, task_id=task)
                        sha256 = photos.keep(content)
                    except (SemsamError, OSError) as error:
                        away = isinstance(error, Unreachable) and url.startswith("/")
                        if away or isinstance(error, TokenRefused | PhotosUnavailable):
                            raise  # Label Studio itself, or the archive: it would be the same with all others
                        problem = str(error)
                        if isinstance(error, OSError):
                            log.warning("project %s task %d: photo not kept: %s", key, task, error)
                    fetched, failed = fetched + (sha256 is not None), failed + (sha256 is None)
                size = None if sha256 is None else _size(photos, key, task, sha256, content)
                looked.append(_Looked(task, sha256, problem, size))
                if len(looked) >= _TOGETHER or time.monotonic() - since > _TOGETHER_S:
                    _save(store, key, looked)
                    looked, since = [], time.monotonic()
        finally:
            _save(store, key, looked)
    return Fetched(fetched, failed)


def _missing(store: Store, key: ProjectKey, tried_before: datetime) -> list[tuple[int, str, str | None]]:
    """Tasks whose photo, or a region's digest of it, is missing: (task, the photo's address, digest if known)."""
    columns = (tasks.c.task, tasks.c.image_url, tasks.c.image_sha256)
    named = and_(of_project(tasks, key), tasks.c.image_url.is_not(None))
    used = select(regions.c.region).where(
        regions.c.origin == tasks.c.origin, regions.c.project == tasks.c.project, regions.c.task == tasks.c.task
    )
    submitted = select(annotation_rows.c.annotation).where(
        annotation_rows.c.origin == tasks.c.origin,
        annotation_rows.c.project == tasks.c.project,
        annotation_rows.c.task == tasks.c.task,
        annotation_rows.c.deleted_at.is_(None),
        annotation_rows.c.updated_at.is_not(None),
        not_(annotation_rows.c.cancelled),
    )
    no_photo = select(*columns).where(
        named,
        tasks.c.image_sha256.is_(None),
        or_(tasks.c.tried_at.is_(None), tasks.c.tried_at < tried_before),
        or_(used.where(IS_USABLE).exists(), submitted.exists()),
    )
    # asked of the regions: few lack a digest, and an index has them, while the tasks with a photo are many
    lacking = select(regions.c.task).where(of_project(regions, key), _LACKS_PHOTO).distinct()
    no_digest = select(*columns).where(named, tasks.c.image_sha256.is_not(None), tasks.c.task.in_(lacking))
    with store.read() as connection:
        found = [connection.execute(query.order_by(tasks.c.task).limit(BATCH)).all() for query in (no_photo, no_digest)]
    return [(row.task, row.image_url, row.image_sha256) for rows in found for row in rows]


class _Looked(NamedTuple):
    """What became of a task's photo."""

    task: int
    sha256: str | None
    problem: str | None
    size: Size | None  #: (H, W); None where the photo cannot be read


def _size(photos: PhotoArchive, key: ProjectKey, task: int, sha256: str, content: bytes | None) -> Size | None:
    """(H, W) of a photo; None where it cannot be read, which is logged. content: its file, where that is at hand."""
    where = f"photo {sha256}"
    file = photos.find(sha256) if content is None else io.BytesIO(content)
    if file is None:
        log.warning("project %s task %d: %s: no longer in the archive", key, task, where)
        return None
    try:
        with file:
            return photo_size(file, where)
    except DataError as error:
        log.warning("project %s task %d: %s", key, task, error)
        return None


def _save(store: Store, key: ProjectKey, looked: Sequence[_Looked]) -> None:
    """Save what became of some photos, and fit the regions that waited for them, in one transaction."""
    fits = [_fitted(store, key, each) for each in looked]
    if not looked:
        return
    with store.write() as connection, changing(connection, key, [each.task for each in looked]):
        change_regions(connection, chain.from_iterable(fits), regions.c.image_sha256.is_(None))
        for each in looked:
            _note(connection, key, each)


def _fitted(store: Store, key: ProjectKey, looked: _Looked) -> list[tuple[RegionKey, datetime, dict[str, Any]]]:
    """Compare a task's new regions with the size of its photo: (region, as of when, what changes in its row)."""
    if looked.sha256 is None:
        return []
    with store.read() as connection:
        rows = connection.execute(select(regions).where(of_task(regions, key, looked.task), _LACKS_PHOTO)).all()
        xml = connection.scalar(select(projects.c.label_config).where(of_project(projects, key)))
    config, changes = config_or_empty(xml or ""), []
    for row in rows:
        values = {} if looked.size is None else fitted_row(store, row, config, looked.size)
        if problem := values.get("problem"):
            log.warning("project %s annotation %d: region %s: %s", key, row.annotation, row.region, problem)
        changes.append((to_record(RegionKey, row), row.updated_at, {"image_sha256": looked.sha256, **values}))
    return changes


def _note(connection: Connection, key: ProjectKey, looked: _Looked) -> None:
    """Save what became of a task's photo.

    Regions that were suggested on another file keep that file's digest; the task's `problem` says so.
    """
    sha256, problem = looked.sha256, looked.problem
    if sha256 is not None:
        mine = of_task(regions, key, looked.task)
        other = select(regions.c.image_sha256).where(mine, regions.c.image_sha256 != sha256).limit(1)
        if before := connection.scalar(other):
            problem = f"the photo is another file ({sha256}) than the one that was labeled ({before})"
    values = {"image_sha256": sha256, "problem": problem and clean(problem)[:2000], "tried_at": datetime.now(UTC)}
    connection.execute(update(tasks).where(of_task(tasks, key, looked.task)).values(values))
