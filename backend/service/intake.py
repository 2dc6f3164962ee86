"""What the service hands over of annotators' work: offers, projects, events. Joins the threads that deal with it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from backend.corrections.photo_archive import open_photos
from backend.corrections.suggestions import PromptAnswer
from backend.corrections.sync_thread import SyncThread
from backend.corrections.writer import StoreWriter
from backend.errors import StoreError
from backend.finetuning import jobs
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import KEPT, Webhook
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)


class Intake:
    """Thread-safe."""

    def __init__(
        self, store: Store, label_studio: LabelStudio, store_writer: StoreWriter, sync_thread: SyncThread
    ) -> None:
        self._store = store
        self._label_studio = label_studio
        self._store_writer = store_writer
        self._sync_thread = sync_thread

    def start(self) -> None:
        """Begin writing, and comparing with Label Studio."""
        self._store_writer.start()
        self._sync_thread.start()

    def close(self) -> None:
        """Write what is left and end."""
        self._sync_thread.stop()
        self._store_writer.stop()

    def key(self, project_key: str | None, project: int | None) -> ProjectKey | None:
        """The store's key of a project as Label Studio names it; None while its server is not known."""
        if project is None:
            return None
        try:
            return ProjectKey(self._label_studio.origin(project_key), project)
        except SemsamError:
            return None

    def introduced(self, project_key: str | None, project: int | None, label_config: str) -> None:
        """A project posted its /setup. Never raises."""
        if label_config and (key := self.key(project_key, project)) is not None:
            self._store_writer.add_project(key, label_config)

    def answered(self, answer: PromptAnswer) -> None:
        """A prompt was answered. Never raises."""
        self._store_writer.add_answer(answer)

    def event(self, webhook: Webhook) -> bool:
        """An event of a project: noted on disk before this returns; whether there was anything to note.

        Raises BadRequest; StoreError or LabelStudioError where it could not be noted, and then the project will be
        compared with Label Studio, which still has it.
        """
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


def open_intake(
    settings: Settings,
    store: Store,
    label_studio: LabelStudio,
    metrics: Metrics,
    on_change: Callable[[], None] = lambda: None,
) -> Intake:
    """With its threads, not started yet. on_change: called on one of them when regions came into the store."""
    sync_thread = SyncThread(store, label_studio, open_photos(settings), settings.sync_seconds)

    def on_processed(_: int) -> None:
        on_change()
        sync_thread.request_photos()

    store_writer = StoreWriter(store, metrics, on_processed)
    return Intake(store, label_studio, store_writer, sync_thread)
