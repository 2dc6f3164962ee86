"""HTTP: routes as Label Studio 1.23 calls them, who may call, how much may be sent, errors as JSON. No pixels here.

Label Studio drops whatever is not a 200 and shows the annotator nothing, so `/predict` answers 200 with one entry a
task whatever happens, and the reason is in the log under the request's id. It gives `/health` 1 s, `/setup` 3 s.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from flask import Flask, Response, g, request
from gunicorn.app.base import BaseApplication
from gunicorn.errors import AppImportError
from jinja2.utils import htmlsafe_json_dumps
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from backend.errors import BadRequest, RequestTooLarge, Unauthorized, http_status
from backend.metrics import Metrics
from backend.service.status import Status
from backend.settings import Settings, load_settings
from backend.web.pages import SECURITY, render
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

EXIT_CANNOT_LISTEN = 98  # the errno of an address in use
SPARE_THREADS = 4  #: beyond the predictions, so that /health and /setup are answered whatever the others do
QUEUED = 2  #: predictions that wait for a place; each holds a spare thread meanwhile
MAX_TRAINING_BODY = 4 * 2**20  #: of a webhook without secret
QUEUE_S = 3.0  #: seconds that they wait
MAX_NUMBER = 2**63 - 1  #: of a job: what a database takes
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Service(Protocol):
    """What the routes call; `backend.service.service.SemsamService` is one."""

    def health(self) -> dict[str, Any]:
        """At least `status` and `model_version`; at once."""

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """At least `model_version`; at once."""

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        """One prediction for each task, in order."""

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take note of a webhook delivery; at once."""

    def status(self) -> Status:
        """What the store tells about annotators' work."""

    def gate_report(self, job: int) -> str:
        """An HTML page: what the gate saw of a fine-tuning job."""

    def versions(self) -> dict[str, Any]:
        """At least `versions`, names of those that can answer; at once."""


def create_app(settings: Settings, service: Service, metrics: Metrics) -> Flask:
    """The WSGI application over `service`."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would lose the body
    # One more, to tell a body at the limit from one over it: where no length is announced, werkzeug just cuts
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1
    places = _Places(settings.threads)

    @app.get("/")
    def index() -> Response:
        address = request.url_root.rstrip("/")
        page = render(service.status(), service.health(), service.versions(), address, datetime.now(UTC))
        return _page(page)

    @app.get(f"/gate/<int(max={MAX_NUMBER}):job>")
    def gate(job: int) -> Response:
        return _page(service.gate_report(job))

    @app.get("/health")
    def health() -> Response:
        return _json(service.health())

    @app.post("/setup")
    def setup() -> Response:
        return _json(service.setup(_body(settings)))

    @app.post("/predict")
    def predict() -> Response:
        with places.one() as free:  # from before the body is read: a slow sender takes a place too
            body = _body(settings)
            tasks = body.get("tasks")
            if not isinstance(tasks, list):
                raise BadRequest(f"tasks: expected a list, got {type(tasks).__name__}")
            g.tasks = len(tasks)
            if free:
                return answer(body, tasks)
            line = (
                "request %s: %d empty answers: busy: %d predictions are running, the setting threads (SEMSAM_THREADS)"
            )
            log.warning(line, g.request_id, len(tasks), settings.threads)
            return empty(tasks, "busy")

    def answer(body: dict[str, Any], tasks: list[Any]) -> Response:
        try:
            results = service.predict_request(body, g.request_id)
            if len(results) != len(tasks):
                raise RuntimeError(f"the service gave {len(results)} predictions for {len(tasks)} tasks")
            return _json({"results": results})
        except SemsamError as error:
            log.warning("request %s: %d empty answers: %s", g.request_id, len(tasks), error)
            return empty(tasks, type(error).__name__)
        except Exception:
            log.exception("request %s: %d empty answers: unexpected failure", g.request_id, len(tasks))
            return empty(tasks, "unexpected")

    def empty(tasks: list[Any], reason: str) -> Response:
        for _ in tasks:
            metrics.empty_answer(reason)
        return _json({"results": [{"result": [], "score": 0.0} for _ in tasks]})

    @app.post("/webhook")
    def webhook() -> Response:
        if g.rights == "all":
            return _json(service.event(_body(settings)))
        # Label Studio's Start Training button: sent as /predict is, without the webhook's headers
        body = _body(settings, MAX_TRAINING_BODY)
        if body.get("action") != "START_TRAINING":
            raise Unauthorized("webhook secret: missing or wrong; give the webhook the header X-Semsam-Secret")
        return _json(service.event(body))

    @app.get("/versions")
    def versions() -> Response:
        return _json(service.versions())

    @app.get("/metrics")
    def render_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics.content_type)

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        wanted = request.headers.get("X-Request-Id", "")
        g.request_id = wanted if _REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex[:12]
        g.rights = _rights(settings, request.endpoint == "webhook")
        if request.endpoint != "health" and g.rights is None:
            raise Unauthorized("credentials: missing or wrong; set user and password where the backend is connected")

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "other"
        metrics.request(route, response.status_code)
        milliseconds = 1000 * (time.perf_counter() - g.started)
        line = "request %s %s %s %d %.0f ms project %s tasks %s"
        # Label Studio asks for these two all the time
        level = logging.DEBUG if route in ("/health", "/metrics") and response.status_code == 200 else logging.INFO
        values = (g.request_id, request.method, route, response.status_code, milliseconds)
        log.log(level, line, *values, g.get("project", "-"), g.get("tasks", "-"))
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = _error(error.description or error.name, error.code or 500)
        # 405 must say what is allowed
        response.headers.extend([(name, value) for name, value in error.get_headers() if name != "Content-Type"])
        return response

    @app.errorhandler(SemsamError)
    def ours(error: SemsamError) -> Response:
        log.warning("request %s: %s: %s", g.request_id, type(error).__name__, error)
        response = _error(str(error), http_status(error))
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = 'Basic realm="semsam", charset="UTF-8"'
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("request %s: unexpected failure", g.request_id, exc_info=error)
        return _error("unexpected failure; the backend's log has the reason under this request_id", 500)

    return app


class _Places:
    """Places for predictions that run at the same time, and a short queue for them."""

    def __init__(self, count: int) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._queue = threading.BoundedSemaphore(QUEUED)

    @contextlib.contextmanager
    def one(self) -> Iterator[bool]:
        """Hold a place; False where none came free in time."""
        got = self._free.acquire(blocking=False) or self._wait()
        try:
            yield got
        finally:
            if got:
                self._free.release()

    def _wait(self) -> bool:
        if not self._queue.acquire(blocking=False):
            return False
        try:
            return self._free.acquire(timeout=QUEUE_S)
        finally:
            self._queue.release()


def _rights(settings: Settings, is_webhook: bool) -> Literal["all", "training"] | None:
    """What the current request may do, by what it carries and what the settings ask for.

    "training": a webhook may only ask for training, which brings no data and is what a connection may do, too.
    """
    wants_basic = settings.basic_auth_user is not None
    wants_secret = is_webhook and settings.webhook_secret is not None
    if not wants_basic and not wants_secret:
        return "all"
    expected = f"{settings.basic_auth_user}:{settings.basic_auth_pass}"
    basic = wants_basic and _same(_basic_credentials(), expected)
    secret = request.headers.get("X-Semsam-Secret", "").encode("latin-1")  # the bytes that came
    if basic or (wants_secret and _same(secret, settings.webhook_secret or "")):
        return "all"
    return None if wants_basic else "training"


def _basic_credentials() -> bytes:
    """`user:password` as the bytes that came; empty when there are none."""
    kind, _, coded = request.headers.get("Authorization", "").partition(" ")
    try:
        return base64.b64decode(coded.strip(), validate=True) if kind.lower() == "basic" else b""
    except ValueError:
        return b""


def _same(given: bytes, expected: str) -> bool:
    """Equal as UTF-8 or Latin-1, which Label Studio's client sends; in a time that does not tell where they differ."""
    same = hmac.compare_digest(given, expected.encode())
    with contextlib.suppress(UnicodeEncodeError):
        same |= hmac.compare_digest(given, expected.encode("latin-1"))
    return same


def _body(settings: Settings, limit: int | None = None) -> dict[str, Any]:
    """The request's JSON object, of at most `limit` bytes (default: `max_body_bytes`).

    Raises BadRequest, RequestTooLarge.
    """
    limit = min(limit or settings.max_body_bytes, settings.max_body_bytes)
    request.max_content_length = limit + 1
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge:
        data = None
    if data is None or len(data) > limit:
        raise RequestTooLarge(
            f"request body: more than {limit} bytes, the setting max_body_bytes (SEMSAM_MAX_BODY_BYTES)"
        )
    try:
        body = json.loads(data)  # NaN too, which is no JSON: refused where it is a coordinate, as every wrong field is
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"request body: expected JSON, cannot be read ({type(error).__name__})") from None
    if not isinstance(body, dict):
        raise BadRequest(f"request body: expected a JSON object, got {type(body).__name__}")
    g.project = _printable(body.get("project"))
    return body


def _printable(project: Any) -> str:
    """The project for a log line: /setup and /predict give `id.created`, webhooks the whole project."""
    if isinstance(project, dict):
        project = project.get("id")
    return ascii(project)[:40].strip("'") if isinstance(project, str | int | float) else "-"


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), mimetype="application/json")


def _page(html: str) -> Response:
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = SECURITY
    response.headers["Cache-Control"] = "no-store"
    return response


def _error(message: str, status: int) -> Response:
    # Messages quote what came; escaped, they stay text wherever someone pastes them into a page.
    body = htmlsafe_json_dumps({"error": message, "status": status, "request_id": g.request_id})
    return Response(str(body), status=status, mimetype="application/json")


# ---- the process


def create_from_env() -> Flask:
    """The application as the settings file and environment say: `gunicorn 'backend.web.app:create_from_env()'`."""
    return _build(load_settings())


def _build(settings: Settings) -> Flask:
    from backend.service.service import build_service

    metrics = Metrics()
    return create_app(settings, build_service(settings, metrics), metrics)


def _check(settings: Settings) -> None:
    from backend.service.service import served_weights

    served_weights(settings)


def serve(
    settings: Settings,
    build: Callable[[Settings], Flask] = _build,
    check: Callable[[Settings], None] = _check,
) -> None:
    """Serve until told to stop: one process, since the model and its cache are large, and `threads` predictions.

    check: called before the port opens; what it raises is raised. build: called after, in the worker; it is to be
    quick, for those who connect wait for it. Exits with EXIT_CANNOT_LISTEN and one line when the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.ExitStack() as unused:
            unused.callback(listener.close)
            listener.bind((settings.host, settings.port))  # nobody can connect before it listens
            check(settings)
            listener.listen(256)
            unused.pop_all()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        print(
            f"semsam: cannot listen on {settings.host} port {settings.port}: {reason};"
            " choose another with --port or SEMSAM_PORT",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_CANNOT_LISTEN) from None
    _Gunicorn(settings, listener, build).run()


class _Gunicorn(BaseApplication):
    """gunicorn with our settings instead of a command line."""

    def __init__(self, settings: Settings, listener: socket.socket, build: Callable[[Settings], Flask]) -> None:
        self._settings = settings
        self._port = listener.getsockname()[1]
        self._descriptor = listener.detach()  # gunicorn closes it
        self._build = build
        super().__init__()

    def load_config(self) -> None:
        values: dict[str, Any] = {
            "bind": f"fd://{self._descriptor}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": self._settings.threads + SPARE_THREADS,
            "preload_app": False,  # torch does not survive a fork
            "timeout": 120,  # a worker that is stuck, not a slow request: threads answer for themselves
            "graceful_timeout": 10,
            "loglevel": "warning",
            "post_worker_init": self._say_ready,
            "control_socket_disable": True,
        }
        for name, value in values.items():
            if name in self.cfg.settings:  # the last one is unknown to gunicorn before 25
                self.cfg.set(name, value)

    def _say_ready(self, _: object) -> None:
        log.info("listening on http://%s:%d", self._settings.host, self._port)

    def load(self) -> Flask:
        try:
            return self._build(self._settings)
        except SemsamError as error:
            # The one error that gunicorn prints as a line and does not answer with another try
            raise AppImportError(f"semsam: {error}") from None
