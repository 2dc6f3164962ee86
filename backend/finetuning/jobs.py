"""Fine-tuning jobs in the store: requested, claimed under a lease, finished; and their folders. One open job a project.

A worker that claims a job holds it for a lease that it renews; when it dies the lease runs out, and the next claim
brings the job back. Every change that a worker makes names the worker, so one that has lost its job changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Row, Select, and_, func, or_, select, update

from backend.errors import NotStored, StoreError
from backend.records import OUTCOMES, ProjectKey
from backend.store.database import Store
from backend.store.statements import BELONGS_TO, IS_USABLE, insert_if_new, of_project, to_record
from backend.store.tables import annotations as annotation_rows
from backend.store.tables import jobs, regions, totals
from semsam_model.errors import Stopped
from semsam_model.types import ShouldStop

log = logging.getLogger(__name__)

#: button: Start Training in Label Studio. corrections: enough new ones. schedule: time has passed. command: by hand.
Trigger = Literal["button", "corrections", "schedule", "command"]
State = Literal["queued", "running", "promoted", "refused", "failed"]
OPEN: tuple[State, ...] = ("queued", "running")
ATTEMPTS = 3  #: a job whose workers died so many times is given up

# ---- files of a job's folder
CHILD = "child.safetensors"  #: weights of the model that came out, until they lie beside their version
PHOTOS = "photos"  #: copies of photos from an object store, until the job ends
REPORT, VERDICT = "gate.html", "gate.json"  #: of the gate; kept beside the version, too
RECENT = timedelta(hours=1)  #: for which the files of an ended job are not cleared away


@dataclass(frozen=True)
class Job:
    """One fine-tuning job as it stands. Times are UTC."""

    id: int
    key: ProjectKey
    state: State
    trigger: Trigger
    requested_at: datetime
    started_at: datetime | None = None  #: of the first claim
    finished_at: datetime | None = None
    attempts: int = 0  #: claims so far
    worker: str | None = None  #: that holds it
    lease_until: datetime | None = None
    stage: str = ""  #: what it is at: snapshot, fine-tuning, gate, ...
    step: int = 0
    steps: int = 0
    regions: int = 0  #: corrections in its snapshot
    data_digest: str | None = None  #: of the snapshot
    parent: str | None = None  #: version that it started from
    version: str | None = None  #: version that came out, if one was registered
    message: str = ""  #: why it was refused or failed
    report: str | None = None  #: file of the gate's report
    verdict: Mapping[str, Any] = field(default_factory=dict)  #: see semsam_model.gate.Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: v.isoformat() if isinstance(v, datetime) else v for name, v in vars(self).items()}
        del values["key"]
        return values | vars(self.key) | {"verdict": dict(self.verdict)}


def request(store: Store, key: ProjectKey, trigger: Trigger, at: datetime | None = None) -> tuple[Job, bool]:
    """Request a job; a project's open one stands for every further request. Returns it and whether it is new."""
    values = {
        **vars(key),
        "state": "queued",
        "trigger": trigger,
        "requested_at": at or datetime.now(UTC),
        "attempts": 0,
        "stage": "waiting",
        "step": 0,
        "steps": 0,
        "regions": 0,
        "message": "",
        "verdict": {},
    }
    open_job = select(jobs).where(of_project(jobs, key), jobs.c.state.in_(OPEN))
    for _ in range(10):
        # an open job of the project makes the INSERT do nothing; another process may end that job before the SELECT
        with store.write() as connection:
            insert = insert_if_new(connection, jobs).values(values).returning(jobs.c.id)
            is_new = connection.execute(insert).one_or_none() is not None
            row = connection.execute(open_job).one_or_none()
        if row is not None:
            return _job(row), is_new
    raise StoreError(f"project {key}: its jobs change all the time; try again")


def claim(
    store: Store, worker: str, lease: timedelta, *, only: int | None = None, at: datetime | None = None
) -> Job | None:
    """Take the oldest job that waits, or whose worker has let its lease run out; None when there is none.

    only: no other job than this one. A job whose workers died ATTEMPTS times is marked as failed on the way.
    """
    at = at or datetime.now(UTC)
    free = or_(jobs.c.state == "queued", and_(jobs.c.state == "running", jobs.c.lease_until < at))
    query = select(jobs).where(free).order_by(jobs.c.id).limit(1).with_for_update(skip_locked=True)
    if only is not None:
        query = query.where(jobs.c.id == only)
    while True:
        with store.write() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            mine = jobs.c.id == row.id
            if row.attempts >= ATTEMPTS:
                message = f"given up: its worker died {ATTEMPTS} times, the last time while at: {row.stage}"
                connection.execute(update(jobs).where(mine).values(state="failed", message=message, finished_at=at))
                continue
            values = {"state": "running", "worker": worker, "lease_until": at + lease, "attempts": row.attempts + 1}
            if row.started_at is None:
                values["started_at"] = at
            connection.execute(update(jobs).where(mine).values(**values))
            return _job(connection.execute(select(jobs).where(mine)).one())


def renew(store: Store, job: Job, worker: str, lease: timedelta, at: datetime | None = None, **progress: Any) -> bool:
    """Go on holding a job, and note progress (stage, step, regions, ...). False: the worker holds it no longer."""
    return _change(store, job, worker, {"lease_until": (at or datetime.now(UTC)) + lease, **progress})


def release(store: Store, job: Job, worker: str) -> bool:
    """Give a job back unfinished, as a worker that is asked to stop does; that counts as no attempt."""
    values = {"state": "queued", "worker": None, "lease_until": None, "attempts": jobs.c.attempts - 1}
    return _change(store, job, worker, values)


def finish(store: Store, job: Job, worker: str, state: State, at: datetime | None = None, **result: Any) -> bool:
    """End a job as promoted, refused or failed, with what came of it (message, version, report, verdict)."""
    values = {"state": state, "finished_at": at or datetime.now(UTC), "lease_until": None, "stage": "done", **result}
    return _change(store, job, worker, values)


def _change(store: Store, job: Job, worker: str, values: Mapping[str, Any]) -> bool:
    held = and_(jobs.c.id == job.id, jobs.c.state == "running", jobs.c.worker == worker)
    with store.write() as connection:
        return connection.execute(update(jobs).where(held).values(**values)).rowcount == 1


def find(store: Store, job: int) -> Job:
    """Raises NotStored when there is none with this number, StoreError."""
    found = _find_all(store, select(jobs).where(jobs.c.id == job))
    if not found:
        raise NotStored(f"job {job}: not in the store; `semsam jobs` lists those that are")
    return found[0]


def list_jobs(store: Store, key: ProjectKey | None = None, most: int = 50) -> list[Job]:
    """The newest first; of one project, or of all."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(most)
    return _find_all(store, query if key is None else query.where(of_project(jobs, key)))


def last_judged(store: Store) -> Job | None:
    """The newest job that the gate has judged."""
    judged = and_(jobs.c.state.in_(("promoted", "refused")), jobs.c.version.is_not(None))
    newest = _find_all(store, select(jobs).where(judged).order_by(jobs.c.id.desc()).limit(20))
    return next((job for job in newest if job.verdict), None)


def new_corrections(store: Store, key: ProjectKey, most: int) -> tuple[int, datetime | None]:
    """Usable regions received, by our clock, since the project's last job was requested, and when that was.

    most: counted up to this.
    """
    with store.read() as connection:
        last = connection.scalar(select(func.max(jobs.c.requested_at)).where(of_project(jobs, key)))
        if last is None:
            usable = select(*(totals.c[name] for name in OUTCOMES)).where(of_project(totals, key))
            return min(sum(connection.execute(usable).one_or_none() or ()), most), None
        mine = and_(of_project(annotation_rows, key), annotation_rows.c.received_at > last)
        # for each annotation, so that it is searched for by its key; those with regions are no more than their regions
        own = select(func.count()).select_from(regions).where(BELONGS_TO, IS_USABLE).correlate(annotation_rows)
        found = select(own.scalar_subquery().label("usable")).where(mine, own.scalar_subquery() > 0)
        count = connection.scalar(select(func.sum(found.limit(most).subquery().c.usable)))
    return min(int(count or 0), most), last


def _find_all(store: Store, query: Select[Any]) -> list[Job]:
    with store.read() as connection:
        return [_job(row) for row in connection.execute(query).all()]


def _job(row: Row[Any]) -> Job:
    return to_record(Job, row, key=to_record(ProjectKey, row))


class Lease:
    """Inside its `with` block a thread renews the lease on a job, three times while it lasts."""

    def __init__(self, store: Store, job: Job, worker: str, duration: timedelta, stopping: ShouldStop) -> None:
        """worker: that has claimed the job. stopping: whether that worker was asked to stop."""
        self._store = store
        self._job = job
        self._worker = worker
        self._duration = duration
        self._stopping = stopping
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._progress: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def is_lost(self) -> bool:
        """Whether another worker has the job."""
        return self._lost.is_set()

    def should_stop(self) -> bool:
        """Whether the worker is to stop, or has lost the job. Cheap: the thread asks the store."""
        return self.is_lost or self._stopping()

    def note(self, **progress: Any) -> None:
        """Save what the job is at (stage, step, ...), which renews the lease. Raises Stopped when it is lost."""
        self._progress |= progress
        if self.is_lost or not self._renew():
            self._lost.set()
            raise Stopped(f"job {self._job.id}: another worker has it now")

    def _renew(self) -> bool:
        return renew(self._store, self._job, self._worker, self._duration, **self._progress)

    def _keep(self) -> None:
        while not self._ended.wait(self._duration.total_seconds() / 3):
            try:
                if not self._renew():
                    self._lost.set()
            except StoreError as error:  # away for a while; whether the job still is ours the lease decides
                log.warning("job %d: lease not renewed: %s", self._job.id, error)


def job_folder(data_dir: Path, job: Job) -> Path:
    """Where a job keeps what it has done."""
    return data_dir / "jobs" / str(job.id)


def report_file(data_dir: Path, job: Job) -> Path | None:
    """The gate's report where it still lies: in the job's folder, else beside its version; None where in neither.

    Looked for by number and version, not by the path that the worker saved: the data folder may have been moved, and
    no file outside it may be read.
    """
    folders = [job_folder(data_dir, job)]
    if job.version is not None:
        folders.append(data_dir / "versions" / job.version)
    files = [folder / REPORT for folder in folders]
    inside = data_dir.resolve()
    return next((file for file in files if file.is_file() and file.resolve().is_relative_to(inside)), None)


def clear_job_files(
    store: Store, data_dir: Path, versions: Collection[str], *, dry_run: bool = False, at: datetime | None = None
) -> dict[int, int]:
    """Remove the files of ended jobs whose version is none of `versions`, or that made none, but for the gate's report.

    Jobs of the last hour stay as they are. Number of the job -> bytes that went, or, with dry_run, would. at: now, if
    not given.
    """
    cleared: dict[int, int] = {}
    ended = and_(jobs.c.state.not_in(OPEN), jobs.c.finished_at < (at or datetime.now(UTC)) - RECENT)
    for job in _find_all(store, select(jobs).where(ended).order_by(jobs.c.id)):
        folder = job_folder(data_dir, job)
        if job.version in versions or not folder.is_dir():
            continue
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != REPORT]
        if files:
            cleared[job.id] = sum(path.stat().st_size for path in files)
        if not dry_run:
            for path in files:
                path.unlink(missing_ok=True)
            shutil.rmtree(folder / PHOTOS, ignore_errors=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    return cleared
