"""The embeddings that engine, describer and concept model have made, in memory and bounded by bytes.

The key holds everything that shaped an embedding, so two photos can never mix and a stale embedding can never be used.
Two requests for one key share one computation: the second waits for the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from cachetools import LRUCache

from backend.metrics import Metrics

if TYPE_CHECKING:  # torch
    from semsam_model.inference.concept_model import Look
    from semsam_model.network.frame import Window

Kept = TypeVar("Kept", bound="Look")


class EmbeddingKey(NamedTuple):
    """What shaped an embedding."""

    photo: str  #: SHA-256 of the file
    model: str  #: digest of engine, describer or concept model: weights and config, preprocessing included
    window: Window | None = None  #: the part of the photo that was encoded; None = all of it


#: cached: it was there. encoded: this call computed it. shared: another call did, and this one waited for it.
Origin = Literal["cached", "encoded", "shared"]


class EmbeddingCache:
    """Thread-safe. Drops the least recently used embeddings where there is no room for a new one."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()  # guards all below
        self._kept: LRUCache[EmbeddingKey, Any] = LRUCache(max_bytes, getsizeof=_nbytes)
        self._running: dict[EmbeddingKey, Future[Any]] = {}
        self._models: frozenset[str] = frozenset()

    def keep(self, models: Iterable[str]) -> None:
        """Keep embeddings of the models with these digests alone from now on."""
        with self._lock:
            self._models = frozenset(models)
            for key in [key for key in self._kept if key.model not in self._models]:
                del self._kept[key]
            self._measure()

    def get(self, key: EmbeddingKey, encode: Callable[[], Kept], *, may_evict: bool = True) -> tuple[Kept, Origin]:
        """The embedding of a key, encoded where it is not kept. Raises whatever `encode` raises.

        may_evict: whether others may be dropped to keep it.
        """
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._metrics.cache_hit()
                return kept, "cached"
            shared = self._running.get(key)
            if shared is None:
                mine: Future[Kept] = Future()
                self._running[key] = mine
        if shared is not None:
            return shared.result(), "shared"
        self._metrics.cache_miss()
        try:
            embedding = encode()
        except BaseException as error:
            with self._lock:
                del self._running[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            # used once where it is larger than the whole cache, or of a model that has been replaced meanwhile
            room = self._kept.maxsize - (0 if may_evict else self._kept.currsize)
            if embedding.nbytes <= room and key.model in self._models:
                self._kept[key] = embedding
            self._measure()
        mine.set_result(embedding)
        return embedding, "encoded"

    def _measure(self) -> None:
        self._metrics.cache_size(int(self._kept.currsize), len(self._kept))


def _nbytes(embedding: Look) -> int:
    return embedding.nbytes
