"""The thread that reconciles: at the start, on a timer, when training is asked for, and after a delivery was missed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from backend.corrections.fetch_photos import fetch_photos
from backend.corrections.photo_archive import PhotoArchive
from backend.corrections.prediction_outcomes import judge_preannotated
from backend.corrections.queries import list_projects
from backend.corrections.sync import sync_project
from backend.errors import NotFound, StoreError
from backend.label_studio.client import LabelStudio
from backend.records import ProjectKey
from backend.store.database import Store
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

RETRY_S = 30.0
MISSED_AGAIN = timedelta(hours=1)  #: after which a project that Label Studio did not show is asked for again


class SyncThread:
    """Thread-safe. Fetches pictures and predictions, too, so nothing else waits for a slow store of pictures."""

    def __init__(self, store: Store, label_studio: LabelStudio, photos: PhotoArchive, every_s: float) -> None:
        """every_s: seconds between comparisons of all projects; 0 = only at the start and when asked."""
        self._store = store
        self._label_studio = label_studio
        self._photos = photos
        self._every_s = every_s
        self._wanted: set[ProjectKey] = set()
        self._pictures = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def start(self) -> None:
        """Begin with all projects that the store knows."""
        self._thread.start()

    def stop(self) -> None:
        """End; a comparison under way is cut off with the process and loses nothing."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def request_sync(self, key: ProjectKey) -> None:
        """Compare this project soon."""
        with self._lock:
            self._wanted.add(key)
        self._wake.set()

    def request_photos(self) -> None:
        """Look soon whether pictures, or predictions, are to be fetched."""
        with self._lock:
            self._pictures = True
        self._wake.set()

    def _run(self) -> None:
        next_all = time.monotonic()
        owed: set[ProjectKey] = set()  # wanted, and something failed: the store may know nothing of them
        while not self._stopping.is_set():
            now = time.monotonic()
            with self._lock:
                wanted, self._wanted = self._wanted, set()
                pictures, self._pictures = self._pictures, False
            every = now >= next_all
            wanted |= owed
            well = self._pass(wanted, pictures, every)
            owed = set() if well else wanted
            if every:
                next_all = now + (self._every_s or float("inf")) if well else now + RETRY_S
            elif not well:
                next_all = min(next_all, now + RETRY_S)
            with self._lock:
                idle = not self._wanted and not self._pictures
            if idle:
                self._wake.wait(min(max(0.0, next_all - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()

    def _pass(self, wanted: set[ProjectKey], pictures: bool, every: bool) -> bool:
        """Compare the projects (every: all that are known, too), keep pictures; whether all went well."""
        try:
            stored = list_projects(self._store)
        except StoreError as error:
            log.warning("not compared with Label Studio: %s", error)
            return False
        well = True
        known = [project.key for project in stored if project.deleted_at is None]
        before = datetime.now(UTC) - MISSED_AGAIN
        missed = [project.key for project in stored if project.missed_at is not None and project.missed_at <= before]
        chosen = sorted({*wanted, *known, *missed} if every else wanted)
        for key in chosen:
            well &= not self._stopping.is_set() and self._one(key)
        for key in sorted({*known, *chosen}) if pictures else chosen:
            well &= self._preannotated_of(key) & self._pictures_of(key)
        return well

    def _one(self, key: ProjectKey) -> bool:
        def compare() -> str:
            try:
                return f"compared with Label Studio: {sync_project(self._store, self._label_studio, key)}"
            except NotFound as error:
                log.warning("project %s is gone, or not to be seen with this token, for now: %s", key, error)
                return ""

        return _went_well(key, compare, "not compared with Label Studio")

    def _preannotated_of(self, key: ProjectKey) -> bool:
        def judge() -> str:
            judged, failed = judge_preannotated(self._store, self._label_studio, key)
            told = f"{judged} pre-annotated regions judged, {failed} predictions not read"
            return told if judged or failed else ""

        return _went_well(key, judge, "predictions not read")

    def _pictures_of(self, key: ProjectKey) -> bool:
        def keep() -> str:
            kept, failed = fetch_photos(self._store, self._label_studio, self._photos, key)
            return f"{kept} pictures kept, {failed} could not be" if kept or failed else ""

        return _went_well(key, keep, "pictures not kept")


def _went_well(key: ProjectKey, step: Callable[[], str], failure: str) -> bool:
    """False when the step is to be tried again soon. What it tells is logged; what nobody foresaw ends no thread."""
    try:
        told = step()
    except SemsamError as error:
        log.warning("project %s: %s: %s", key, failure, error)
        return False
    except Exception:
        log.exception("project %s: %s: unexpected failure", key, failure)
        return True
    if told:
        log.info("project %s: %s", key, told)
    return True
