"""The thread that writes to the store: suggestions, projects that introduced themselves, events that wait in the inbox.
When there is time it settles old suggestions.

Whatever the database does, no request waits for it but a webhook's, which must not be acknowledged before.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta

from backend.corrections.inbox import Arrivals, process_inbox
from backend.corrections.introductions import Introductions
from backend.corrections.settling import settle
from backend.corrections.suggestions import PromptAnswer, save_suggestions
from backend.corrections.updates import has_config, save_config
from backend.errors import StoreError, StoreUnavailable
from backend.label_studio.events import WebhookEvent
from backend.label_studio.fields import clean
from backend.metrics import Metrics
from backend.outages import Outages
from backend.records import ProjectKey, Suggestion
from backend.store.database import Store

log = logging.getLogger(__name__)

WAITING_ANSWERS = 64  #: answers that wait for the encoding of their masks
WAITING_SUGGESTIONS = 10_000  #: encoded suggestions that wait while the database is away
RETRY_S = 2.0  #: seconds after which a write that failed is tried again
_IDLE_S = 2.0  #: seconds after which the store is looked into unasked: another backend may have died, or heard news
_BATCH = 50  #: suggestions written in one transaction
_SETTLE_S = 3600.0  #: seconds between two looks at the suggestions that are not settled
_PAUSE_S = 0.1  #: between two batches of those, for whoever else writes


class StoreWriter:
    """Thread-safe. `start` before use, `stop` writes what is left."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        on_processed: Callable[[ProjectKey], None] = lambda key: None,
        on_introduced: Callable[[str, str], None] = lambda name, hostname: None,
        settle_after: timedelta = timedelta(0),
    ) -> None:
        """on_processed: called on the writer's thread with the project of each event that was processed.

        on_introduced: likewise, with the name of a project and of its server, where a backend on this store heard it.
        settle_after: age of suggestions that became no region from which on they go, see `settling`; 0: all stay whole.
        """
        self._store = store
        self._settle_after = settle_after
        self._settle_at = time.monotonic() if settle_after else float("inf")
        self._settling: Iterator[int] | None = None  #: a look that has begun
        self._metrics = metrics
        self._on_processed = on_processed
        self._answers: queue.Queue[PromptAnswer] = queue.Queue(WAITING_ANSWERS)
        self._suggestions: deque[Suggestion] = deque(maxlen=WAITING_SUGGESTIONS)
        self._projects: dict[ProjectKey, str] = {}
        self._outages = Outages(log)
        self._hostnames: dict[str, str] = {}
        self._introductions = Introductions(store)
        self._arrivals = Arrivals(store)
        self._on_introduced = on_introduced
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Begin; what an earlier process left in the inbox is processed first."""
        self._wake.set()
        self._thread.start()

    def stop(self, wait_s: float = 10.0) -> None:
        """Write what is left and end."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def add_answer(self, answer: PromptAnswer) -> None:
        """Store the suggestion soon; returns at once. Where too many wait it is lost and counted; no click waits."""
        try:
            self._answers.put_nowait(answer)
        except queue.Full:
            self._metrics.suggestion_lost()
            log.warning("task %d: the suggestion is not stored: too much is waiting for the database", answer.task)
        self._wake.set()

    def add_project(self, key: ProjectKey, label_config: str) -> None:
        """Store a project's labeling config soon; returns at once. Label Studio sends it to /setup again and again."""
        with self._lock:
            if len(self._projects) > 1000:
                return
            self._projects[key] = label_config
        self._wake.set()

    def add_introduction(self, project_name: str, hostname: str) -> None:
        """Store what a project's server calls itself soon, for every backend; returns at once."""
        with self._lock:
            if len(self._hostnames) < 1000:
                self._hostnames[project_name] = clean(hostname)[:2000]
        self._wake.set()

    def enqueue(self, event: WebhookEvent) -> None:
        """Put an event into the inbox. When this returns it is on disk. Raises StoreError."""
        self._arrivals.enqueue(event)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(max(_PAUSE_S, min(_IDLE_S, self._settle_at - time.monotonic())))
            self._wake.clear()
            if not self._write() and not self._stopping.wait(RETRY_S):
                self._wake.set()
            if time.monotonic() >= self._settle_at:
                self._settle()
        self._write()

    def _write(self) -> bool:
        """Write everything that waits; False where the database failed and it waits on."""
        try:
            self._write_projects()
            self._tell_introductions()
            self._write_suggestions()
            process_inbox(self._store, self._on_processed)
        except StoreUnavailable as error:
            self._outages.failed("store", f"{error}; what is to be written waits, and is tried again")
            return False
        except Exception:
            log.exception("unexpected failure while writing")
            return True
        self._outages.works("store", "what waited for the database is written")
        return True

    def _settle(self) -> None:
        """Settle a batch of suggestions, and note when the next is due."""
        try:
            if self._settling is None:
                self._settling = settle(self._store, self._settle_after)
            next(self._settling)
            return
        except StopIteration:
            pass
        except StoreError as error:
            log.warning("suggestions are not settled: %s", error)
        self._settling, self._settle_at = None, time.monotonic() + _SETTLE_S

    def _write_projects(self) -> None:
        with self._lock:
            waiting = dict(self._projects)
        for key, config in waiting.items():
            try:
                with self._store.read() as connection:
                    is_known = has_config(connection, key, config)
                if not is_known:
                    with self._store.write() as connection:
                        save_config(connection, key, config)
            except StoreUnavailable:
                raise
            except Exception:  # whatever it is, what comes behind it must not wait for ever
                log.exception("project %s: its labeling config is not stored: unexpected failure", key)
        with self._lock:
            for key, config in waiting.items():
                if self._projects.get(key) == config:
                    del self._projects[key]

    def _tell_introductions(self) -> None:
        """Write those that this backend heard, and tell what any of them heard."""
        with self._lock:
            heard = dict(self._hostnames)
        if heard:
            self._introductions.save(heard)
            with self._lock:
                for name, hostname in heard.items():
                    if self._hostnames.get(name) == hostname:
                        del self._hostnames[name]
        for name, hostname in self._introductions.news().items():
            self._on_introduced(name, hostname)

    def _write_suggestions(self) -> None:
        while True:
            try:
                suggestion = self._answers.get_nowait().suggestion()
            except queue.Empty:
                break
            if suggestion is not None:
                if len(self._suggestions) == WAITING_SUGGESTIONS:
                    self._metrics.suggestion_lost()
                self._suggestions.append(suggestion)
        while self._suggestions:
            some = [self._suggestions[index] for index in range(min(_BATCH, len(self._suggestions)))]
            try:
                with self._store.write() as connection:
                    save_suggestions(connection, some)
            except StoreUnavailable:
                raise
            except StoreError as error:
                log.warning("%d suggestions are not stored: %s", len(some), error)
            except Exception:  # whatever it is, what comes behind them must not wait for ever
                log.exception("%d suggestions are not stored: unexpected failure", len(some))
            for _ in some:
                self._suggestions.popleft()
