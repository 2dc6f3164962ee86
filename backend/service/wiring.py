"""Builds the service out of its parts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

from backend.adaptation.learner import Learner
from backend.corrections.photos import open_photos
from backend.inference.follow_version import VersionFollower, load_live
from backend.inference.label_embeddings import LabelVectors
from backend.inference.predictor import Predictor, read_model
from backend.label_studio.client import LabelStudio
from backend.metrics import Metrics
from backend.service.event_handler import EventHandler
from backend.service.predictions import ENCODER_WAIT_S, PredictionService
from backend.service.service import SemsamService
from backend.service.status import StatusReader
from backend.service.task_photos import TaskPhotos
from backend.settings import Settings
from backend.store.database import Store, open_store
from backend.versions.registry import open_registry
from semsam_model.checkpoints.header import Header, find_weights
from semsam_model.text_encoder import TextEncoder


@dataclass(frozen=True)
class Parts:
    """The service and those of its parts that hold a thread, a model or a connection; no thread runs yet."""

    service: SemsamService
    store: Store
    label_vectors: LabelVectors
    predictor: Predictor
    follower: VersionFollower
    events: EventHandler
    learner: Learner


def served_weights(settings: Settings) -> Header:
    """What the weights to serve say about themselves. Raises CheckpointError when they are missing or another model."""
    return find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")[1]


def build_service(settings: Settings, metrics: Metrics) -> SemsamService:
    """The service, which begins to load model and text encoder in the background: takes no time, brings no torch.

    Raises CheckpointError as `served_weights` does, and StoreError.
    """
    header = served_weights(settings)
    parts = assemble(settings, metrics)
    if header.config.name_features:
        parts.label_vectors.start()  # beside the model, not after it
    parts.predictor.start()
    parts.follower.start()
    parts.events.start()
    if settings.learning:
        parts.learner.start()
    return parts.service


def assemble(
    settings: Settings,
    metrics: Metrics,
    *,
    label_vectors: LabelVectors | None = None,
    encoder_wait_s: float = ENCODER_WAIT_S,
) -> Parts:
    """Everything, and nothing started. label_vectors: None makes them of the settings' text encoder.

    Raises CheckpointError as `served_weights` does, and StoreError.
    """
    store = open_store(settings)
    registry = open_registry(settings, store)
    label_vectors = label_vectors or LabelVectors(TextEncoder(settings.text_encoder))
    read = partial(read_model, settings, label_vectors)
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
    predictions = PredictionService(settings, predictor, photos, events, learner, metrics, encoder_wait_s)
    closing = contextlib.ExitStack()  # from the last to the first
    for close in (store.close, follower.stop, events.close, learner.stop):
        closing.callback(close)
    status = StatusReader(store, settings.data_dir)
    service = SemsamService(predictor, label_vectors, predictions, events, registry, status, closing)
    return Parts(service, store, label_vectors, predictor, follower, events, learner)
