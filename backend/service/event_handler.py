"""Setups and events of Label Studio, and the answers to prompts, on their way into the store.

Two threads do the work: one writes, the other compares projects with Label Studio.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from backend.corrections.photos import PhotoArchive
from backend.corrections.suggestions import PromptAnswer
from backend.corrections.sync_thread import SyncThread
from backend.corrections.writer import StoreWriter
from backend.errors import StoreError
from backend.finetuning import jobs
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import KEPT, Webhook, parse_webhook
from backend.label_studio.requests import Setup
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)


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
        self._store_writer = StoreWriter(store, metrics, self._regions_stored)
        self._on_change = on_change

    def start(self) -> None:
        self._store_writer.start()
        self._sync_thread.start()

    def close(self) -> None:
        """Write what is left and end."""
        self._sync_thread.stop()
        self._store_writer.stop()

    def _regions_stored(self, _: int) -> None:
        self._on_change()
        self._sync_thread.request_photos()

    def store_key(self, project_name: str | None, project: int | None) -> ProjectKey | None:
        """The store's key of a project as Label Studio names it; None while its server is not known."""
        if project is None:
            return None
        try:
            return ProjectKey(self._label_studio.origin(project_name), project)
        except SemsamError:
            return None

    def introduced(self, setup: Setup) -> None:
        """A project posted its /setup: note its server and, if it can be read, its labeling config."""
        if setup.project_name is not None and setup.hostname:
            self._label_studio.connect(setup.project_name, setup.hostname, setup.access_token)
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
        noted = self._note(webhook)
        return {"status": "noted" if noted else "ignored", "action": webhook.action}

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
