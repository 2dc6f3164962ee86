"""A predict request of Label Studio in, one prediction for each of its tasks out.

A click, a box:  photo -> candidates -> their names -> prediction, which is noted for the store too
A text:          the same, with the masks that the text names
Without either:  photo -> regions of all that is in it -> prediction, within the time that a request has
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from backend.adaptation.learner import Learner
from backend.corrections.suggestions import PromptAnswer
from backend.errors import BackendError
from backend.inference.label_embeddings import labels_without_vectors
from backend.inference.loaded import Loaded
from backend.inference.preannotation import UNFINISHED, as_prediction, finder
from backend.inference.predictor import LOAD_WAIT_S, Predictor, Priority, Result, predict_prompt
from backend.inference.text_prompt import Search, find_by_text
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.predictions import build_prediction, empty_prediction
from backend.label_studio.prompt_rows import PromptRow
from backend.label_studio.prompts import Interaction, parse_interaction
from backend.label_studio.requests import TaskRef, parse_predict
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.event_handler import EventHandler
from backend.service.next_photos import NextPhotos
from backend.service.request import GRACE, TimedRequest, in_time
from backend.service.task_photos import TaskPhoto, TaskPhotos
from backend.settings import Settings
from semsam_model.errors import SemsamError
from semsam_model.inference.naming import name_candidates
from semsam_model.text_encoder import normalise_label
from semsam_model.types import Candidate, PromptContext

if TYPE_CHECKING:  # torch
    from semsam_model.adaptation.lessons import ProjectAdaptation

log = logging.getLogger(__name__)

#: Seconds that a photo without a click waits for the text encoder, within the time of its request; `semsam batch`
#: waits until it is there.
ENCODER_WAIT_S = 20.0


class NoAnswer(Exception):
    """An empty answer that is nobody's fault."""

    def __init__(self, kind: str, reason: str) -> None:
        """kind: one word, for the metrics."""
        super().__init__(reason)
        self.kind = kind


class PredictionService:
    """Thread-safe; keeps no project or task between requests."""

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        photos: TaskPhotos,
        events: EventHandler,
        learner: Learner,
        next_photos: NextPhotos,
        metrics: Metrics,
        encoder_wait_s: float = ENCODER_WAIT_S,
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._photos = photos
        self._events = events
        self._learner = learner
        self._next_photos = next_photos
        self._metrics = metrics
        self._encoder_wait_s = encoder_wait_s

    def predict(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        """The body of POST /predict -> one prediction for each task, in order.

        A task that cannot be answered gets an empty prediction, and the log its reason. Raises BadRequest only for a
        body that is no predict request at all.
        """
        seconds = self._settings.preannotate_seconds
        request = TimedRequest(parse_predict(body), request_id, self._predictor, seconds)
        for why in request.content.ignored:
            log.info("request %s: not used: %s", request_id, why)
        jobs = [partial(self._answer_or_empty, request, task) for task in request.content.tasks]
        if request.content.context is not None:
            return [job() for job in jobs]
        return in_time(jobs, seconds * (1 + GRACE), partial(self._late, request))

    def _late(self, request: TimedRequest) -> dict[str, Any]:
        log.warning(
            "request %s: empty answer (no_time): %g s and a share more, the setting preannotate_seconds, were over",
            request.id,
            self._settings.preannotate_seconds,
        )
        self._metrics.empty_answer("no_time", self._store_key(request, request.content.project))
        return empty_prediction(request.version_name + UNFINISHED)

    def _answer_or_empty(self, request: TimedRequest, task: TaskRef) -> dict[str, Any]:
        try:
            return self._answer(request, task)
        except NoAnswer as no_answer:
            kind, reason, level = no_answer.kind, str(no_answer), logging.INFO
        except SemsamError as error:
            kind, reason, level = type(error).__name__, str(error), logging.WARNING
        except Exception:
            log.exception("%s: unexpected failure", request.name(task))
            kind, reason, level = "unexpected", "see the traceback above", logging.ERROR
        log.log(level, "%s: empty answer (%s): %s", request.name(task), kind, reason)
        self._metrics.empty_answer(kind, self._store_key(request, task.project))
        version = request.version_name
        # a model that has looked and found nothing need not be asked again
        unfinished = request.content.context is None and kind not in ("no_prompt", "no_mask")
        return empty_prediction(version + UNFINISHED if unfinished else version)

    def _store_key(self, request: TimedRequest, project: int | None) -> ProjectKey | None:
        return self._events.store_key(request.content.project_name, project)

    def _answer(self, request: TimedRequest, task: TaskRef) -> dict[str, Any]:
        rows, config = request.content.context, request.content.config_of(task)
        if rows is None:
            self._check_preannotation(request)
        elif not rows:
            raise NoAnswer("no_prompt", "the editor sent no click or box")
        if task.image_url is None:
            raise BackendError(task.problem or "the task names no photo")
        if config.answer is None:
            raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
        photo = self._photos.open(request.content.project_name, task)
        if rows is None:
            return self._preannotate(request, task, photo)
        return self._answer_prompt(request, task, photo, rows)

    # ---- a click, a box or a text

    def _answer_prompt(
        self, request: TimedRequest, task: TaskRef, photo: TaskPhoto, rows: Sequence[PromptRow]
    ) -> dict[str, Any]:
        began = time.perf_counter() - photo.fetch_s
        config = request.content.config_of(task)
        asked = parse_interaction(rows, config, photo.size)
        if asked.prompt is None and not asked.text:
            raise NoAnswer("no_prompt", "; ".join(asked.ignored) or "nothing to point at")
        loaded = request.model()
        key = self._store_key(request, task.project)
        self._next_photos.follow(request.content.project_name, task.project, task.id, config)
        learned = None if key is None else self._learner.learned(key, loaded.described_by.digest)
        search = self._search(photo, loaded, key, task) if asked.prompt is None else None
        result = self._candidates(asked, config, photo, loaded, learned, search)
        decoded = time.perf_counter()
        candidates = self._named(asked.suggested(result.value), config, loaded, learned)
        if asked.label is not None:
            candidates = [replace(candidate, label=asked.label) for candidate in candidates]
        prediction = build_prediction(
            candidates,
            config=config,
            prompt_id=uuid.uuid4().hex,
            model_version=result.version,
            page=request.content.page,
        )
        stages = {"fetch": photo.fetch_s, **result.timings.stages, "respond": time.perf_counter() - decoded}
        for stage, seconds in stages.items():
            self._metrics.stage(stage, seconds)
        log.info(
            "%s: %d of %d candidates, image %s, model %s, cache %s, %s",
            request.name(task),
            len(candidates),
            len(result.value),
            photo.source.sha256[:12],
            result.version,
            "hit" if result.timings.cache_hit else "miss",
            " ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in stages.items()),
        )
        if not prediction["result"]:
            where_not = "there" if asked.prompt else f"that is sure enough to be {asked.text[-1]!r}"
            raise NoAnswer("no_mask", f"the model found no mask {where_not}")
        if key is not None and task.id is not None and request.content.of_first_photo:
            answer = PromptAnswer(
                key=key,
                task=task.id,
                image_sha256=photo.source.sha256,
                size=photo.size,
                prompt=asked.prompt,
                text=asked.text[-1] if asked.prompt is None else None,
                candidates=candidates,
                prediction=prediction,
                milliseconds=1000 * (time.perf_counter() - began),
                at=datetime.now(UTC),
            )
            self._events.prompt_answered(answer)
        return prediction

    def _candidates(
        self,
        asked: Interaction,
        config: LabelConfig,
        photo: TaskPhoto,
        loaded: Loaded,
        learned: ProjectAdaptation | None,
        search: Search | None,
    ) -> Result[list[Candidate]]:
        """For clicks and boxes where there are any, else for the newest text; best first."""
        if asked.prompt is None:
            return self._find(asked.text[-1], config, photo, loaded, search)
        context = _context(asked, config, loaded)
        return predict_prompt(self._predictor, photo.source, asked.prompt, context, reranker=learned, using=loaded)

    def _search(
        self,
        photo: TaskPhoto,
        loaded: Loaded,
        key: ProjectKey | None,
        task: TaskRef,
        priority: Priority = "click",
        may_evict: bool = True,
    ) -> Search | None:
        """How the concept model is asked about a photo; None where there is none. The last two: as `Predictor.run`."""
        if loaded.concepts is None:
            return None
        from semsam_model.inference.concepts import ConceptSearch  # torch

        concepts, examples = loaded.concepts, {}
        if key is not None and task.id is not None and concepts.model.takes_examples:
            examples = self._learner.examples(key, task.id, photo.size)
        curve = None if key is None else self._learner.worth(key, concepts.version)
        look = self._predictor.concept_look(photo.source, priority, loaded, may_evict=may_evict)
        return lambda asked: ConceptSearch(concepts.model, look, asked, examples, curve)

    def _find(
        self, text: str, config: LabelConfig, photo: TaskPhoto, loaded: Loaded, search: Search | None
    ) -> Result[list[Candidate]]:
        """Masks of the name that the annotator wrote."""
        if search is None and not loaded.label_embedder.can_name:
            raise NoAnswer("no_names", f"text prompt {text!r}: model {loaded.name} cannot name things")
        if not normalise_label(text):
            raise NoAnswer("no_prompt", f"text prompt {text!r}: expected at least a word")
        threshold = self._settings.name_threshold
        result = find_by_text(self._predictor, photo.source, text, config, threshold, loaded, search)
        if result is None:
            raise NoAnswer("no_names", f"text prompt {text!r}: the text encoder is not ready or not installed")
        return result

    def _named(
        self, candidates: Sequence[Candidate], config: LabelConfig, loaded: Loaded, learned: ProjectAdaptation | None
    ) -> Sequence[Candidate]:
        """The candidates with names of the project's labels, where they can be named; a text prompt's have theirs."""
        if any(candidate.names for candidate in candidates):
            return candidates
        threshold, labels = self._settings.name_threshold, loaded.label_embedder.labels(config)
        if learned is not None and len((known := labels or labels_without_vectors(config)).values) > 1:
            return learned.name(candidates, known, threshold)
        return candidates if labels is None else name_candidates(candidates, labels, threshold)

    # ---- no prompt

    def _check_preannotation(self, request: TimedRequest) -> None:
        """Raises NoAnswer where there is no time left, or the model cannot do without a prompt."""
        if not request.left_s:
            raise NoAnswer(
                "no_time",
                f"{self._settings.preannotate_seconds:g} s, the setting preannotate_seconds, are over; ask again, or"
                " run `semsam batch`",
            )
        loaded = request.model(min(LOAD_WAIT_S, request.left_s))
        if loaded.concepts is None and not loaded.describer.config.generic_queries:
            raise NoAnswer(
                "no_prompt",
                f"no click or box came with it, and model {loaded.name} has no object queries to do without",
            )

    def _preannotate(self, request: TimedRequest, task: TaskRef, photo: TaskPhoto) -> dict[str, Any]:
        """The regions of all that is in a photo."""
        config, loaded = request.content.config_of(task), request.model()
        # a task that is opened alone is clicked next; of many nobody knows
        opened = len(request.content.tasks) == 1
        key = self._store_key(request, task.project)
        search = self._search(photo, loaded, key, task, "background", may_evict=opened)
        wait_s = min(self._encoder_wait_s, request.left_s)
        find = finder(loaded, self._settings, config, search, wait_s)
        result = self._predictor.run(
            photo.source,
            lambda model, embedding, _: find.regions(model, embedding),
            "background",
            using=loaded,
            may_evict=opened,
        )
        if opened:
            self._next_photos.follow(request.content.project_name, task.project, task.id, config)
        for stage, seconds in result.timings.stages.items():
            self._metrics.stage(stage, seconds)
        regions, version = result.value, result.version
        log.info(
            "%s: %d regions, image %s, model %s", request.name(task), len(regions), photo.source.sha256[:12], version
        )
        if not regions:
            raise NoAnswer("no_mask", f"nothing in it scores {find.least:.2f}, see the setting preannotate_threshold")
        return as_prediction(regions, config, photo.source.sha256, version)


def _context(asked: Interaction, config: LabelConfig, loaded: Loaded) -> PromptContext:
    """What is known about the wanted masks: the project's labels, and the one that was chosen before the prompt."""
    labels = loaded.label_embedder.labels(config)
    if asked.label is None:
        return PromptContext(config.granularity, labels=labels)
    wanted = labels.values.index(asked.label) if labels and asked.label in labels.values else None
    return PromptContext(config.kind_of(asked.label) or config.granularity, labels=labels, wanted=wanted)
