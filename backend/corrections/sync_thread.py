"""The thread that brings projects up to date: at the start, on a timer, when training is asked for, after a failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from backend.corrections.archive import PhotoArchive
from backend.corrections.photos import fetch_photos
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.queries import list_projects
from backend.corrections.sync import sync_project
from backend.errors import NotFound, StoreError
from backend.label_studio.client import LabelStudio
from backend.outages import Outages
from backend.records import ProjectKey
from backend.store.clock import bring_back
from backend.store.database import Store
from semsam_model.errors import SemsamError, Stopped

log = logging.getLogger(__name__)

RETRY_S = 30.0  #: seconds after which a project that failed is tried again
APART_S = 5.0  #: seconds between two comparisons of a project that was asked for by `request_sync_soon`
PHOTOS_S = 60.0  #: seconds after which new regions are looked for unasked: another backend may have died over theirs
BEGIN_S = 60.0  #: seconds that the first comparison waits for what annotators wait for
MISSED_AGAIN = timedelta(hours=1)  #: after which a project that Label Studio did not show is asked for again


class SyncThread:
    """Thread-safe. All requests to Label Studio that no annotator waits for are made on this one thread."""

    def __init__(
        self,
        store: Store,
        label_studio: LabelStudio,
        photos: PhotoArchive,
        every_s: float,
        *,
        retry_s: float = RETRY_S,
        missed_again: timedelta = MISSED_AGAIN,
        apart_s: float = APART_S,
    ) -> None:
        """every_s: seconds between comparisons of all projects; 0 = only at the start and when asked."""
        self._store = store
        self._label_studio = label_studio
        self._photos = photos
        self._every_s = every_s
        self._retry_s = retry_s
        self._missed_again = missed_again
        self._apart_s = apart_s
        self._requested: set[ProjectKey] = set()
        self._due: dict[ProjectKey, float] = {}  #: of `request_sync_soon`: the last one, due or past
        self._waiting: set[ProjectKey] = set()  #: of `request_sync_soon`: not begun yet
        self._photos_requested: set[ProjectKey] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._outages = Outages(log)
        self._begin = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def start(self, after: Future[Any] | None = None) -> None:
        """Begin with all projects that the store knows; when `after` is done, or has taken `BEGIN_S`, if that is given:
        to go through a long list takes the processor from a model that is loading.
        """
        if after is None:
            self._begin.set()
        else:
            after.add_done_callback(lambda _: self._begin.set())
        self._thread.start()

    def stop(self) -> None:
        """End. A step that is under way ends with the process, and loses nothing."""
        self._stopping.set()
        self._begin.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def request_sync(self, key: ProjectKey) -> None:
        """Bring this project up to date soon."""
        with self._lock:
            self._requested.add(key)
        self._wake.set()

    def request_sync_soon(self, key: ProjectKey) -> None:
        """As `request_sync`, but at most once in `apart_s`: for hints that anyone may give, as often as they like."""
        with self._lock:
            now = time.monotonic()
            if key not in self._waiting:  # else one is due already, which will see what changed
                self._due[key] = max(now, self._due.get(key, -self._apart_s) + self._apart_s)
                self._waiting.add(key)
        self._wake.set()

    def request_photos(self, key: ProjectKey) -> None:
        """Read the predictions and fetch the photos of a project's new regions soon."""
        with self._lock:
            self._photos_requested.add(key)
        self._wake.set()

    def _run(self) -> None:
        self._begin.wait(BEGIN_S)
        every_s = self._every_s or float("inf")
        next_round, first = time.monotonic(), True
        retry_at, next_photos = next_round, next_round + PHOTOS_S
        failed: set[ProjectKey] = set()  # requested, and something failed: the store may not know them
        while not self._stopping.is_set():
            now = time.monotonic()
            with self._lock:
                ripe = {key for key in self._waiting if self._due[key] <= now}
                self._waiting -= ripe
                requested, self._requested = self._requested | ripe, set()
                photos, self._photos_requested = self._photos_requested, set()
            all_photos = now >= next_photos
            if all_photos:
                next_photos = now + PHOTOS_S
            all_projects = now >= next_round
            if now >= retry_at:  # not whenever something else is to be done: what is away stays away for a while
                requested, failed = requested | failed, set()
            succeeded = self._sync(requested, None if all_photos else photos, all_projects, first)
            first = first and not (all_projects and succeeded)
            if not succeeded:
                failed |= requested
                retry_at = retry_at if retry_at > now else now + self._retry_s
            if all_projects:
                next_round = now + min(every_s, float("inf") if succeeded else self._retry_s)
            elif not succeeded:
                next_round = min(next_round, now + self._retry_s)
            with self._lock:
                idle = not self._requested and not self._photos_requested
                wake_at = min([next_round, next_photos, *(self._due[key] for key in self._waiting)])
            if idle:
                self._wake.wait(min(max(0.0, wake_at - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()

    def _sync(
        self, requested: set[ProjectKey], photos: set[ProjectKey] | None, all_projects: bool, first: bool
    ) -> bool:
        """Bring the requested projects, or all, up to date; whether that succeeded.

        Annotations of all projects come first: they do not wait for the photos of one. photos: further projects whose
        predictions are read and photos fetched; None: of all. first: all means those, too, that were compared a moment
        ago.
        """
        try:
            if all_projects:
                bring_back(self._store, datetime.now(UTC))
                self._photos.clear_away()
            stored = list_projects(self._store)
        except StoreError as error:
            self._outages.failed("store", f"not compared with Label Studio: {error}")
            return False
        self._outages.works("store", "compared with Label Studio again")
        there = {project.key for project in stored if project.deleted_at is None}
        chosen = requested
        if all_projects:
            before = datetime.now(UTC) - self._missed_again
            missed = {each.key for each in stored if each.missed_at is not None and each.missed_at <= before}
            since = datetime.now(UTC) - timedelta(seconds=0 if first else self._every_s / 2)
            recent = {each.key for each in stored if each.synced_at is not None and each.synced_at > since}
            chosen = requested | (there - recent) | missed
        succeeded = True
        for key in sorted(chosen):
            if self._stopping.is_set():
                return False
            compare = partial(self._compare, asked=key in requested)
            succeeded &= self._attempt("not compared with Label Studio", compare, key)
        for key in sorted(chosen | (there if photos is None else photos & there)):
            succeeded &= self._attempt("predictions not read", self._judge, key)
            succeeded &= self._attempt("photos not fetched", self._fetch, key)
        return succeeded

    def _attempt(self, failure: str, step: Callable[[ProjectKey], None], key: ProjectKey) -> bool:
        """Take one step for one project; False where it is to be tried again soon.

        A failure is logged once, costs only this step, and does not end the thread. failure: what it is called in the
        log.
        """
        try:
            step(key)
        except Stopped:
            return False
        except NotFound as error:
            line = f"project {key} is gone, or not to be seen with this token, for now: {error}"
            self._outages.failed((key, failure), line)
        except SemsamError as error:
            self._outages.failed((key, failure), f"project {key}: {failure}: {error}; tried again")
            return False
        except Exception:
            log.exception("project %s: %s: unexpected failure", key, failure)
        else:
            self._outages.works((key, failure), f"project {key}: no longer {failure}")
        return True

    def _compare(self, key: ProjectKey, asked: bool) -> None:
        """asked: it is of no use that another backend is at it, which may have passed by what has changed since."""
        with self._store.claim(f"compare {key}") as mine:
            if not mine:
                if asked:
                    raise StoreError("another backend is comparing it; tried again")
                return
            synced = sync_project(self._store, self._label_studio, key, should_stop=self._stopping.is_set)
        log.info("project %s: compared with Label Studio: %s", key, synced)

    def _judge(self, key: ProjectKey) -> None:
        judged = judge_preannotated(self._store, self._label_studio, key, should_stop=self._stopping.is_set)
        if any(judged):
            log.info("project %s: %d pre-annotated regions judged, %d predictions not read", key, *judged)

    def _fetch(self, key: ProjectKey) -> None:
        """Whoever is at it already looks once more before it ends, so it finds what we know of, or ends within 1 s."""
        for wait_s in (1.0, 0.0):
            with self._store.claim(f"photos of {key}") as mine:
                if mine:
                    stop = self._stopping.is_set
                    fetched = fetch_photos(self._store, self._label_studio, self._photos, key, should_stop=stop)
                    if any(fetched):
                        log.info("project %s: %d photos fetched, %d could not be", key, *fetched)
                    return
            self._stopping.wait(wait_s)
