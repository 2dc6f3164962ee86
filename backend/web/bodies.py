"""Bodies of requests and answers: JSON within a limit in, JSON and HTML out."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, g, request
from jinja2.utils import htmlsafe_json_dumps
from werkzeug.exceptions import RequestEntityTooLarge

from backend.errors import BadRequest, RequestTooLarge
from backend.web.pages import SECURITY


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
    if data is None or len(data) > limit:
        raise RequestTooLarge(
            f"request body: more than {limit} bytes, the setting max_body_bytes (SEMSAM_MAX_BODY_BYTES)"
        )
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


def error_response(message: str, status: int) -> Response:
    """Messages quote what came; escaped, they stay text wherever someone pastes them into a page."""
    body = htmlsafe_json_dumps({"error": message, "status": status, "request_id": g.request_id})
    return Response(str(body), status=status, mimetype="application/json")


def page_response(html: str) -> Response:
    """A page that may load nothing, run nothing and stay in no cache."""
    response = Response(html, mimetype="text/html")
    response.headers["Content-Security-Policy"] = SECURITY
    response.headers["Cache-Control"] = "no-store"
    return response
