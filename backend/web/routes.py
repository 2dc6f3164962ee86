"""The routes, as Label Studio 1.23 calls them and people look at them: one Flask blueprint for each group.

Label Studio drops whatever is not a 200 and shows the annotator nothing, so `/predict` answers 200 with one entry for
each task whatever happens; the log has the reason under the request's id. It waits 1 s for `/health`, 3 s for `/setup`.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from backend.errors import BadRequest, RequestTooLarge, Unauthorized
from backend.metrics import Metrics
from backend.service.service import SemsamService
from backend.settings import Settings
from backend.web.pages import SECURITY, render, render_gate
from backend.web.throttle import Throttle
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

HEALTH, METRICS, WEBHOOK = "monitoring.health", "monitoring.metrics", "events.webhook"  #: Flask's names of routes
#: Lists and objects in a body: while they are made, nobody else is answered. 10,000 polygons of 100 points have half.
MAX_LISTS = 2_000_000
MAX_TASKS = 50_000  #: of one call of /predict, for the same reason
MAX_REFUSED_BODY = 4 * 2**20  #: bytes of a webhook without secret
MAX_JOB = 2**63 - 1  #: number of a job: what a database takes


def predictions(settings: Settings, service: SemsamService, metrics: Metrics) -> Blueprint:
    """/setup and /predict."""
    blueprint = Blueprint("predictions", __name__)
    throttle = Throttle(settings.threads, settings.queued, settings.queue_seconds, metrics.waiting)
    full = (
        f"{settings.threads} predictions are running, the setting threads (SEMSAM_THREADS), and {settings.queued} wait"
        f" (SEMSAM_QUEUED), or this one has waited {settings.queue_seconds:g} s (SEMSAM_QUEUE_SECONDS)"
    )

    @blueprint.post("/setup")
    def setup() -> Response:
        return json_response(service.setup(read_json_object(settings.max_body_bytes)))

    @blueprint.post("/predict")
    def predict() -> Response:
        body = read_json_object(settings.max_body_bytes)
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise BadRequest(f"tasks: expected a list, got {type(tasks).__name__}")
        if len(tasks) > MAX_TASKS:
            raise RequestTooLarge(f"tasks: expected at most {MAX_TASKS}, got {len(tasks)}; send fewer at a time")
        g.tasks = len(tasks)
        began = time.perf_counter()
        with throttle.place(g.project) as free:
            metrics.stage("wait", time.perf_counter() - began)
            if free:
                return answer(body, tasks)
            log.warning("request %s: %d empty answers: busy: %s", g.request_id, len(tasks), full)
            return empty(body, "busy")

    def answer(body: dict[str, Any], tasks: list[Any]) -> Response:
        try:
            results = service.predict_request(body, g.request_id)
            if len(results) != len(tasks):
                raise RuntimeError(f"the service gave {len(results)} predictions for {len(tasks)} tasks")
            return json_response({"results": results})
        except SemsamError as error:
            log.warning("request %s: %d empty answers: %s", g.request_id, len(tasks), error)
            return empty(body, type(error).__name__)
        except Exception:
            log.exception("request %s: %d empty answers: unexpected failure", g.request_id, len(tasks))
            return empty(body, "unexpected")

    def empty(body: dict[str, Any], reason: str) -> Response:
        project = service.project_of(body)
        for _ in body["tasks"]:
            metrics.empty_answer(reason, project)
        return json_response({"results": [{"result": [], "score": 0.0} for _ in body["tasks"]]})

    return blueprint


def events(settings: Settings, service: SemsamService) -> Blueprint:
    """/webhook."""
    blueprint = Blueprint("events", __name__)

    @blueprint.post("/webhook")
    def webhook() -> Response:
        if g.rights == "all":
            return json_response(service.event(read_json_object(settings.max_body_bytes)))
        # Label Studio's Start Training button: sent as /predict is, without the webhook's headers
        try:
            body = read_json_object(min(MAX_REFUSED_BODY, settings.max_body_bytes))
        except RequestTooLarge:
            service.refused_event(None)
            raise
        if body.get("action") == "START_TRAINING" and g.rights == "training":
            return json_response(service.event(body))
        service.refused_event(body)
        raise Unauthorized(
            "webhook secret: missing or wrong; give the webhook the header X-Semsam-Secret. Its project is compared"
        )

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
        return page_response(render_gate(report.job, datetime.now(UTC)) if report.html is None else report.html)

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


def read_json_object(limit: int) -> dict[str, Any]:
    """The current request's body, a JSON object of at most `limit` bytes. Notes its project for the log.

    Raises BadRequest, RequestTooLarge.
    """
    # One more, to tell a body at the limit from one over it: where no length is announced, werkzeug just cuts
    request.max_content_length = limit + 1
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge:
        data = None
    except OSError:
        raise BadRequest("request body: it did not arrive whole, or not in time") from None
    if data is None or len(data) > limit:
        raise RequestTooLarge(
            f"request body: more than {limit} bytes, the setting max_body_bytes (SEMSAM_MAX_BODY_BYTES)"
        )
    lists = data.count(b"[") + data.count(b"{")
    if lists > MAX_LISTS:
        raise RequestTooLarge(f"request body: expected at most {MAX_LISTS} lists and objects, got {lists}; send less")
    try:
        body = json.loads(data)  # accepts NaN, which is not JSON: refused where it is a coordinate
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"request body: expected JSON, cannot be read ({type(error).__name__})") from None
    if not isinstance(body, dict):
        raise BadRequest(f"request body: expected a JSON object, got {type(body).__name__}")
    g.project = _loggable(body.get("project"))
    return body


def _loggable(project: Any) -> str:
    """The project for a log line: /setup and /predict give `id.created`, webhooks the whole project."""
    if isinstance(project, dict):
        project = project.get("id")
    return ascii(project)[:40].strip("'") if isinstance(project, str | int | float) else "-"


def json_response(content: dict[str, Any]) -> Response:
    """Raises TypeError, ValueError for what is not JSON, NaN included."""
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), mimetype="application/json")


def page_response(html: str) -> Response:
    """A page that may load nothing, run nothing and stay in no cache."""
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = SECURITY
    response.headers["Cache-Control"] = "no-store"
    return response
