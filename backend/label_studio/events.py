"""What a webhook brings, cut down to what the store needs: no token of the project, no second copy of a mask."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.errors import BadRequest
from backend.label_studio.annotations import is_id
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey
from semsam_model.masks.label_studio import region_shape

#: Events with something to keep; the others are counted, and nothing else.
KEPT = frozenset(
    {
        *("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"),
        *("ANNOTATION_DELETED", "TASKS_DELETED", "PROJECT_DELETED"),
    }
)


@dataclass(frozen=True)
class WebhookEvent:
    """One event, on its way into the store."""

    key: ProjectKey
    title: str | None = None
    label_config: str | None = None
    project_updated_at: datetime | None = None
    task: int | None = None
    image_url: str | None = None
    annotations: tuple[Any, ...] = ()  #: as Label Studio writes them
    deleted_annotations: tuple[int, ...] = ()
    deleted_tasks: tuple[int, ...] = ()
    project_deleted: bool = False

    def to_json(self) -> str:
        """ASCII text that `from_json` reads."""
        updated_at = self.project_updated_at.isoformat() if self.project_updated_at else None
        content = vars(self) | {"key": [self.key.origin, self.key.project], "project_updated_at": updated_at}
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WebhookEvent:
        """What `to_json` wrote."""
        content = json.loads(text)
        at = content["project_updated_at"]
        lists = ("annotations", "deleted_annotations", "deleted_tasks")
        return cls(
            **content
            | {"key": ProjectKey(*content["key"]), "project_updated_at": datetime.fromisoformat(at) if at else None}
            | {name: tuple(content[name]) for name in lists}
        )


def project_name(body: Mapping[str, Any]) -> str | None:
    """The project of an event as /setup names it, "45.1795362232": its id and when it was made, in seconds."""
    project = body.get("project")
    if not isinstance(project, dict) or not is_id(project.get("id")):
        return None
    with contextlib.suppress(LookupError, ValueError, TypeError, OverflowError):
        return f"{project['id']}.{int(datetime.fromisoformat(project['created_at']).timestamp())}"
    return str(project["id"])


def parse_webhook_event(body: Mapping[str, Any], origin: str) -> WebhookEvent:
    """The body of an event of `KEPT`, from the Label Studio at `origin`. Raises BadRequest without project or ids."""
    project = _object(body.get("project"))
    action = body.get("action")
    listed = body.get("annotations")
    several = listed if isinstance(listed, list) else []
    one = _object(body.get("annotation"))
    number: Any = project.get("id", one.get("project"))
    if not is_id(number):
        raise BadRequest(f"project.id of {action}: expected an id, got {str(number)[:40]!r}")
    key = ProjectKey(origin, number)
    if action == "PROJECT_DELETED":
        return WebhookEvent(key, project_deleted=True)
    if action == "TASKS_DELETED":
        return WebhookEvent(key, deleted_tasks=_ids(body.get("tasks")))
    if action in ("ANNOTATIONS_DELETED", "ANNOTATION_DELETED"):
        return WebhookEvent(key, deleted_annotations=_ids([*several, one] if one else several))
    title, config, task = project.get("title"), project.get("label_config"), _object(body.get("task"))
    config = config if isinstance(config, str) else None
    return WebhookEvent(
        key,
        title=title if isinstance(title, str) else None,
        label_config=config,
        project_updated_at=_time(project.get("updated_at")),
        task=task["id"] if is_id(task.get("id")) else None,
        image_url=image_url(config, _object(task.get("data"))),
        annotations=tuple(slim(each) for each in ([one] if one else several)),
    )


def image_url(label_config: str | None, data: Mapping[str, Any]) -> str | None:
    """What a task's data names as its picture; None where it names none."""
    try:
        return LabelConfig.parse(label_config).image_url(data) if label_config else None
    except BadRequest:
        return None


def slim(annotation: Any) -> Any:
    """An annotation without the copies of its masks that Label Studio puts into notes and choices, nor the copy of some
    prediction of the task, not always the one that it was begun from.
    """
    if not isinstance(annotation, dict):
        return annotation
    rows = annotation.get("result")
    kept = {name: value for name, value in annotation.items() if name != "prediction"}
    return kept | {"result": [_slim_row(row) for row in rows]} if isinstance(rows, list) else kept


def _slim_row(row: Any) -> Any:
    value = row.get("value") if isinstance(row, dict) else None
    if not isinstance(value, dict) or "rle" not in value or region_shape(row) is not None:
        return row
    return row | {"value": {name: part for name, part in value.items() if name != "rle"}}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ids(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else []
    found: list[Any] = [each.get("id") if isinstance(each, dict) else each for each in listed]
    return tuple(each for each in found if is_id(each))


def _time(value: Any) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError):
        parsed = datetime.fromisoformat(value)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return None
