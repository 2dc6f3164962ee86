"""The labels of projects as vectors, for naming masks. No click ever waits for the text encoder to load.

    LabelVectors    label lists -> LabelSet: one for the process, since it owns the text encoder
    LabelEmbedder   the same for one model, which compares texts in so many dimensions or has no names at all

A label list is embedded in the background, when the project connects or at its first click, and kept. Until that is
done, and where the encoder cannot be loaded, there is no answer and the rule of `LabelConfig.label_for` decides. What
is annotated without a click waits instead, or is not annotated: `LabelEmbedder.wait_for_labels`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
from cachetools import LRUCache

from backend.errors import NotReady
from backend.label_studio.label_config import Label, LabelConfig
from semsam_model.config import ModelConfig
from semsam_model.errors import SemsamError, TextEncoderError
from semsam_model.text_encoder import GENERIC, TextEncoder, normalise_label
from semsam_model.types import KINDS, Kind, LabelSet

log = logging.getLogger(__name__)

REMEMBERED_LISTS = 256
#: Seconds that an answer waits for its labels once the encoder is loaded; embedding a list takes a fraction of it.
PATIENCE_S = 2.0


class LabelVectors:
    """Label lists -> LabelSet. Thread-safe; `start` loads the encoder in the background."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._worker = ThreadPoolExecutor(1, "embed-labels")
        self._lists: LRUCache[tuple[Label, ...], Future[LabelSet]] = LRUCache(REMEMBERED_LISTS)
        self._lock = threading.Lock()
        self._loading: Future[None] | None = None
        self._warned: set[str] = set()

    def start(self) -> Future[None]:
        """Begin to load the encoder, unless that has begun; the future ends when it is loaded or missing."""
        with self._lock:
            if self._loading is None:
                self._loading = self._worker.submit(self._load)
            return self._loading

    def _load(self) -> None:
        try:
            self._encoder.embed(["object"])
            log.info("text encoder ready")
        except SemsamError as error:
            self.warn_once(f"labels are chosen by rule, not by name: {error}")
            raise

    def wait(self) -> None:
        """Until the encoder is loaded or missing; at once where nobody has begun to load it."""
        if self._loading is not None:
            wait([self._loading])

    def prepare(self, config: LabelConfig) -> None:
        """Begin to embed the labels of a project; returns at once."""
        labels = specific_labels(config.labels)
        if len(labels) > 1:
            self.submit(labels)

    def submit(self, labels: tuple[Label, ...]) -> Future[LabelSet]:
        """Begin to embed labels, each with at least a word, unless they are kept; returns at once."""
        self.start()
        with self._lock:
            future = self._lists.get(labels)
            if future is None:
                future = self._lists[labels] = self._worker.submit(self._embed, labels)
            return future

    def _embed(self, labels: tuple[Label, ...]) -> LabelSet:
        vectors = self._encoder.embed([label.meaning for label in labels])
        return LabelSet(tuple(label.value for label in labels), tuple(map(_kind, labels)), vectors.numpy())

    def get(self, labels: tuple[Label, ...]) -> LabelSet | None:
        """Labels as vectors, waiting PATIENCE_S at most; None while the encoder is not loaded or cannot be."""
        future, loading = self.submit(labels), self.start()
        if not loading.done():
            self.warn_once("labels are chosen by rule until the text encoder is loaded")
            return None
        if loading.exception() is not None:
            return None
        try:
            return future.result(PATIENCE_S)
        except FutureTimeout:
            log.info("%d labels are still being embedded; they are chosen by rule this time", len(labels))
        except SemsamError as error:
            self.warn_once(f"labels are chosen by rule, not by name: {error}")
        return None

    def warn_once(self, message: str) -> None:
        """Log a warning, unless the same was logged before."""
        with self._lock:
            new = message not in self._warned
            self._warned.add(message)
        if new:
            log.warning("%s", message)


class LabelEmbedder:
    """The labels of projects as one model compares them. Thread-safe."""

    def __init__(self, vectors: LabelVectors, model: ModelConfig) -> None:
        self._vectors = vectors
        self._dimension = model.text_dim
        self.can_name = model.name_features  #: where not, there are no labels for it

    def start(self) -> None:
        """Begin to load the text encoder, for a model with names; returns at once."""
        if self.can_name:
            self._vectors.start()

    def labels(self, config: LabelConfig) -> LabelSet | None:
        """A project's labels that name something; almost at once.

        None: there is no vector for them (yet), they are fewer than two, or the model cannot compare with them.
        """
        chosen = specific_labels(config.labels)
        labels = self._vectors.get(chosen) if self.can_name and len(chosen) > 1 else None
        if labels is not None and labels.vectors.shape[1] != self._dimension:
            self._vectors.warn_once(f"labels are chosen by rule, not by name: {self._two_dimensions(labels)}")
            return None
        return labels

    def wait_for_labels(self, config: LabelConfig, wait_s: float | None) -> LabelSet | None:
        """As `labels`, but waits for the text encoder, None however long: for what nobody would label again.

        None: labels are chosen by kind alone, since the model has no names or the labels leave no choice. Raises
        NotReady when the encoder is still not done after `wait_s`, TextEncoderError when it cannot be used.
        """
        chosen = specific_labels(config.labels)
        if not self.can_name or len(chosen) < 2:
            return None
        try:
            labels = self._vectors.submit(chosen).result(wait_s)
            if labels.vectors.shape[1] != self._dimension:
                expected = "expected the one that its weights were trained with (text_encoder)"
                raise TextEncoderError(f"{self._two_dimensions(labels)}; {expected}")
        except FutureTimeout:
            raise NotReady(f"the text encoder has not read the labels after {wait_s:.3g} s; ask again") from None
        except TextEncoderError as error:
            raise TextEncoderError(
                f"labels cannot be told apart without the text encoder, and none is given by chance: {error}"
            ) from error
        return labels

    def embed(self, labels: Sequence[Label]) -> LabelSet | None:
        """Any labels, each with at least a word; None while the encoder is not loaded or cannot be.

        Their dimension is not compared with the model's: the model refuses vectors of another one with a ConfigError.
        """
        return self._vectors.get(tuple(labels)) if self.can_name else None

    def _two_dimensions(self, labels: LabelSet) -> str:
        return (
            f"the model compares texts in {self._dimension} dimensions, the text encoder gives"
            f" {labels.vectors.shape[1]}"
        )


def specific_labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """The labels that name something: "object", "part" and the like fit every mask."""
    return tuple(label for label in labels if normalise_label(label.meaning) not in GENERIC)


def labels_without_vectors(config: LabelConfig) -> LabelSet:
    """The labels that name something, with vectors of no dimension: for naming by accepted examples alone."""
    labels = specific_labels(config.labels)
    return LabelSet(
        tuple(label.value for label in labels), tuple(map(_kind, labels)), np.zeros((len(labels), 0), np.float32)
    )


def _kind(label: Label) -> Kind | None:
    return next((kind for kind in KINDS if kind == label.kind), None)
