"""The loaded model, and work on the embeddings of photos. It is handed pixels: it fetches nothing.

One model answers at a time. It is loaded in the background. So is the one that takes its place, while the old one goes
on answering; the old one stays when the new one cannot be loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

from backend.errors import NotReady
from backend.inference.click_priority import ClickPriority
from backend.inference.embedding_cache import EmbeddingCache, EmbeddingKey, Kept
from backend.inference.loaded import Loaded
from backend.metrics import Metrics
from semsam_model.checkpoints.header import Version
from semsam_model.errors import SemsamError
from semsam_model.types import Candidate, Prompt, PromptContext

# torch takes seconds to import: the thread that loads the model pays for it, not the first answers about health
if TYPE_CHECKING:
    from semsam_model.inference.candidates import CandidateOptions
    from semsam_model.inference.concept_model import Look
    from semsam_model.inference.engine import EngineEmbedding, Model
    from semsam_model.inference.predict import Reranker
    from semsam_model.inference.zoom import CropEncoder
    from semsam_model.network.frame import Window

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["loading", "ready", "failed"]
#: click: somebody waits for the answer. background: begins its steps when no click is being answered.
Priority = Literal["click", "background"]
#: What is done with an embedded photo; the last argument encodes a window of the same photo.
Work = Callable[["Model", "EngineEmbedding", "CropEncoder"], T]
LOAD_WAIT_S = 60.0  #: how long a click waits for a model that is still loading


@dataclass(frozen=True)
class PhotoSource:
    """A photo that is decoded only when its pixels are needed."""

    sha256: str  #: hex digest of the file's bytes
    pixels: Callable[[], np.ndarray]  #: gives uint8 RGB (H, W, 3), EXIF-oriented; may fetch, may raise


@dataclass
class Timings:
    """Seconds spent on one answer, by stage; a stage that was not needed is missing."""

    stages: dict[str, float] = field(default_factory=dict)
    cache_hit: bool = False  #: the photo's embedding was there

    def add(self, stage: str, seconds: float) -> None:
        """A stage may come twice: for the photo and for a window of it."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class Result(Generic[T]):
    """What work on a photo gave, all of it by one model."""

    value: T
    version: str  #: of that model, as predictions carry it
    timings: Timings


class Predictor:
    """Thread-safe. `start` loads in the background, `run` works on a photo, `switch` puts another model in place."""

    def __init__(
        self, load: Callable[[], Loaded], *, cache_bytes: int, metrics: Metrics, first_version: str = ""
    ) -> None:
        """load: gives the first model. first_version: its name, given out until it is loaded."""
        self._load = load
        self._first_version = first_version
        self._loading = threading.Lock()  # one model is loaded at a time: two in memory, never three
        self._metrics = metrics
        self._loaded: Loaded | None = None
        self._problem: str | None = None
        self._done = threading.Event()
        self._encoding = threading.Lock()  # one encoder run at a time: memory stays that of one photo
        self._click_priority = ClickPriority()
        self._embeddings = EmbeddingCache(cache_bytes, metrics)

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
            self._embeddings.keep(loaded.digests)
            before, self._loaded, self._problem = self._loaded, loaded, None
            self._metrics.model_ready(loaded.engine.name, loaded.name, switched=before is not None)
            seconds = time.perf_counter() - began
            log.info("model %s ready in %.1f s%s", loaded.name, seconds, f", after {before.name}" if before else "")
        return True

    def _failed(self, reason: str) -> bool:
        self._problem = reason
        self._metrics.model_failed()
        return False

    def settle(self) -> None:
        """Forget why the last switch failed: the model that answers is the right one after all."""
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
        """Of the weights that are served now; None while there are none."""
        return self._loaded.version if self._loaded else None

    @property
    def version_name(self) -> str:
        """Name and digest of the model that answers, or of the first one while it is loading."""
        return self._loaded.name if self._loaded else self._first_version

    def ready(self, wait_s: float = LOAD_WAIT_S) -> Loaded:
        """The model; waits while it loads. Raises NotReady."""
        if not self._done.wait(wait_s):
            raise NotReady(f"model is still loading after {wait_s:g} s; try again")
        if self._loaded is None:
            raise NotReady(f"model cannot be loaded: {self._problem}")
        return self._loaded

    def run(
        self,
        photo: PhotoSource,
        work: Work[T],
        priority: Priority = "click",
        *,
        using: Loaded | None = None,
        may_evict: bool = True,
    ) -> Result[T]:
        """Do work on an embedded photo. Raises NotReady, and whatever `work` and `photo.pixels` raise.

        The pixels are asked for at most once, and only when an embedding of the photo or of a window of it is not
        cached. using: what `ready` gave, for several answers from one model; None = the model of now. may_evict:
        whether other photos' embeddings may leave the cache in favour of this one.
        """
        loaded = using or self.ready()
        photo = PhotoSource(photo.sha256, lru_cache(1)(photo.pixels))  # for the photo and its windows: decoded once
        if priority == "background":
            return self._run(loaded, photo, work, may_evict, before_step=self._click_priority.wait_for_clicks)
        with self._click_priority.click():
            return self._run(loaded, photo, work, may_evict, before_step=lambda: None)

    def _run(
        self, loaded: Loaded, photo: PhotoSource, work: Work[T], may_evict: bool, before_step: Callable[[], None]
    ) -> Result[T]:
        """before_step: called before the photo is encoded, and again before the work."""
        timings = Timings()
        before_step()
        embedding = self._embed(loaded, photo, None, timings, may_evict)
        in_windows = 0.0  # seconds

        def encode_crop(window: Window) -> EngineEmbedding:
            nonlocal in_windows
            began = time.perf_counter()
            try:
                return self._embed(loaded, photo, window, timings, may_evict)
            finally:
                in_windows += time.perf_counter() - began

        before_step()
        began = time.perf_counter()
        value = work(loaded.model, embedding, encode_crop)
        timings.stages["decode_prompt"] = time.perf_counter() - began - in_windows
        return Result(value, loaded.name, timings)

    def concept_look(
        self, photo: PhotoSource, priority: Priority, using: Loaded, *, may_evict: bool = True
    ) -> Callable[[Window | None], Look]:
        """Gives the look of the concept model, which must be there, at a photo or at a window of it.

        That at the photo is kept as embeddings are. Raises what `photo.pixels` raises.
        """
        assert using.concepts is not None
        concepts, photo = using.concepts, PhotoSource(photo.sha256, lru_cache(1)(photo.pixels))

        def look(window: Window | None) -> Look:
            if priority == "background":
                self._click_priority.wait_for_clicks()
            if window is not None:
                rgb = photo.pixels()
                with self._encoding:
                    made: Look = concepts.model.encode(rgb, window)
                return made
            key = EmbeddingKey(photo.sha256, concepts.version.digest)
            return self._cached(key, photo, concepts.model.encode, Timings(), may_evict)

        return look

    def _embed(
        self, loaded: Loaded, photo: PhotoSource, window: Window | None, timings: Timings, may_evict: bool
    ) -> EngineEmbedding:
        """The photo, or a window of it; each part is made once and kept by itself."""
        from semsam_model.inference.engine import DescribedEmbedding

        parts = loaded.parts

        def part(by: Version, encode: Callable[[np.ndarray, Window | None], Kept]) -> Kept:
            return self._cached(EmbeddingKey(photo.sha256, by.digest, window), photo, encode, timings, may_evict)

        masks: EngineEmbedding = part(loaded.engine, parts.engine.encode)
        if parts.alone or window is not None:
            return masks
        return DescribedEmbedding(masks, part(loaded.described_by, parts.describer.encode))

    def _cached(
        self,
        key: EmbeddingKey,
        photo: PhotoSource,
        encode: Callable[[np.ndarray, Window | None], Kept],
        timings: Timings,
        may_evict: bool,
    ) -> Kept:
        def encode_now() -> Kept:
            began = time.perf_counter()
            rgb = photo.pixels()
            decoded = time.perf_counter()
            with self._encoding:
                embedding = encode(rgb, key.window)
            timings.add("decode_image", decoded - began)
            timings.add("encode", time.perf_counter() - decoded)
            return embedding

        began = time.perf_counter()
        embedding, origin = self._embeddings.get(key, encode_now, may_evict=may_evict)
        timings.cache_hit |= key.window is None and origin == "cached"
        if origin == "shared":
            timings.add("encode", time.perf_counter() - began)
        return embedding


def predict_prompt(
    predictor: Predictor,
    photo: PhotoSource,
    prompt: Prompt,
    context: PromptContext | None = None,
    *,
    reranker: Reranker | None = None,
    options: CandidateOptions | None = None,
    using: Loaded | None = None,
) -> Result[list[Candidate]]:
    """Candidates for clicks and boxes, best first; see `Predictor.run` and `semsam_model.inference.predict`.

    reranker: what was learned for the model `using`. Raises PromptError, and what `run` raises.
    """

    def work(model: Model, embedding: EngineEmbedding, encode_crop: CropEncoder) -> list[Candidate]:
        from semsam_model.inference.predict import predict_candidates

        return predict_candidates(model, embedding, prompt, options, context, encode_crop, reranker)

    return predictor.run(photo, work, using=using)
