"""The bodies that Label Studio posts, read field by field into values; coordinates stay percent, as sent.

Whatever is malformed raises BadRequest naming the field, the value and the form expected, or is noted as the problem of
its task; nothing else is raised, whatever the JSON. Written against what Label Studio 1.23 really sends.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backend.errors import BadRequest
from backend.label_studio.label_config import PROMPT_TAGS, LabelConfig

Size = tuple[int, int]

MAX_PROMPT_ROWS = 500

MISSING = object()


def _shown(value: Any) -> str:
    # reprlib, because a hostile value may be nested as deep as the JSON reader allows.
    return "nothing" if value is MISSING else reprlib.repr(value)


def wrong_field(name: str, expected: str, value: Any) -> BadRequest:
    return BadRequest(f"{name}: expected {expected}, got {_shown(value)}")


def as_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_field(name, "an object", value)
    return value


def as_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_field(name, "a list", value)
    return value


def as_number(value: Any, name: str, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_field(name, expected, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise wrong_field(name, expected, value)
    return number


def _id(value: Any, name: str) -> int | None:
    if value is None or value is MISSING:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_field(name, "an integer", value)
    return value


def declared_size(row: Mapping[str, Any], name: str) -> Size | None:
    """(H, W) as a row declares it, or None: rows of text carry no size."""
    height, width = row.get("original_height"), row.get("original_width")
    if height is None and width is None:
        return None
    sides = []
    for key, value in (("original_height", height), ("original_width", width)):
        side = as_number(MISSING if value is None else value, f"{name}.{key}", "a whole number of pixels from 1")
        if side < 1 or side != int(side) or side > 1 << 30:
            raise wrong_field(f"{name}.{key}", "a whole number of pixels from 1", value)
        sides.append(int(side))
    return sides[0], sides[1]


def _project_id(value: Any, name: str) -> int | None:
    """`45` or `"45.1795362232"`, the form in which Label Studio names a project to a backend; None when missing."""
    if isinstance(value, str):
        digits = value.split(".")[0]
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise wrong_field(name, 'a project such as "45.1795362232"', value)
        return int(digits)
    return _id(value, name)


def _project_key(value: Any) -> str | None:
    """The whole text, creation time included: two Label Studio servers may both have a project 45."""
    return None if value is None else str(value)


# ------------------------------------------------------------------------------------------------------------- /predict


@dataclass(frozen=True)
class TaskRef:
    """One task of a request. Without a usable photo address `image_url` is None and `problem` says why."""

    id: int | None
    project: int | None
    data: Mapping[str, Any]
    image_url: str | None
    problem: str | None = None


@dataclass(frozen=True)
class PromptRow:
    """One prompt as sent: a keypoint, a rectangle (percent, degrees), or text."""

    kind: Literal["keypoint", "rectangle", "text"]
    control: str
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    rotation: float = 0.0
    positive: bool = True
    text: tuple[str, ...] = ()
    size: Size | None = None  #: (H, W) of the photo as the editor knows it


@dataclass(frozen=True)
class PredictRequest:
    """A parsed /predict body. `context` is None for a batch; a tuple, perhaps empty, for an interactive request."""

    project: int | None
    config: LabelConfig
    tasks: tuple[TaskRef, ...]
    context: tuple[PromptRow, ...] | None
    ignored: tuple[str, ...] = ()  #: rows of the context that are no prompts, in words for the log
    project_key: str | None = None  #: the project as Label Studio sends it, "45.1795362232": unlike any other server's


def parse_predict(body: Any) -> PredictRequest:
    """The body of POST /predict. Raises BadRequest.

    A task that names no photo, or is malformed, keeps its place, with `problem`: the others are answered.
    """
    body = as_object(body, "body")
    xml = body.get("label_config", MISSING)
    if not isinstance(xml, str):
        raise wrong_field("label_config", "the project's labeling config as text", xml)
    config = LabelConfig.parse(xml)
    project, key = _project_id(body.get("project"), "project"), _project_key(body.get("project"))
    tasks = tuple(
        _task(task, f"tasks[{k}]", project, config)
        for k, task in enumerate(as_list(body.get("tasks", MISSING), "tasks"))
    )
    params = as_object(body.get("params") or {}, "params")
    if params.get("context") is None:
        return PredictRequest(project, config, tasks, None, project_key=key)
    context = as_object(params["context"], "params.context")
    prompts, ignored = _prompt_rows(context.get("result") or [], "params.context.result")
    return PredictRequest(project, config, tasks, prompts, ignored, key)


def _task(value: Any, name: str, project: int | None, config: LabelConfig) -> TaskRef:
    task_id: int | None = None
    try:
        task = as_object(value, name)
        task_id = _id(task.get("id"), f"{name}.id")
        own = _id(task.get("project"), f"{name}.project")
        data = as_object(task.get("data", MISSING), f"{name}.data")
    except BadRequest as exc:
        return TaskRef(task_id, project, {}, None, str(exc))
    try:
        url, problem = config.image_url(data), None
    except BadRequest as exc:
        url, problem = None, f"task {task_id}: {exc}"
    return TaskRef(task_id, project if own is None else own, data, url, problem)


def _prompt_rows(value: Any, name: str) -> tuple[tuple[PromptRow, ...], tuple[str, ...]]:
    """Rows that are prompts, in order, one an id: drawn while a label was active, a prompt arrives in several rows."""
    rows = as_list(value, name)
    if len(rows) > MAX_PROMPT_ROWS:
        raise BadRequest(f"{name}: expected at most {MAX_PROMPT_ROWS} rows, got {len(rows)}; delete old points")
    prompts: list[PromptRow] = []
    ignored: list[str] = []
    seen: set[str] = set()
    for k, raw in enumerate(rows):
        at = f"{name}[{k}]"
        row = as_object(raw, at)
        kind = row.get("type", MISSING)
        if not isinstance(kind, str):
            raise wrong_field(f"{at}.type", "text", kind)
        if kind not in PROMPT_TAGS and kind != "textarea":
            ignored.append(f"{at}: a {kind[:40]!r} row is no prompt")
            continue
        own_id = row.get("id")
        if isinstance(own_id, str) and own_id in seen:
            ignored.append(f"{at}: second row of {own_id[:40]!r}")
            continue
        prompts.append(_prompt_row(row, at))
        if isinstance(own_id, str):
            seen.add(own_id)
    return tuple(prompts), tuple(ignored)


def _prompt_row(row: Mapping[str, Any], name: str) -> PromptRow:
    control = row.get("from_name")
    control = control if isinstance(control, str) else ""
    value = as_object(row.get("value", MISSING), f"{name}.value")
    size = declared_size(row, name)
    if row["type"] == "textarea":
        text = value.get("text", MISSING)
        texts = [text] if isinstance(text, str) else as_list(text, f"{name}.value.text")
        if not all(isinstance(line, str) for line in texts):
            raise wrong_field(f"{name}.value.text", "text or a list of texts", text)
        return PromptRow("text", control, text=tuple(line.strip() for line in texts if line.strip()), size=size)
    positive = row.get("is_positive")
    if positive is not None and not isinstance(positive, bool):
        raise wrong_field(f"{name}.is_positive", "true or false", positive)
    x, y = (as_number(value.get(key, MISSING), f"{name}.value.{key}", "a percent number") for key in ("x", "y"))
    if row["type"].startswith("keypoint"):
        return PromptRow("keypoint", control, x, y, positive=positive is not False, size=size)
    width, height = (
        as_number(value.get(key, MISSING), f"{name}.value.{key}", "a percent number") for key in ("width", "height")
    )
    rotation = as_number(value.get("rotation") or 0, f"{name}.value.rotation", "degrees")
    return PromptRow("rectangle", control, x, y, width, height, rotation, size=size)


# -------------------------------------------------------------------------------------------------- /setup and /webhook


@dataclass(frozen=True)
class Setup:
    """The body of POST /setup. The token is a secret and is left out of the repr."""

    project: int | None
    config: LabelConfig | None  #: None when it cannot be read
    hostname: str
    access_token: str = field(default="", repr=False)
    extra_params: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  #: of the config and of extra_params, in words
    project_key: str | None = None  #: as in PredictRequest


def parse_setup(body: Any) -> Setup:
    """The body of POST /setup.

    Label Studio posts it again and again and refuses the connection without a usable answer, so a labeling config or
    extra_params that cannot be read are `problems`, not errors. Raises BadRequest for a body of another form.
    """
    body = as_object(body, "body")
    text = {key: body.get(key) or "" for key in ("schema", "hostname", "access_token")}
    for key, value in text.items():
        if not isinstance(value, str):
            # The token must not reach a message.
            raise BadRequest(f"{key}: expected text, got {type(value).__name__}")
    problems: list[str] = []
    config: LabelConfig | None = None
    try:
        config = LabelConfig.parse(text["schema"])
        problems += config.problems()
    except BadRequest as exc:
        problems.append(str(exc))
    extra = body.get("extra_params") or {}
    if isinstance(extra, str):
        with contextlib.suppress(ValueError, RecursionError):
            extra = json.loads(extra)
    if not isinstance(extra, dict):
        problems.append('extra_params: expected a JSON object such as {"key": "value"}; it is not used')
        extra = {}
    project = _project_id(body.get("project"), "project")
    whole = _project_key(body.get("project"))
    return Setup(project, config, text["hostname"], text["access_token"], extra, tuple(problems), whole)


@dataclass(frozen=True)
class Event:
    """One webhook call: a hint that something changed. What is missing or odd is None or empty, never an error."""

    action: str
    project_id: int | None = None
    task_id: int | None = None
    annotation_ids: tuple[int, ...] = ()  #: several when annotations were deleted
    annotation: Mapping[str, Any] = field(default_factory=dict, repr=False)  #: as sent, for created and updated
    updated_at: str | None = None

    @property
    def annotation_id(self) -> int | None:
        return self.annotation_ids[0] if len(self.annotation_ids) == 1 else None


def parse_event(body: Any) -> Event:
    """The body of POST /webhook; any action is allowed. Raises BadRequest only when there is none, or no such word."""
    body = as_object(body, "body")
    action = body.get("action", MISSING)
    if not isinstance(action, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,64}", action):
        raise wrong_field("action", 'a word such as "ANNOTATION_CREATED"', action)
    annotation = _dict_or_empty(body.get("annotation"))
    task = _plain_id(_dict_or_empty(body.get("task")).get("id"))
    project = _plain_id(_dict_or_empty(body.get("project")).get("id"))
    several = body.get("annotations")
    listed = several if isinstance(several, list) else []
    ids = [_plain_id(_dict_or_empty(each).get("id")) for each in [annotation, *listed]]
    updated_at = annotation.get("updated_at")
    return Event(
        action,
        project if project is not None else _plain_id(annotation.get("project")),
        task if task is not None else _plain_id(annotation.get("task")),
        tuple(each for each in ids if each is not None),
        annotation,
        updated_at if isinstance(updated_at, str) else None,
    )


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain_id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
