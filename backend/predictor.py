"""The loaded model and the embeddings it has made. Handed pixels; never fetches, knows no Label Studio.

One model a process, loaded once in the background. Embeddings are values in a cache bounded by bytes; the key holds
everything that shaped them, so two photos can never mix and a stale one can never be used. Two requests for one photo
share one computation: the second waits for the first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from cachetools import LRUCache

from backend.errors import NotReady
from backend.metrics import Metrics
from backend.settings import Settings
from semsam_model.errors import SemsamError
from semsam_model.header import Version
from semsam_model.names import LabelSet
from semsam_model.types import Candidate, Prompt, Wanted

# torch takes seconds to import: the thread that loads the model pays for it, not the first answers about health
if TYPE_CHECKING:
    from semsam_model.model import ImageEmbedding, SemanticSAM

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed"]
LOAD_WAIT_S = 60.0  #: how long a click waits for a model that is still loading


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and its name."""

    model: SemanticSAM
    version: Version


@dataclass
class Timings:
    """Seconds spent on one answer, by stage; a stage that was not needed is missing."""

    stages: dict[str, float] = field(default_factory=dict)
    cache_hit: bool = False


class Predictor:
    """Thread-safe. `start` loads in the background; `propose` answers prompts."""

    def __init__(self, load: Callable[[], Loaded], *, cache_bytes: int, metrics: Metrics) -> None:
        self._load = load
        self._metrics = metrics
        self._loaded: Loaded | None = None
        self._problem: str | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()  # guards the cache and the table of running computations
        self._encoding = threading.Lock()  # one encoder run at a time: memory stays that of one photo
        self._cache: LRUCache[tuple[str, str], ImageEmbedding] = LRUCache(cache_bytes, getsizeof=_nbytes)
        self._running: dict[tuple[str, str], Future[ImageEmbedding]] = {}

    def start(self) -> None:
        """Begin loading; returns at once."""
        threading.Thread(target=self._load_and_warm, name="load-model", daemon=True).start()

    def _load_and_warm(self) -> None:
        began = time.perf_counter()
        try:
            loaded = self._load()
            loaded.model.encode(np.zeros((64, 64, 3), np.uint8))  # the first run allocates; let no click pay for it
            self._loaded = loaded
            log.info("model %s ready in %.1f s", loaded.version, time.perf_counter() - began)
            self._metrics.model_ready(loaded.version.name, loaded.version.version)
        except SemsamError as error:
            self._problem = str(error)
            log.error("model cannot be loaded: %s", error)
        except Exception:
            self._problem = "unexpected failure while loading, see the log"
            log.exception("model cannot be loaded")
        finally:
            self._done.set()

    @property
    def state(self) -> State:
        if not self._done.is_set():
            return "loading"
        return "ready" if self._loaded else "failed"

    @property
    def problem(self) -> str | None:
        """Why loading failed."""
        return self._problem

    @property
    def version(self) -> Version | None:
        """Of the model that answers now; None while there is none."""
        return self._loaded.version if self._loaded else None

    def ready(self, wait_s: float = LOAD_WAIT_S) -> Loaded:
        """The model; waits while it loads. Raises NotReady."""
        if not self._done.wait(wait_s):
            raise NotReady(f"model is still loading after {wait_s:g} s; try again")
        if self._loaded is None:
            raise NotReady(f"model cannot be loaded: {self._problem}")
        return self._loaded

    def propose(
        self, sha256: str, pixels: Callable[[], np.ndarray], prompt: Prompt, wanted: Wanted | None = None
    ) -> tuple[list[Candidate], Version, Timings]:
        """Candidates for a prompt on the photo whose file has this digest.

        pixels is called only when the embedding is not cached; it gives uint8 RGB (H, W, 3), EXIF-oriented. The whole
        answer comes from one model. Raises NotReady, PromptError, ImageError, and whatever `pixels` raises.
        """

        def answer(model: SemanticSAM, embedding: ImageEmbedding) -> list[Candidate]:
            from semsam_model.predict import propose

            return propose(model, embedding, prompt, wanted=wanted)

        return self._ask(sha256, pixels, answer)

    def find(
        self, sha256: str, pixels: Callable[[], np.ndarray], labels: LabelSet, threshold: float
    ) -> tuple[list[Candidate], Version, Timings]:
        """Masks that the first of the labels fits best, see `semsam_model.find`; the rest as `propose`."""

        def answer(model: SemanticSAM, embedding: ImageEmbedding) -> list[Candidate]:
            from semsam_model.find import find

            return find(model, embedding, labels, threshold)

        return self._ask(sha256, pixels, answer)

    def _ask(
        self,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        answer: Callable[[SemanticSAM, ImageEmbedding], list[Candidate]],
    ) -> tuple[list[Candidate], Version, Timings]:
        loaded = self.ready()
        timings = Timings()
        embedding = self._embedding(loaded, sha256, pixels, timings)
        began = time.perf_counter()
        candidates = answer(loaded.model, embedding)
        timings.stages["decode_prompt"] = time.perf_counter() - began
        return candidates, loaded.version, timings

    def _embedding(
        self, loaded: Loaded, sha256: str, pixels: Callable[[], np.ndarray], timings: Timings
    ) -> ImageEmbedding:
        key = sha256, loaded.version.digest  # the digest covers the weights and the config, preprocessing included
        with self._lock:
            cached = self._cache.get(key)
            if cached is not None:
                timings.cache_hit = True
                self._metrics.cache_hit()
                return cached
            future = self._running.get(key)
            mine = future is None
            if future is None:
                future = self._running[key] = Future()
        if not mine:
            began = time.perf_counter()
            try:
                return future.result()
            finally:
                timings.stages["encode"] = time.perf_counter() - began
        self._metrics.cache_miss()
        try:
            embedding = self._encode(loaded, pixels, timings)
        except BaseException as error:
            with self._lock:
                del self._running[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            if embedding.nbytes <= self._cache.maxsize:  # larger than the whole cache: use it once
                self._cache[key] = embedding
            self._metrics.cache_size(int(self._cache.currsize), len(self._cache))
        future.set_result(embedding)
        return embedding

    def _encode(self, loaded: Loaded, pixels: Callable[[], np.ndarray], timings: Timings) -> ImageEmbedding:
        began = time.perf_counter()
        rgb = pixels()
        decoded = time.perf_counter()
        with self._encoding:
            embedding = loaded.model.encode(rgb)
        timings.stages["decode_image"] = decoded - began
        timings.stages["encode"] = time.perf_counter() - decoded
        return embedding


def _nbytes(embedding: ImageEmbedding) -> int:
    return embedding.nbytes


def loader(settings: Settings) -> Callable[[], Loaded]:
    """How the process gets its model: name, weights file, device and precision from the settings."""

    def load() -> Loaded:
        import torch

        from semsam_model.checkpoint import load_model

        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]
        folder: Path = settings.data_dir / "weights"
        model, version = load_model(settings.model, settings.weights, folder=folder, device=device, dtype=dtype)
        return Loaded(model, version)

    return load
