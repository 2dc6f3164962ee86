"""The labels of projects as vectors, for naming masks. Owns the text encoder; no click ever waits for it to load.

A label list is embedded in the background, when the project connects or at its first click, and kept. Until that is
done, and where the encoder cannot be loaded, there is no answer and the rule of `LabelConfig.label_for` decides. What
is annotated without a click waits instead, or is not annotated: `needed`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np
from cachetools import LRUCache

from backend.label_studio.label_config import Label, LabelConfig
from semsam_model.errors import SemsamError, TextEncoderError
from semsam_model.text_encoder import GENERIC, TextEncoder, normalise_label
from semsam_model.types import KINDS, Kind, LabelSet

log = logging.getLogger(__name__)

REMEMBERED_LISTS = 256
#: Seconds that an answer waits for its labels once the encoder is loaded; embedding a list takes a fraction of it.
PATIENCE_S = 2.0


class Namer:
    """Label lists -> LabelSet. Thread-safe; `start` loads the encoder in the background."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._worker = ThreadPoolExecutor(1, "embed-labels")
        self._lists: LRUCache[tuple[Label, ...], Future[LabelSet]] = LRUCache(REMEMBERED_LISTS)
        self._lock = threading.Lock()
        self._loading: Future[None] | None = None
        self._reported: set[str] = set()

    def start(self) -> None:
        """Begin to load the encoder; returns at once."""
        with self._lock:
            if self._loading is None:
                self._loading = self._worker.submit(self._load)

    def _load(self) -> None:
        try:
            self._encoder.embed(["object"])
            log.info("text encoder ready")
        except SemsamError as error:
            self._once(f"labels are chosen by rule, not by name: {error}")
            raise

    def prepare(self, config: LabelConfig) -> None:
        """Begin to embed the labels of a project; returns at once."""
        wanted = telling(config.labels)
        if len(wanted) > 1:
            self._begin(wanted)

    def labels(self, config: LabelConfig, dimension: int | None = None) -> LabelSet | None:
        """The labels that say something; None while there is no vector for them, or when there are fewer than two.

        dimension: in which the model compares texts; None too where the encoder gives another one.
        """
        wanted = telling(config.labels)
        labels = self._result(wanted) if len(wanted) > 1 else None
        if labels is None or dimension in (None, labels.vectors.shape[1]):
            return labels
        self._once(
            f"labels are chosen by rule, not by name: the model compares texts in {dimension} dimensions, the text"
            f" encoder gives {labels.vectors.shape[1]}"
        )
        return None

    def embed(self, labels: Sequence[Label]) -> LabelSet | None:
        """Any labels, each with at least a word; None while the encoder is not loaded or cannot be."""
        return self._result(tuple(labels))

    def wait(self, timeout_s: float | None) -> None:
        """Until the encoder is loaded or known to be missing. None: however long that takes. Raises TimeoutError."""
        self.start()
        assert self._loading is not None
        self._loading.exception(timeout_s)

    def needed(self, config: LabelConfig, dimension: int, timeout_s: float | None) -> LabelSet | None:
        """As `labels`, but None only where there are fewer than two: waits for their vectors, None however long.

        Raises TimeoutError; TextEncoderError when the encoder cannot be loaded or has another dimension.
        """
        wanted = telling(config.labels)
        if len(wanted) < 2:
            return None
        labels = self._begin(wanted).result(timeout_s)  # which is begun when the encoder is loaded
        if labels.vectors.shape[1] != dimension:
            raise TextEncoderError(
                f"the model compares texts in {dimension} dimensions, the text encoder gives"
                f" {labels.vectors.shape[1]}; expected the one that its weights were trained with (text_encoder)"
            )
        return labels

    def _begin(self, labels: tuple[Label, ...]) -> Future[LabelSet]:
        self.start()
        with self._lock:
            future = self._lists.get(labels)
            if future is None:
                future = self._lists[labels] = self._worker.submit(self._embed, labels)
            return future

    def _embed(self, labels: tuple[Label, ...]) -> LabelSet:
        vectors = self._encoder.embed([label.text for label in labels])
        return LabelSet(tuple(label.value for label in labels), tuple(map(_kind, labels)), vectors.numpy())

    def _result(self, labels: tuple[Label, ...]) -> LabelSet | None:
        future = self._begin(labels)
        assert self._loading is not None
        if not self._loading.done():
            self._once("labels are chosen by rule until the text encoder is loaded")
            return None
        if self._loading.exception() is not None:
            return None
        try:
            return future.result(PATIENCE_S)
        except FutureTimeout:
            log.info("%d labels are still being embedded; they are chosen by rule this time", len(labels))
        except SemsamError as error:
            self._once(f"labels are chosen by rule, not by name: {error}")
        return None

    def _once(self, message: str) -> None:
        with self._lock:
            new = message not in self._reported
            self._reported.add(message)
        if new:
            log.warning("%s", message)


def telling(labels: Sequence[Label]) -> tuple[Label, ...]:
    """The labels that name something: "object", "part" and the like fit every mask."""
    return tuple(label for label in labels if normalise_label(label.text) not in GENERIC)


def without_text(config: LabelConfig) -> LabelSet:
    """The labels that say something, without vectors: for naming by examples where there is no text to compare with."""
    labels = telling(config.labels)
    return LabelSet(
        tuple(label.value for label in labels), tuple(map(_kind, labels)), np.zeros((len(labels), 0), np.float32)
    )


def _kind(label: Label) -> Kind | None:
    return next((kind for kind in KINDS if kind == label.kind), None)
