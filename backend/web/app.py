"""The WSGI application: the routes of `routes`, who may call them, one log line a request, errors as JSON.

HTTP Basic is for every route but /health; the webhook may have a secret of its own.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
import re
import time
import uuid
from typing import Literal

from flask import Flask, Request, Response, g, request
from jinja2.utils import htmlsafe_json_dumps
from werkzeug.exceptions import HTTPException

from backend.errors import Unauthorized, http_status
from backend.metrics import Metrics
from backend.service.service import SemsamService
from backend.settings import Settings, plain
from backend.web import routes
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ASKED_ALL_THE_TIME = (routes.HEALTH, routes.METRICS)
#: "training": may ask for training only, which brings no data.
Rights = Literal["all", "training"]


def create_app(settings: Settings, service: SemsamService, metrics: Metrics) -> Flask:
    """The application over `service`."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would lose the body
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1  # see `read_json_object`
    app.register_blueprint(routes.predictions(settings, service, metrics))
    app.register_blueprint(routes.events(settings, service))
    app.register_blueprint(routes.pages(service))
    app.register_blueprint(routes.monitoring(service, metrics))
    _check_and_log_requests(app, settings, metrics)
    _answer_errors_as_json(app)
    return app


def _check_and_log_requests(app: Flask, settings: Settings, metrics: Metrics) -> None:
    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:12]
        g.rights = rights_of(request, settings, webhook=request.endpoint == routes.WEBHOOK)
        if request.endpoint not in (routes.HEALTH, routes.WEBHOOK) and g.rights is None:
            raise Unauthorized("credentials: missing or wrong; set user and password where the backend is connected")

    @app.after_request
    def end(response: Response) -> Response:
        rule = request.url_rule.rule if request.url_rule else "other"
        metrics.request(rule, response.status_code)
        milliseconds = 1000 * (time.perf_counter() - g.started)
        quiet = request.endpoint in _ASKED_ALL_THE_TIME and response.status_code == 200
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request %s %s %s %d %.0f ms project %s tasks %s",
            g.request_id,
            request.method,
            rule,
            response.status_code,
            milliseconds,
            g.get("project", "-"),
            g.get("tasks", "-"),
        )
        response.headers["X-Request-Id"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _answer_errors_as_json(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = error_response(error.description or error.name, error.code or 500)
        # 405 must say what is allowed
        response.headers.extend([(name, value) for name, value in error.get_headers() if name != "Content-Type"])
        return response

    @app.errorhandler(SemsamError)
    def semsam_error(error: SemsamError) -> Response:
        log.warning("request %s: %s: %s", g.request_id, type(error).__name__, error)
        response = error_response(str(error), http_status(error))
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = 'Basic realm="semsam", charset="UTF-8"'
        return response

    @app.errorhandler(Exception)
    def unexpected_error(error: Exception) -> Response:
        log.error("request %s: unexpected failure", g.request_id, exc_info=error)
        return error_response("unexpected failure; the backend's log has the reason under this request_id", 500)


def error_response(message: str, status: int) -> Response:
    """Messages quote what came; escaped, they stay text wherever someone pastes them into a page."""
    body = htmlsafe_json_dumps({"error": message, "status": status, "request_id": g.request_id})
    return Response(str(body), status=status, mimetype="application/json")


def rights_of(request: Request, settings: Settings, *, webhook: bool) -> Rights | None:
    """What a request may do, by the credentials it carries and those that the settings require; None for nothing.

    webhook: whether it is a call of /webhook. Where only a webhook secret is set, a webhook without it may still ask
    for training, as anyone may who can reach the other routes.
    """
    basic_required = settings.basic_auth_user is not None
    secret_required = webhook and settings.webhook_secret is not None
    if not basic_required and not secret_required:
        return "all"
    user_and_password = f"{settings.basic_auth_user}:{plain(settings.basic_auth_pass)}"
    if basic_required and _equal(_basic_credentials(request), user_and_password):
        return "all"
    secret = request.headers.get("X-Semsam-Secret", "").encode("latin-1")  # the bytes that came
    if secret_required and _equal(secret, plain(settings.webhook_secret) or ""):
        return "all"
    return None if basic_required else "training"


def _basic_credentials(request: Request) -> bytes:
    """`user:password` as the bytes that came; empty when there are none."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        return base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _equal(given: bytes, expected: str) -> bool:
    """Equal as UTF-8 or as Latin-1, which Label Studio's client sends; the time taken does not depend on `given`."""
    equal = hmac.compare_digest(given, expected.encode())
    with contextlib.suppress(UnicodeEncodeError):
        equal |= hmac.compare_digest(given, expected.encode("latin-1"))
    return equal
