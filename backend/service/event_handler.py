"""Setups and events of Label Studio, and the answers to prompts, on their way into the store.

Two threads do the work: one writes, the other compares projects with Label Studio.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import list_projects
from backend.corrections.suggestions import PromptAnswer
from backend.corrections.sync_thread import SyncThread
from backend.corrections.writer import StoreWriter
from backend.errors import StoreError
from backend.finetuning import jobs
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import KEPT, Webhook, parse_webhook
from backend.label_studio.requests import Setup, project_id, project_name
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import SemsamError
from semsam_model.validation import lenient

log = logging.getLogger(__name__)

_SWITCH_ON = 'switch "Send payload" on in the project\'s settings, Webhooks'
_GIVE_SECRET = "give the webhook the header X-Semsam-Secret"


class EventHandler:
    """Thread-safe. `start` before use."""

    def __init__(
        self,
        store: Store,
        label_studio: LabelStudio,
        photos: PhotoArchive,
        metrics: Metrics,
        settings: Settings,
        on_change: Callable[[], None],
    ) -> None:
        """on_change: called on a thread of the handler's own when regions came into the store."""
        self._store = store
        self._label_studio = label_studio
        self._metrics = metrics
        self._sync_thread = SyncThread(store, label_studio, photos, settings.sync_seconds)
        self._store_writer = StoreWriter(
            store,
            metrics,
            self._regions_stored,
            self._label_studio.connect,
            settle_after=timedelta(days=settings.suggestion_days),
        )
        self._on_change = on_change
        self._compared_instead: Counter[tuple[ProjectKey | None, str]] = Counter()  #: webhooks by project and kind
        self._lock = threading.Lock()

    def start(self, after: Future[Any] | None = None) -> None:
        """Begin; with the comparison of projects when `after` is done."""
        self._store_writer.start()
        self._sync_thread.start(after)

    def close(self) -> None:
        """Write what is left and end."""
        self._sync_thread.stop()
        self._store_writer.stop()

    def _regions_stored(self, key: ProjectKey) -> None:
        self._on_change()
        self._sync_thread.request_photos(key)

    def store_key(self, project_name: str | None, project: int | None) -> ProjectKey | None:
        """The store's key of a project as Label Studio names it; None while its server is not known."""
        if project is None:
            return None
        try:
            return ProjectKey(self._label_studio.origin(project_name), project)
        except SemsamError:
            return None

    def project_of(self, body: Any) -> ProjectKey | None:
        """The store's key of the project that a body of any form names; None while it is not known. Never raises."""
        name = project_name(body)
        return self.store_key(name, project_id(name))

    def introduced(self, setup: Setup) -> None:
        """A project posted its /setup: note its server and, if it can be read, its labeling config."""
        if setup.project_name is not None and setup.hostname:
            self._label_studio.connect(setup.project_name, setup.hostname, setup.access_token)
            self._store_writer.add_introduction(setup.project_name, setup.hostname)
        if setup.config is not None:
            key = self.store_key(setup.project_name, setup.project)
            if key is not None:
                self._store_writer.add_project(key, setup.label_config)

    def prompt_answered(self, answer: PromptAnswer) -> None:
        """Note an answer; at once. Never raises."""
        self._store_writer.add_answer(answer)

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A webhook event: counted, and what it says about annotations is on disk when this returns.

        Raises BadRequest; StoreError or LabelStudioError where it could not be noted: then it is not acknowledged.
        """
        webhook = parse_webhook(body)
        self._metrics.event(webhook.action)
        log.info("event %s of project %s", webhook.action, webhook.project_id)
        if webhook.lacks_payload:
            self._compare_instead("without payload", webhook.project_id)
            log.warning("event %s: %s", webhook.action, _SWITCH_ON)
            return {"status": "compared", "action": webhook.action}
        noted = self._note(webhook)
        return {"status": "noted" if noted else "ignored", "action": webhook.action}

    def refused(self, body: Any) -> None:
        """A webhook event without our credentials: nothing of it is believed but that something changed. Never raises.

        body: as it came; None where it was too large to be read.
        """
        webhook = lenient(Webhook, body)
        self._compare_instead("without secret", webhook.project_id if webhook is not None else None)

    def _compare_instead(self, kind: str, project: int | None) -> None:
        """Compare a project, or all where None is named, by our own token, if the store knows it; at once or soon."""
        self._metrics.compared_instead(kind)
        there: list[ProjectKey] = []
        try:
            known = (each.key for each in list_projects(self._store) if not each.is_final)
            there = [key for key in known if project in (None, key.project)]
        except StoreError as error:
            log.warning("webhook %s: not compared: %s", kind, error)
        with self._lock:  # whoever may send anything must not make the list long
            for named in there if project is not None and there else (None,):
                self._compared_instead[named, kind] += 1
        for key in there:
            self._sync_thread.request_sync_soon(key)

    def refused_webhooks(self) -> dict[ProjectKey | None, list[str]]:
        """By project, what whoever set the webhooks up should know, in words; None: they name no known project."""
        with self._lock:
            numbers = sorted(self._compared_instead.items(), key=str)
        lines: dict[ProjectKey | None, list[str]] = {}
        for (project, kind), number in numbers:
            way_out = _SWITCH_ON if kind == "without payload" else _GIVE_SECRET
            lines.setdefault(project, []).append(f"{number} {kind}, compared instead; {way_out}")
        return lines

    def _note(self, webhook: Webhook) -> bool:
        """Whether there was anything to note. An event that cannot be stored has its project compared later."""
        if webhook.action not in KEPT and webhook.action != "START_TRAINING":
            return False
        name = webhook.project_name
        origin = self._label_studio.origin(name)
        if webhook.action == "START_TRAINING":
            if name is not None:
                key = ProjectKey(origin, int(name.split(".")[0]))
                self._sync_thread.request_sync(key)
                jobs.request(self._store, key, "button")
            return True
        event = webhook.to_event(origin)
        try:
            self._store_writer.enqueue(event)
        except StoreError:
            self._sync_thread.request_sync(event.key)
            raise
        return True
