"""What the backend does, apart from HTTP: each method hands on to one of the service's parts.

The methods `predict` and `fit` have the signature of label-studio-ml 2.x, so that `backend.ls_ml` can serve the same
object under that framework; `backend.web.app` serves it under Flask.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from backend.adaptation.learner import Learner
from backend.corrections.archive import open_photos
from backend.errors import NotReady, StoreError
from backend.inference.follow_version import VersionFollower, load_live
from backend.inference.label_embeddings import LabelVectors
from backend.inference.loaded import read_model, settings_concepts, settings_engine
from backend.inference.predictor import Predictor
from backend.label_studio.client import LabelStudio
from backend.label_studio.requests import parse_setup
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.event_handler import EventHandler
from backend.service.next_photos import NextPhotos
from backend.service.predictions import ENCODER_WAIT_S, PredictionService
from backend.service.project_checks import ProjectChecks
from backend.service.status import GateReport, Status, StatusReader
from backend.service.task_photos import TaskPhotos
from backend.settings import Settings
from backend.store.database import Store, open_store
from backend.versions.registry import Registry, open_registry
from semsam_model.checkpoints.header import Header, find_weights
from semsam_model.text_encoder import TextEncoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SemsamService:
    """All parts of the service, see `build_service`. Thread-safe."""

    store: Store
    registry: Registry
    label_vectors: LabelVectors
    predictor: Predictor
    follower: VersionFollower
    learner: Learner
    events: EventHandler
    next_photos: NextPhotos
    predictions: PredictionService
    status_reader: StatusReader
    project_checks: ProjectChecks
    metrics: Metrics

    def close(self) -> None:
        """Stop what runs in the background and give connections back."""
        with contextlib.ExitStack() as closing:  # from the last to the first, whatever one raises
            for close in (
                self.store.close,
                self.follower.stop,
                self.learner.stop,
                self.events.close,  # before the learner, which may have a region in work: what waits is to be written
                self.next_photos.close,
            ):
                closing.callback(close)

    def wait_until_loaded(self) -> None:
        """Until the model is there, and the text encoder if it is to be, or cannot be loaded."""
        with contextlib.suppress(NotReady):
            self.predictor.ready(threading.TIMEOUT_MAX)
        self.label_vectors.wait()

    # ---- what Label Studio asks about us: answered from memory

    @property
    def model_version(self) -> str:
        """Version of the model that answers, or of the one that is loading."""
        return self.predictor.version_name

    def health(self) -> dict[str, Any]:
        """Always answers; says whether clicks are served yet, and why not."""
        answer = {"status": "UP", "model_version": self.model_version, "model_state": self.predictor.state}
        return answer | ({"problem": self.predictor.problem} if self.predictor.problem else {})

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A project introduces itself: note its server, look at its labeling config, name the model."""
        setup = parse_setup(body)
        self.events.introduced(setup)
        for problem in setup.problems:
            log.warning("project %s: %s", setup.project, problem)
        if setup.config:
            self.label_vectors.prepare(setup.config)
        return {"model_version": self.model_version}

    def versions(self) -> dict[str, Any]:
        """`versions`: names of those that can be made live, `live`: of the one that is, `details` of each.

        Without the store only the version that answers is known, and `details` are missing.
        """
        try:
            live = self.registry.live().version
            every = [version for version in self.registry.all() if version.model == live.model]
        except StoreError as error:
            log.warning("versions: only the one that answers is known: %s", error)
            return {"versions": [self.model_version], "live": self.model_version}
        details = [{k: v for k, v in version.to_dict().items() if k != "weights"} for version in every]
        return {"versions": [version.version for version in every], "live": live.version, "details": details}

    def status(self) -> Status:
        """What annotators' work has come to; without the store, why that is not known."""
        found, refused = self.project_checks.found(), self.events.refused_webhooks()
        return self.status_reader.status().with_paths(found, refused, self.metrics.empty_answers())

    def gate_report(self, job: int) -> GateReport:
        """What the gate said about a fine-tuning job. Raises NotStored, StoreError as `StatusReader.gate_report`."""
        return self.status_reader.gate_report(job)

    # ---- predictions

    def project_of(self, body: Any) -> ProjectKey | None:
        """The project that the body of POST /predict names; None while its server is not known. Never raises."""
        return self.events.project_of(body)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """label-studio-ml 2.x: `tasks` and `context` as Label Studio sends them; kwargs label_config, project."""
        body = {
            "tasks": list(tasks),
            "label_config": kwargs.get("label_config"),
            "project": kwargs.get("project"),
            "params": {"context": context},
        }
        return self.predict_request(body, kwargs.get("request_id") or uuid.uuid4().hex)

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        """The body of POST /predict -> one prediction for each task, in order. Raises BadRequest."""
        return self.predictions.predict(body, request_id)

    # ---- events

    def fit(self, event: str, data: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """label-studio-ml 2.x: something happened in a project. Noted; nothing trains inside a request."""
        return self.event({**data, "action": event})

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A webhook event, on disk when this returns. Raises BadRequest, StoreError, LabelStudioError."""
        return self.events.event(body)

    def refused_event(self, body: Any) -> None:
        """A webhook event without credentials; None: too large to be read. Its project is compared instead."""
        self.events.refused(body)


def served_weights(settings: Settings) -> Header:
    """What the weights to serve say about themselves. Raises CheckpointError when they are missing or another model."""
    return find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")[1]


def build_service(settings: Settings, metrics: Metrics) -> SemsamService:
    """The service, which begins to load model and text encoder in the background: takes no time, brings no torch.

    Raises CheckpointError as `served_weights` does, and StoreError.
    """
    header = served_weights(settings)
    service = assemble(settings, metrics)
    labels = service.label_vectors.start() if header.config.name_features else None  # beside the model, not after it
    service.predictor.start()
    service.follower.start()
    service.events.start(after=labels)
    if settings.learning and labels is not None:
        labels.add_done_callback(lambda _: service.learner.start())  # what was taught long ago keeps no click waiting
    elif settings.learning:
        service.learner.start()
    return service


def assemble(
    settings: Settings,
    metrics: Metrics,
    *,
    label_vectors: LabelVectors | None = None,
    encoder_wait_s: float = ENCODER_WAIT_S,
) -> SemsamService:
    """The service with nothing started. label_vectors: None makes them of the settings' text encoder.

    Raises CheckpointError as `served_weights` does, and StoreError.
    """
    store = open_store(settings)
    registry = open_registry(settings, store)
    label_vectors = label_vectors or LabelVectors(TextEncoder(settings.text_encoder))
    engines, concepts = settings_engine(settings), settings_concepts(settings)
    read = partial(read_model, settings, label_vectors, engines=engines, concepts=concepts)
    predictor = Predictor(
        partial(load_live, registry, read),
        cache_bytes=settings.embedding_cache_bytes,
        metrics=metrics,
        first_version=registry.live().version.version,
    )
    follower = VersionFollower(registry, predictor, read, settings.version_poll_seconds)
    label_studio, archive = LabelStudio(settings), open_photos(settings)
    learner = Learner(store, archive, predictor, settings)
    events = EventHandler(store, label_studio, archive, metrics, settings, on_change=learner.notify)
    photos = TaskPhotos(label_studio, settings)
    next_photos = NextPhotos(label_studio, photos, predictor, settings.prewarm_tasks)
    predictions = PredictionService(settings, predictor, photos, events, learner, next_photos, metrics, encoder_wait_s)
    status = StatusReader(store, settings.data_dir)
    return SemsamService(
        store,
        registry,
        label_vectors,
        predictor,
        follower,
        learner,
        events,
        next_photos,
        predictions,
        status,
        ProjectChecks(store, label_studio, settings),
        metrics,
    )
