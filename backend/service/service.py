"""What the backend does, apart from HTTP: one Label Studio request in, one prediction for each of its tasks out.

The methods `predict` and `fit` have the signature of label-studio-ml 2.x, so that `backend.ls_ml` can serve the same
object under that framework; `backend.web.app` serves it under Flask.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import TTLCache

from backend.adaptation.learner import Learner
from backend.corrections.suggestions import PromptAnswer
from backend.errors import BackendError, NotStored, StoreError
from backend.images import decode_photo, probe_size
from backend.inference.label_embeddings import Namer, without_text
from backend.inference.preannotation import (
    ENCODER_WAIT_S,
    GRACE,
    UNFINISHED,
    as_prediction,
    in_time,
    names_of,
    wanted_regions,
)
from backend.inference.predictor import LOAD_WAIT_S, Loaded, Predictor, Timings
from backend.inference.text_prompt import against, readings
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import parse_webhook
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction, empty_prediction
from backend.label_studio.prompts import Interaction, parse_interaction
from backend.label_studio.requests import PredictRequest, TaskRef, parse_predict, parse_setup
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.intake import Intake
from backend.service.status import GateReport, Status, read_gate_report, read_status
from backend.settings import Settings
from backend.store.database import Store
from backend.versions.registry import Registry
from semsam_model.checkpoints.header import Version
from semsam_model.errors import SemsamError
from semsam_model.inference.naming import name_candidates
from semsam_model.text_encoder import normalise_label
from semsam_model.types import Candidate, PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import ProjectAdaptation

log = logging.getLogger(__name__)

REMEMBERED_FILES = 10_000
STATUS_S = 5.0  #: seconds that the status is remembered: it is counted out of every region


@dataclass(frozen=True)
class _File:
    """What is known of a task's picture without decoding it."""

    sha256: str
    size: tuple[int, int]  #: (H, W), EXIF-oriented


class SemsamService:
    """Joins Label Studio, the pictures and the model. Thread-safe; keeps no project or task between requests."""

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        label_studio: LabelStudio,
        metrics: Metrics,
        weights_version: str,
        namer: Namer | None = None,
        registry: Registry | None = None,
        intake: Intake | None = None,
        store: Store | None = None,
        learner: Learner | None = None,
    ) -> None:
        """namer: what names masks, None = by rule. registry: of versions, None = only the predictor's model.

        intake: of annotators' work, None = none is stored. store: what the status is read from, None = there is none.
        learner: from what is stored, None = nothing is learned.
        """
        self._settings = settings
        self._predictor = predictor
        self._label_studio = label_studio
        self._metrics = metrics
        self._weights_version = weights_version
        self._namer = namer
        self._registry = registry
        self._intake = intake
        self._store = store
        self._status: TTLCache[str, Status] = TTLCache(1, STATUS_S)
        self._status_lock = threading.Lock()
        self._learner = learner
        self.closing = contextlib.ExitStack()  #: what to do at the end
        self._files: TTLCache[tuple[str, str], _File] = TTLCache(REMEMBERED_FILES, settings.image_recheck_seconds)
        self._files_lock = threading.Lock()

    def close(self) -> None:
        """Stop what runs in the background and give connections back."""
        self.closing.close()

    # ---- what Label Studio asks about us: answered from memory

    @property
    def model_version(self) -> str:
        """Version of the model that answers, or of the one that is loading."""
        version = self._predictor.version
        return version.version if version else self._weights_version

    def health(self) -> dict[str, Any]:
        """Always answers; says whether clicks are served yet, and why not."""
        answer = {"status": "UP", "model_version": self.model_version, "model_state": self._predictor.state}
        return answer | ({"problem": self._predictor.problem} if self._predictor.problem else {})

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A project introduces itself: note its server, look at its labeling config, name the model."""
        request = parse_setup(body)
        if request.project_key is not None and request.hostname:
            self._label_studio.connect(request.project_key, request.hostname, request.access_token)
        if self._intake and request.config:
            self._intake.introduced(request.project_key, request.project, body["schema"])
        for problem in request.problems:
            log.warning("project %s: %s", request.project, problem)
        if self._namer and request.config:
            self._namer.prepare(request.config)
        return {"model_version": self.model_version}

    def versions(self) -> dict[str, Any]:
        """`versions`: names of those that can be made live, `live`: of the one that is, `details` of each."""
        answering = {"versions": [self.model_version], "live": self.model_version}
        if self._registry is None:
            return answering
        try:
            live = self._registry.live().version
            every = [version for version in self._registry.all() if version.model == live.model]
        except StoreError as error:
            log.warning("versions: only the one that answers is known: %s", error)
            return answering
        details = [{k: v for k, v in version.to_dict().items() if k != "weights"} for version in every]
        return {"versions": [version.version for version in every], "live": live.version, "details": details}

    def status(self) -> Status:
        """What annotators' work has come to, at most STATUS_S old; without the store, why that is not known."""
        if self._store is None:
            return Status()
        with self._status_lock:  # the store is asked once, however many look
            if (remembered := self._status.get("")) is None:
                remembered = self._status[""] = self._read_status(self._store)
        return remembered

    @staticmethod
    def _read_status(store: Store) -> Status:
        try:
            return read_status(store)
        except StoreError as error:
            log.warning("status: %s", error)
            return Status(problem=str(error))

    def gate_report(self, job: int) -> GateReport:
        """What the gate said about a fine-tuning job.

        Raises NotStored for a job that there is not, or that the gate has not judged; StoreError.
        """
        if self._store is None:
            raise NotStored(f"job {job}: this backend has no store")
        return read_gate_report(self._store, self._settings.data_dir, job)

    # ---- predictions

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
        """The body of POST /predict -> one prediction for each task, in order.

        A task that cannot be answered gets an empty prediction, and the log its reason. Raises BadRequest only for a
        body that is no predict request at all.
        """
        request = parse_predict(body)
        seconds = self._settings.preannotate_seconds
        model = _OneModel(self._predictor, seconds)
        jobs = [partial(self._answer, request, task, request_id, model) for task in request.tasks]
        if request.context is not None:
            return [job() for job in jobs]
        return in_time(jobs, seconds * (1 + GRACE), partial(self._late, request_id, model))

    def _late(self, request_id: str, model: _OneModel) -> dict[str, Any]:
        log.warning(
            "request %s: empty answer (no_time): %g s and a share more, the setting preannotate_seconds, were over",
            request_id,
            self._settings.preannotate_seconds,
        )
        self._metrics.empty_answer("no_time")
        return empty_prediction((model.loaded.version.version if model.loaded else self.model_version) + UNFINISHED)

    def _answer(self, request: PredictRequest, task: TaskRef, request_id: str, model: _OneModel) -> dict[str, Any]:
        where = f"request {request_id} project {request.project} task {task.id}"
        try:
            return self._answer_or_raise(request, task, where, model)
        except _NothingToSay as nothing:
            kind, reason, level = nothing.kind, str(nothing), logging.INFO
        except SemsamError as error:
            kind, reason, level = type(error).__name__, str(error), logging.WARNING
        except Exception:
            log.exception("%s: unexpected failure", where)
            kind, reason, level = "unexpected", "see the traceback above", logging.ERROR
        log.log(level, "%s: empty answer (%s): %s", where, kind, reason)
        self._metrics.empty_answer(kind)
        version = model.loaded.version.version if model.loaded else self.model_version
        # what a model has been asked and has no answer to, it need not be asked again
        unfinished = request.context is None and kind not in ("no_prompt", "no_mask")
        return empty_prediction(version + UNFINISHED if unfinished else version)

    def _answer_or_raise(self, request: PredictRequest, task: TaskRef, where: str, model: _OneModel) -> dict[str, Any]:
        if request.context is None:
            self._can_preannotate(model)
        elif not request.context:
            raise _NothingToSay("no_prompt", "the editor sent no click or box")
        if task.image_url is None:
            raise BackendError(task.problem or "the task names no picture")
        if request.config.answer is None:
            raise BackendError("; ".join(request.config.problems()) or "the labeling config has no control for answers")

        began = time.perf_counter()
        project = request.project_key
        file, data = self._file(project, task)
        fetched = time.perf_counter()

        def pixels() -> np.ndarray:
            content = data if data is not None else self._fetch(project, task)
            return decode_photo(
                content, max_bytes=self._settings.max_image_bytes, max_pixels=self._settings.max_image_pixels
            ).rgb

        if request.context is None:
            # a task that is opened alone is clicked next; of many nobody knows
            return self._preannotate(request.config, file, pixels, model, where, len(request.tasks) == 1)
        asked = parse_interaction(request.context, request.config, file.size)
        if asked.prompt is None and not asked.text:
            raise _NothingToSay("no_prompt", "; ".join(asked.ignored) or "nothing to point at")

        loaded = model.ready()
        learned = self._learned(request, task, loaded)
        if asked.prompt is None:
            candidates, version, timings = self._find(asked.text[-1], request.config, file.sha256, pixels, loaded)
        else:
            namer = self._namer_of(loaded)
            labels = namer.labels(request.config) if namer else None
            candidates, version, timings = self._predictor.propose(
                file.sha256,
                pixels,
                asked.prompt,
                PromptContext(request.config.granularity, labels=labels),
                using=loaded,
                reranker=learned.reranker if learned else None,
            )
        decoded = time.perf_counter()
        offered = self._named(asked.offered(candidates), request.config, loaded, learned)
        prediction = build_prediction(
            offered, config=request.config, prompt_id=uuid.uuid4().hex, model_version=version.version
        )
        stages = {"fetch": fetched - began, **timings.stages, "respond": time.perf_counter() - decoded}
        for stage, seconds in stages.items():
            self._metrics.stage(stage, seconds)
        log.info(
            "%s: %d of %d candidates, image %s, model %s, cache %s, %s",
            where,
            len(offered),
            len(candidates),
            file.sha256[:12],
            version,
            "hit" if timings.cache_hit else "miss",
            " ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in stages.items()),
        )
        if not prediction["result"]:
            where_not = "there" if asked.prompt else f"that is sure enough to be {asked.text[-1]!r}"
            raise _NothingToSay("no_mask", f"the model found no mask {where_not}")
        self._note_offer(request, task, file, asked, offered, prediction, time.perf_counter() - began)
        return prediction

    def _can_preannotate(self, model: _OneModel) -> None:
        if not model.left_s:
            raise _NothingToSay(
                "no_time",
                f"{self._settings.preannotate_seconds:g} s, the setting preannotate_seconds, are over; ask again, or"
                " run `semsam batch`",
            )
        loaded = model.ready(min(LOAD_WAIT_S, model.left_s))
        if not loaded.model.config.generic_queries:
            raise _NothingToSay(
                "no_prompt",
                f"no click or box came with it, and model {loaded.version} has no object queries to do without",
            )

    def _preannotate(
        self,
        config: LabelConfig,
        file: _File,
        pixels: Callable[[], np.ndarray],
        model: _OneModel,
        where: str,
        keep: bool,
    ) -> dict[str, Any]:
        """Everything in a picture that nobody has clicked. keep: its embedding, whatever else that puts out."""
        loaded, patience = model.ready(), min(ENCODER_WAIT_S, model.left_s)
        labels = names_of(self._namer_of(loaded), config, loaded.model.config.text_dim, patience)
        options = wanted_regions(self._settings, config)
        regions, version, timings = self._predictor.preannotate(
            file.sha256, pixels, labels, options, using=loaded, keep=keep
        )
        for stage, seconds in timings.stages.items():
            self._metrics.stage(stage, seconds)
        log.info("%s: %d regions, image %s, model %s", where, len(regions), file.sha256[:12], version)
        if not regions:
            raise _NothingToSay("no_mask", f"nothing in it scores {options.least:g}, the setting preannotate_threshold")
        return as_prediction(regions, config, file.sha256, version.version)

    def _note_offer(
        self,
        request: PredictRequest,
        task: TaskRef,
        file: _File,
        asked: Interaction,
        offered: Sequence[Candidate],
        prediction: dict[str, Any],
        seconds: float,
    ) -> None:
        key = self._key(request, task)
        if self._intake is None or task.id is None or key is None:
            return
        text = asked.text[-1] if asked.prompt is None else None
        now, ms = datetime.now(UTC), 1000 * seconds
        self._intake.answered(
            PromptAnswer(key, task.id, file.sha256, file.size, asked.prompt, text, offered, prediction, ms, now)
        )

    def _key(self, request: PredictRequest, task: TaskRef) -> ProjectKey | None:
        """The store's key of the project; None where nothing is stored."""
        if self._intake is None:
            return None
        return self._intake.key(request.project_key, request.project if task.project is None else task.project)

    def _learned(self, request: PredictRequest, task: TaskRef, loaded: Loaded) -> ProjectAdaptation | None:
        """What the project's accepted regions have taught this model."""
        key = self._key(request, task) if self._learner else None
        return None if self._learner is None or key is None else self._learner.learned(key, loaded.version.digest)

    def _namer_of(self, loaded: Loaded) -> Namer | None:
        """What gives the masks of this model their names; None for a model without names."""
        return self._namer if loaded.model.config.name_features else None

    def _named(
        self,
        candidates: Sequence[Candidate],
        config: LabelConfig,
        loaded: Loaded,
        learned: ProjectAdaptation | None,
    ) -> Sequence[Candidate]:
        """The candidates with names of the project's labels, where they can be named; a text prompt's have theirs."""
        namer = self._namer_of(loaded)
        labels = namer.labels(config, dimension=loaded.model.config.text_dim) if namer else None
        if any(candidate.names for candidate in candidates):
            return candidates
        if learned is not None and len((known := labels or without_text(config)).values) > 1:
            return learned.name(candidates, known, self._settings.name_threshold)
        if labels is None:
            return candidates
        return name_candidates(candidates, labels, self._settings.name_threshold)

    def _find(
        self,
        text: str,
        config: LabelConfig,
        sha256: str,
        pixels: Callable[[], np.ndarray],
        loaded: Loaded,
    ) -> tuple[list[Candidate], Version, Timings]:
        """Masks of the name that the annotator wrote."""
        namer = self._namer_of(loaded)
        if namer is None:
            raise _NothingToSay("no_names", f"text prompt {text!r}: model {loaded.version} cannot name things")
        if not normalise_label(text):
            raise _NothingToSay("no_prompt", f"text prompt {text!r}: expected at least a word")
        for label, whole in readings(text, config):
            labels = against(label, config, namer)
            wholes = None if whole is None else against(whole, config, namer)
            if labels is None or (wholes is None) != (whole is None):
                raise _NothingToSay("no_names", f"text prompt {text!r}: the text encoder is not ready or not installed")
            answer = self._predictor.find(
                sha256, pixels, labels, self._settings.name_threshold, whole=wholes, using=loaded
            )
            if answer[0]:
                break
        return answer

    def _file(self, project: str | None, task: TaskRef) -> tuple[_File, bytes | None]:
        """Digest and size of a task's picture, and its bytes if they had to be fetched to know."""
        key = (project or "", task.image_url or "")
        with self._files_lock:
            known = self._files.get(key)
        if known is not None:
            return known, None
        data = self._fetch(project, task)
        size = probe_size(data, max_pixels=self._settings.max_image_pixels)
        file = _File(hashlib.sha256(data).hexdigest(), size)
        with self._files_lock:
            self._files[key] = file
        return file, data

    def _fetch(self, project: str | None, task: TaskRef) -> bytes:
        assert task.image_url is not None
        return self._label_studio.fetch_image(task.image_url, project=project, task_id=task.id)

    # ---- events

    def fit(self, event: str, data: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """label-studio-ml 2.x: something happened in a project. Noted; nothing trains inside a request."""
        return self.event({**data, "action": event})

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A webhook delivery: counted, and what it says about annotations is on disk when this returns.

        Raises BadRequest, StoreError, LabelStudioError: then it is not acknowledged.
        """
        webhook = parse_webhook(body)
        self._metrics.event(webhook.action)
        log.info("event %s of project %s", webhook.action, webhook.project_id)
        kept = self._intake is not None and self._intake.event(webhook)
        return {"status": "noted" if kept else "ignored", "action": webhook.action}


class _OneModel:
    """The model that answers a request: the one that was there when it was first needed, to the request's end."""

    def __init__(self, predictor: Predictor, seconds: float) -> None:
        self._predictor = predictor
        self._deadline = time.monotonic() + seconds
        self.loaded: Loaded | None = None  #: None until then
        self._lock = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds until no picture without a click is begun, nor anything waited for in its favour."""
        return max(0.0, self._deadline - time.monotonic())

    def ready(self, wait_s: float = LOAD_WAIT_S) -> Loaded:
        """Raises NotReady."""
        with self._lock:
            if self.loaded is None:
                self.loaded = self._predictor.ready(wait_s)
            return self.loaded


class _NothingToSay(Exception):
    """An empty answer that is nobody's fault."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
