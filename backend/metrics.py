"""Counters and timings, rendered for Prometheus.

One `Metrics` a service, with its own registry, so that two services in one process do not add up.
"""

from __future__ import annotations

import threading
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from backend.records import ProjectKey

#: Seconds; from a warm click's few milliseconds to the 100 s after which Label Studio gives up.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 100.0)
#: Event and route names come from outside; one that is not known is counted as "other", so the list stays short.
_EVENTS = frozenset(
    {
        *(f"ANNOTATION{end}" for end in ("_CREATED", "_UPDATED", "S_CREATED", "S_DELETED", "_DELETED")),
        *("TASKS_CREATED", "TASKS_DELETED", "PROJECT_CREATED", "PROJECT_UPDATED", "PROJECT_DELETED"),
        *(f"LABEL_LINK_{end}" for end in ("CREATED", "UPDATED", "DELETED")),
        "START_TRAINING",
    }
)
#: Projects whose empty answers are counted each by itself; those of further ones, and of unknown ones, together.
_PROJECTS = 100


class Metrics:
    """What happened since the start. Every method may be called from any thread and never raises."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        self._requests = counter("semsam_requests", "HTTP requests answered", ["route", "status"])
        self._stages = Histogram(
            "semsam_predict_seconds",
            "Seconds that one stage of a prediction took",
            ["stage"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._hits = counter("semsam_embedding_cache_hits", "Photos whose embedding was in the cache")
        self._misses = counter("semsam_embedding_cache_misses", "Photos that had to be encoded")
        self._bytes = Gauge("semsam_embedding_cache_bytes", "Memory the kept embeddings take", registry=registry)
        self._entries = Gauge("semsam_embedding_cache_entries", "Embeddings kept", registry=registry)
        self._waiting = Gauge("semsam_waiting_predictions", "Requests that wait for their turn", registry=registry)
        self._empty = counter("semsam_empty_answers", "Tasks that got an empty prediction", ["project", "reason"])
        self._projects: dict[str, ProjectKey] = {}  #: by their name in `_empty`
        self._lock = threading.Lock()
        self._events = counter("semsam_events", "Events Label Studio reported", ["action"])
        self._compared_instead = counter(
            "semsam_webhooks_compared_instead", "Webhooks that said only that something changed", ["kind"]
        )
        self._suggestions_lost = counter("semsam_offers_lost", "Answers of which the store has no record")
        self._model = Info("semsam_model", "The model that answers", registry=registry)
        self._switches = counter("semsam_model_switches", "Models put in place of another")
        self._load_failures = counter("semsam_model_load_failures", "Models that could not be loaded")

    def request(self, route: str, status: int) -> None:
        """One HTTP request answered; `route` is the rule, not the path that came."""
        self._requests.labels(route, str(status)).inc()

    def stage(self, stage: str, seconds: float) -> None:
        """One stage of one prediction: wait, fetch, decode_image, encode, decode_prompt, respond."""
        self._stages.labels(stage).observe(seconds)

    def waiting(self, requests: int) -> None:
        """So many predict requests wait for their turn now."""
        self._waiting.set(requests)

    def cache_hit(self) -> None:
        self._hits.inc()

    def cache_miss(self) -> None:
        self._misses.inc()

    def cache_size(self, count_bytes: int, entries: int) -> None:
        """Memory and number of the embeddings kept."""
        self._bytes.set(count_bytes)
        self._entries.set(entries)

    def empty_answer(self, reason: str, project: ProjectKey | None) -> None:
        """A task of a project got an empty prediction; None: nobody knows of which.

        reason: one of a short list, such as an exception's class name.
        """
        name = str(project)
        with self._lock:  # whoever may ask for predictions must not make the list of projects long
            if project is not None and len(self._projects) < _PROJECTS:
                self._projects[name] = project
            self._empty.labels(name if name in self._projects else "other", reason).inc()

    def empty_answers(self) -> dict[ProjectKey | None, dict[str, int]]:
        """Their numbers by project and reason, the most frequent first; None: of further and unknown projects."""
        with self._lock:
            samples = [
                each for family in self._empty.collect() for each in family.samples if each.name.endswith("_total")
            ]
        found: dict[ProjectKey | None, dict[str, int]] = {}
        for each in sorted(samples, key=lambda each: -each.value):
            project = self._projects.get(each.labels["project"])
            found.setdefault(project, {})[each.labels["reason"]] = int(each.value)
        return found

    def event(self, action: str) -> None:
        self._events.labels(action if action in _EVENTS else "other").inc()

    def compared_instead(self, kind: str) -> None:
        """A webhook could not be used, and its project is compared with Label Studio instead."""
        self._compared_instead.labels(kind).inc()

    def suggestion_lost(self) -> None:
        self._suggestions_lost.inc()

    def model_ready(self, name: str, version: str, *, switched: bool = False) -> None:
        """The model that answers from now on; switched: in place of another one."""
        self._model.info({"name": name, "version": version})
        self._switches.inc(int(switched))

    def model_failed(self) -> None:
        """A model could not be loaded; the one before it, if any, goes on answering."""
        self._load_failures.inc()

    def render(self) -> bytes:
        """Everything, in the format that `content_type` names."""
        return generate_latest(self._registry)
