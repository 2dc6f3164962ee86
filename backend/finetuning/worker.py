"""`semsam worker`: takes fine-tuning jobs from the store, one at a time, out of the way of clicks.

A thread renews the lease on the job; a worker that has lost it stops. A job whose worker died is claimed again, by
whichever worker comes next. Jobs that are due are requested here, too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import torch

from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import list_projects
from backend.errors import StoreError
from backend.finetuning import jobs
from backend.finetuning.job_runner import JobRunner, Steps
from backend.finetuning.jobs import Job, Lease
from backend.outages import Outages
from backend.settings import Settings
from backend.store.database import Store
from backend.versions.registry import Registry
from semsam_model.errors import SemsamError, Stopped

log = logging.getLogger(__name__)

POLL_S = 2.0  #: seconds between looks for a job
DUE_S = 30.0  #: seconds between looks whether a project is due for one


class Worker:
    """Runs jobs, one after another, in the thread that calls it. `stopping` ends it; the job goes back to the queue."""

    def __init__(
        self, settings: Settings, store: Store, registry: Registry, photos: PhotoArchive, *, steps: Steps | None = None
    ) -> None:
        """Raises ConfigError for wrong settings of fine-tuning or gate."""
        self.stopping = threading.Event()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.runner = JobRunner(settings, store, registry, photos, steps or Steps())
        self._settings = settings
        self._store = store
        self._lease = timedelta(seconds=settings.worker_lease_seconds)

    def run(self) -> None:
        """Until `stopping` is set: claim jobs and run them; request those that are due."""
        log.info("worker %s waits for jobs", self.name)
        looked, outages = -DUE_S, Outages(log)
        while not self.stopping.is_set():
            try:
                if time.monotonic() - looked >= DUE_S:
                    looked = time.monotonic()
                    request_due(self._store, self._settings)
                if self.run_one() is not None:
                    continue
                outages.works("store", "the database is back")
            except StoreError as error:
                outages.failed("store", f"{error}; trying again")
            self.stopping.wait(POLL_S)

    def run_one(self, only: int | None = None) -> Job | None:
        """Claim a job and run it to its end, or until `stopping`; the job as it then stands. None: nothing to do.

        only: no other job than this one. Raises StoreError.
        """
        job = jobs.claim(self._store, self.name, self._lease, only=only)
        if job is None:
            return None
        log.info("job %d of project %s (%s), attempt %d", job.id, job.key, job.trigger, job.attempts)
        lease = Lease(self._store, job, self.name, self._lease, self.stopping.is_set)
        try:
            with lease:
                ended = self.runner.run(job, lease)
        except Stopped:
            self._give_back(job, lease)
        except StoreError:
            raise  # the lease runs out, and the job is claimed again
        except SemsamError as error:
            self._finish(job, "failed", message=str(error)[:2000])
        except Exception as error:
            log.exception("job %d failed", job.id)
            self._finish(job, "failed", message=f"{type(error).__name__}: {error}"[:2000])
        else:
            self._finish(job, ended.state, **ended.result)
        now = jobs.find(self._store, job.id)
        log.info("job %d: %s %s", job.id, now.state, now.message)
        return now

    def _give_back(self, job: Job, lease: Lease) -> None:
        if lease.is_lost:
            log.warning("job %d: another worker has it now", job.id)
            return
        jobs.release(self._store, job, self.name)
        log.info("job %d: given back, it goes on from its last checkpoint", job.id)

    def _finish(self, job: Job, state: jobs.State, **result: Any) -> None:
        """End a job, if this worker still holds it: another one may need its files."""
        if jobs.finish(self._store, job, self.name, state, **result):
            self.runner.clean_up(job)


def out_of_the_way(settings: Settings) -> None:
    """Make this process yield to those that answer clicks: low priority, few threads."""
    os.nice(settings.worker_nice)
    torch.set_num_threads(settings.worker_threads or max(1, (os.cpu_count() or 2) // 2))


def request_due(store: Store, settings: Settings, at: datetime | None = None) -> list[Job]:
    """Request jobs for projects with enough new corrections, or whose schedule is due; the jobs that are new."""
    at = at or datetime.now(UTC)
    requested: list[Job] = []
    if not settings.finetune_after_corrections and not settings.finetune_every_hours:
        return requested
    for project in list_projects(store):
        if project.deleted_at is not None:
            continue
        new, last = jobs.new_corrections(store, project.key, most=settings.finetune_after_corrections or 1)
        trigger: jobs.Trigger | None = None
        if settings.finetune_after_corrections and new >= settings.finetune_after_corrections:
            trigger = "corrections"
        elif settings.finetune_every_hours and new:
            every = timedelta(hours=settings.finetune_every_hours)
            trigger = "schedule" if last is None or at - last >= every else None
        if trigger is not None:
            job, is_new = jobs.request(store, project.key, trigger, at)
            requested += [job] if is_new else []
    return requested
