"""The loaded model and the embeddings it has made. Handed pixels; never fetches, knows no Label Studio.

One model answers at a time. It is loaded in the background, and so is the one that takes its place: warmed beside the
old one, which goes on answering until then and stays when the new one cannot be loaded. Embeddings are values in a
cache bounded by bytes; the key holds everything that shaped them, so two photos can never mix and a stale one can never
be used. Two requests for one photo share one computation: the second waits for the first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from cachetools import LRUCache

from backend.errors import NotReady
from backend.inference.click_priority import Turns
from backend.metrics import Metrics
from backend.settings import Settings
from semsam_model.checkpoints.header import Version
from semsam_model.errors import SemsamError
from semsam_model.types import Candidate, Click, LabelSet, Prompt, PromptContext

# torch takes seconds to import: the thread that loads the model pays for it, not the first answers about health
if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import Lesson
    from semsam_model.inference.candidates import CandidateOptions
    from semsam_model.inference.preannotate import Region, RegionOptions
    from semsam_model.inference.predict import Reranker
    from semsam_model.inference.zoom import CropEncoder
    from semsam_model.network.frame import Window
    from semsam_model.network.model import ImageEmbedding, SemanticSAM

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["loading", "ready", "failed"]
_Key = tuple[str, str, "Window | None"]  #: photo, model, what of the photo is shown
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
    cache_hit: bool = False  #: the photo's embedding was there

    def add(self, stage: str, seconds: float) -> None:
        """A stage may come twice: for the photo and for a window of it."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


class Predictor:
    """Thread-safe. `start` loads in the background; `propose` answers prompts; `switch` puts another model in place."""

    def __init__(self, load: Callable[[], Loaded], *, cache_bytes: int, metrics: Metrics) -> None:
        self._load = load
        self._listeners: list[Callable[[Loaded], None]] = []
        self._loading = threading.Lock()  # one model is loaded at a time: two in memory, never three
        self._metrics = metrics
        self._loaded: Loaded | None = None
        self._problem: str | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()  # guards the cache and the table of running computations
        self._encoding = threading.Lock()  # one encoder run at a time: memory stays that of one photo
        self._turns = Turns()
        self._cache: LRUCache[_Key, ImageEmbedding] = LRUCache(cache_bytes, getsizeof=_nbytes)
        self._running: dict[_Key, Future[ImageEmbedding]] = {}

    def listen(self, listener: Callable[[Loaded], None]) -> None:
        """To be called before `start`: the listener gets each model that begins to answer, in the loading thread."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin loading; returns at once."""
        threading.Thread(target=self._start, name="load-model", daemon=True).start()

    def _start(self) -> None:
        try:
            self.switch(self._load)
        finally:
            self._done.set()

    def switch(self, load: Callable[[], Loaded]) -> bool:
        """Load and warm a model, then let it answer from the next request on; returns whether it does.

        Takes as long as loading does, in the caller's thread. When loading fails, the model that answers goes on, and
        `problem` says why until a switch succeeds or `settle` is called. Requests that have begun are finished by the
        model they began with.
        """
        began = time.perf_counter()
        with self._loading:
            try:
                loaded = load()
                loaded.model.encode(np.zeros((36, 64, 3), np.uint8))  # the first run allocates; let no click pay for it
            except SemsamError as error:
                log.error("model cannot be loaded: %s", error)
                return self._failed(str(error))
            except Exception:
                log.exception("model cannot be loaded")
                return self._failed("unexpected failure while loading, see the log")
            with self._lock:
                before, self._loaded, self._problem = self._loaded, loaded, None
                for key in [key for key in self._cache if key[1] != loaded.version.digest]:
                    del self._cache[key]
                self._metrics.cache_size(int(self._cache.currsize), len(self._cache))
            self._metrics.model_ready(loaded.version.name, loaded.version.version, switched=before is not None)
            seconds = time.perf_counter() - began
            log.info(
                "model %s ready in %.1f s%s", loaded.version, seconds, f", after {before.version}" if before else ""
            )
        for listener in self._listeners:
            try:
                listener(loaded)
            except Exception:
                log.exception("model %s answers, but who was told of it failed", loaded.version)
        return True

    def _failed(self, reason: str) -> bool:
        self._problem = reason
        self._metrics.model_failed()
        return False

    def settle(self) -> None:
        """Forget why the last switch failed: the model that answers is the wanted one after all."""
        if self._loaded is not None:
            self._problem = None

    @property
    def state(self) -> State:
        if not self._done.is_set():
            return "loading"
        return "ready" if self._loaded else "failed"

    @property
    def problem(self) -> str | None:
        """Why the last loading failed; another model may answer all the same."""
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
        self,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        prompt: Prompt,
        wanted: PromptContext | None = None,
        *,
        using: Loaded | None = None,
        reranker: Reranker | None = None,
        options: CandidateOptions | None = None,
    ) -> tuple[list[Candidate], Version, Timings]:
        """Candidates for a prompt on the photo whose file has this digest.

        pixels is called at most once, and only when an embedding is not cached, of the photo or of a window that is
        looked at closer; it gives uint8 RGB (H, W, 3), EXIF-oriented. using: what `ready` gave, for several answers
        from one model; None = the model of now. reranker: what was learned for that model. The whole answer comes
        from one model. Raises NotReady, PromptError, ImageError, and whatever `pixels` raises.
        """

        def answer(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> list[Candidate]:
            from semsam_model.inference.predict import predict_candidates

            return predict_candidates(
                model, embedding, prompt, options, context=wanted, encode_crop=encode_crop, reranker=reranker
            )

        return self._ask_first(using, sha256, pixels, answer)

    def find(
        self,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        labels: LabelSet,
        threshold: float,
        *,
        whole: LabelSet | None = None,
        using: Loaded | None = None,
    ) -> tuple[list[Candidate], Version, Timings]:
        """Masks that the first of the labels fits best, see `inference.text_prompt`; the rest as `propose`."""

        def answer(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> list[Candidate]:
            from semsam_model.inference.text_prompt import find

            return find(model, embedding, labels, threshold, whole)

        return self._ask_first(using, sha256, pixels, answer)

    def preannotate(
        self,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        labels: LabelSet | None,
        options: RegionOptions,
        *,
        using: Loaded | None = None,
        keep: bool = True,
    ) -> tuple[list[Region], Version, Timings]:
        """The regions of the photo, see `inference.preannotate`; the rest as `propose`. Raises ConfigError.

        keep: whether its embedding may take another photo's place in the cache. Clicks come first, also between photo
        and regions.
        """

        def answer(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> list[Region]:
            from semsam_model.inference.preannotate import preannotate

            self._turns.give_way()
            return preannotate(model, embedding, labels, options)

        self._turns.give_way()
        return self._ask(using or self.ready(), sha256, pixels, answer, keep)

    def lesson(
        self,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        mask: np.ndarray,
        *,
        label: str,
        click: Click | None,
        wanted: PromptContext,
        using: Loaded,
    ) -> Lesson:
        """What an accepted mask of the photo teaches, see `semsam_model.adaptation.lessons`; the rest as `propose`.

        Raises DataError for a mask that does not fit the photo.
        """

        def answer(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> Lesson:
            from semsam_model.adaptation.lessons import make_lesson

            return make_lesson(
                model, embedding, mask, label=label, photo=sha256, click=click, context=wanted, encode_crop=encode_crop
            )

        self._turns.give_way()
        return self._ask(using, sha256, pixels, answer)[0]

    def _ask_first(
        self,
        using: Loaded | None,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        answer: Callable[[SemanticSAM, ImageEmbedding, CropEncoder], T],
    ) -> tuple[T, Version, Timings]:
        """`_ask`, and what nobody waits for gives way meanwhile."""
        loaded = using or self.ready()
        with self._turns.click():
            return self._ask(loaded, sha256, pixels, answer)

    def _ask(
        self,
        loaded: Loaded,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        answer: Callable[[SemanticSAM, ImageEmbedding, CropEncoder], T],
        keep: bool = True,
    ) -> tuple[T, Version, Timings]:
        timings = Timings()
        once = lru_cache(1)(pixels)  # for the photo and a window of it: fetched and opened once
        embedding = self._embedding(loaded, sha256, None, once, timings, keep)
        looking = 0.0

        def encode_crop(window: Window) -> ImageEmbedding:
            nonlocal looking
            began = time.perf_counter()
            try:
                return self._embedding(loaded, sha256, window, once, timings)
            finally:
                looking += time.perf_counter() - began

        began = time.perf_counter()
        found = answer(loaded.model, embedding, encode_crop)
        timings.stages["decode_prompt"] = time.perf_counter() - began - looking
        return found, loaded.version, timings

    def _embedding(
        self,
        loaded: Loaded,
        sha256: str,
        window: Window | None,
        pixels: Callable[[], np.ndarray],
        timings: Timings,
        keep: bool = True,
    ) -> ImageEmbedding:
        """Of the photo, or of a window of it. keep: even where there is no room left."""
        # the digest covers the weights and the config, preprocessing included
        key = sha256, loaded.version.digest, window
        with self._lock:
            cached = self._cache.get(key)
            if cached is not None:
                timings.cache_hit |= window is None
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
                timings.add("encode", time.perf_counter() - began)
        self._metrics.cache_miss()
        try:
            embedding = self._encode(loaded, window, pixels, timings)
        except BaseException as error:
            with self._lock:
                del self._running[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._running[key]
            # larger than the whole cache, or of a model that has been replaced meanwhile: used once
            room = self._cache.maxsize - (0 if keep else self._cache.currsize)
            if embedding.nbytes <= room and loaded is self._loaded:
                self._cache[key] = embedding
            self._metrics.cache_size(int(self._cache.currsize), len(self._cache))
        future.set_result(embedding)
        return embedding

    def _encode(
        self, loaded: Loaded, window: Window | None, pixels: Callable[[], np.ndarray], timings: Timings
    ) -> ImageEmbedding:
        began = time.perf_counter()
        rgb = pixels()
        decoded = time.perf_counter()
        with self._encoding:
            embedding = loaded.model.encode(rgb, window)
        timings.add("decode_image", decoded - began)
        timings.add("encode", time.perf_counter() - decoded)
        return embedding


def _nbytes(embedding: ImageEmbedding) -> int:
    return embedding.nbytes


def read_model(settings: Settings, path: Path) -> Loaded:
    """The model in a weights file, on the device and in the precision of the settings. Raises CheckpointError."""
    import torch

    from semsam_model.checkpoints.checkpoint import load

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]
    return Loaded(*load(path, device=device, dtype=dtype))
