"""Builds the service out of its parts."""

from __future__ import annotations

from functools import partial

from backend.adaptation.learner import Learner
from backend.inference.follow_version import Follower, load_live
from backend.inference.label_embeddings import Namer
from backend.inference.predictor import Predictor, read_model
from backend.label_studio.client import LabelStudio
from backend.metrics import Metrics
from backend.service.intake import open_intake, open_photos
from backend.service.service import SemsamService
from backend.settings import Settings
from backend.store.database import open_store
from backend.versions.registry import open_registry
from semsam_model.checkpoints.header import Header, find_weights
from semsam_model.text_encoder import TextEncoder


def served_weights(settings: Settings) -> Header:
    """What the weights to serve say about themselves. Raises CheckpointError when they are missing or another model."""
    return find_weights(settings.model, settings.weights, folder=settings.data_dir / "weights")[1]


def build_service(settings: Settings, metrics: Metrics) -> SemsamService:
    """Wire everything and start loading model and text encoder in the background: takes no time, brings no torch.

    Raises CheckpointError as `served_weights` does, and StoreError.
    """
    header = served_weights(settings)
    store = open_store(settings)
    registry = open_registry(settings, store)
    read = partial(read_model, settings)
    predictor = Predictor(
        partial(load_live, registry, read), cache_bytes=settings.embedding_cache_bytes, metrics=metrics
    )
    namer = Namer(TextEncoder(settings.text_encoder))
    if header.config.name_features:
        namer.start()
    predictor.listen(lambda loaded: namer.start() if loaded.model.config.name_features else None)
    predictor.start()
    follower = Follower(registry, predictor, read, settings.version_poll_seconds)
    follower.start()
    live = registry.live().version.version
    label_studio = LabelStudio(settings)
    learner = Learner(store, open_photos(settings), predictor, settings) if settings.learning else None
    intake = open_intake(settings, store, label_studio, metrics, learner.look if learner else lambda: None)
    intake.start()
    service = SemsamService(settings, predictor, label_studio, metrics, live, namer, registry, intake, store, learner)
    if learner:
        learner.start()
    service.closing.callback(store.close)
    service.closing.callback(follower.stop)
    service.closing.callback(intake.close)
    if learner:
        service.closing.callback(learner.stop)
    return service
