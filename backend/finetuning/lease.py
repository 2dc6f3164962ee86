"""A job while a worker holds it."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

from backend.errors import StoreError
from backend.finetuning import jobs
from backend.finetuning.jobs import Job
from backend.store.database import Store
from semsam_model.errors import Stopped
from semsam_model.types import ShouldStop

log = logging.getLogger(__name__)


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
        return jobs.renew(self._store, self._job, self._worker, self._duration, **self._progress)

    def _keep(self) -> None:
        while not self._ended.wait(self._duration.total_seconds() / 3):
            try:
                if not self._renew():
                    self._lost.set()
            except StoreError as error:  # away for a while; whether the job still is ours the lease decides
                log.warning("job %d: lease not renewed: %s", self._job.id, error)
