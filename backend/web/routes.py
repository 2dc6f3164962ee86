"""The routes, as Label Studio 1.23 calls them and people look at them: one Flask blueprint for each group.

Label Studio drops whatever is not a 200 and shows the annotator nothing, so `/predict` answers 200 with one entry for
each task whatever happens; the log has the reason under the request's id. It waits 1 s for `/health`, 3 s for `/setup`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, g, request

from backend.errors import BadRequest, Unauthorized
from backend.metrics import Metrics
from backend.settings import Settings
from backend.web.bodies import json_response, page_response, read_json_object
from backend.web.pages import render, render_gate
from backend.web.throttle import Throttle
from semsam_model.errors import SemsamError

if TYPE_CHECKING:  # the store and its libraries
    from backend.service.service import SemsamService

log = logging.getLogger(__name__)

HEALTH, METRICS, WEBHOOK = "monitoring.health", "monitoring.metrics", "events.webhook"  #: Flask's names of routes
MAX_TRAINING_BODY = 4 * 2**20  #: bytes of a webhook without secret
MAX_JOB = 2**63 - 1  #: number of a job: what a database takes


def predictions(settings: Settings, service: SemsamService, metrics: Metrics) -> Blueprint:
    """/setup and /predict."""
    blueprint = Blueprint("predictions", __name__)
    throttle = Throttle(settings.threads)

    @blueprint.post("/setup")
    def setup() -> Response:
        return json_response(service.setup(read_json_object(settings.max_body_bytes)))

    @blueprint.post("/predict")
    def predict() -> Response:
        with throttle.place() as free:  # from before the body is read: a slow sender takes a place too
            body = read_json_object(settings.max_body_bytes)
            tasks = body.get("tasks")
            if not isinstance(tasks, list):
                raise BadRequest(f"tasks: expected a list, got {type(tasks).__name__}")
            g.tasks = len(tasks)
            if free:
                return answer(body, tasks)
            running = f"{settings.threads} predictions are running, the setting threads (SEMSAM_THREADS)"
            log.warning("request %s: %d empty answers: busy: %s", g.request_id, len(tasks), running)
            return empty(tasks, "busy")

    def answer(body: dict[str, Any], tasks: list[Any]) -> Response:
        try:
            results = service.predict_request(body, g.request_id)
            if len(results) != len(tasks):
                raise RuntimeError(f"the service gave {len(results)} predictions for {len(tasks)} tasks")
            return json_response({"results": results})
        except SemsamError as error:
            log.warning("request %s: %d empty answers: %s", g.request_id, len(tasks), error)
            return empty(tasks, type(error).__name__)
        except Exception:
            log.exception("request %s: %d empty answers: unexpected failure", g.request_id, len(tasks))
            return empty(tasks, "unexpected")

    def empty(tasks: list[Any], reason: str) -> Response:
        for _ in tasks:
            metrics.empty_answer(reason)
        return json_response({"results": [{"result": [], "score": 0.0} for _ in tasks]})

    return blueprint


def events(settings: Settings, service: SemsamService) -> Blueprint:
    """/webhook."""
    blueprint = Blueprint("events", __name__)

    @blueprint.post("/webhook")
    def webhook() -> Response:
        if g.rights == "all":
            return json_response(service.event(read_json_object(settings.max_body_bytes)))
        # Label Studio's Start Training button: sent as /predict is, without the webhook's headers
        body = read_json_object(min(MAX_TRAINING_BODY, settings.max_body_bytes))
        if body.get("action") != "START_TRAINING":
            raise Unauthorized("webhook secret: missing or wrong; give the webhook the header X-Semsam-Secret")
        return json_response(service.event(body))

    return blueprint


def pages(service: SemsamService) -> Blueprint:
    """What people look at: / and /gate/JOB."""
    blueprint = Blueprint("pages", __name__)

    @blueprint.get("/")
    def index() -> Response:
        address = request.url_root.rstrip("/")
        page = render(service.status(), service.health(), service.versions(), address, datetime.now(UTC))
        return page_response(page)

    @blueprint.get(f"/gate/<int(max={MAX_JOB}):job>")
    def gate(job: int) -> Response:
        report = service.gate_report(job)
        html = report.html if report.html is not None else render_gate(report.job, datetime.now(UTC))
        assert html is not None  # a report is of a job that was judged
        return page_response(html)

    return blueprint


def monitoring(service: SemsamService, metrics: Metrics) -> Blueprint:
    """/health, /versions and /metrics."""
    blueprint = Blueprint("monitoring", __name__)

    @blueprint.get("/health")
    def health() -> Response:
        return json_response(service.health())

    @blueprint.get("/versions")
    def versions() -> Response:
        return json_response(service.versions())

    @blueprint.get("/metrics", endpoint="metrics")
    def render_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics.content_type)

    return blueprint
