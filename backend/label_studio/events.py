"""The body of POST /webhook, cut down to what the store needs: no token of the project, no second copy of a mask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import StringConstraints

from backend.errors import BadRequest
from backend.label_studio.fields import Id, Time, is_id
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey
from semsam_model.masks.label_studio import region_shape
from semsam_model.validation import Expected, JsonModel, Lenient, check, lenient

#: Events with something to keep; the others are counted, and nothing else.
KEPT = {
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATION_DELETED",
    "ANNOTATIONS_DELETED",
    "TASKS_DELETED",
    "PROJECT_DELETED",
}
_DELETE_ANNOTATIONS = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED")
_BRING_ANNOTATIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED")


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


class _Project(JsonModel):
    id: Any = None
    title: Lenient[str] = None
    label_config: Lenient[str] = None
    created_at: Lenient[Time] = None
    updated_at: Lenient[Time] = None


class _Task(JsonModel):
    id: Lenient[Id] = None
    data: Lenient[dict[Any, Any]] = None


class Webhook(JsonModel):
    """The body of POST /webhook: a hint that something changed. What is missing or odd is None, but for the action."""

    action: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,64}$"), Expected('a word such as "ANNOTATION_CREATED"')
    ]
    project: Lenient[_Project] = None
    task: Lenient[_Task] = None
    tasks: Lenient[list[Any]] = None
    annotation: Lenient[dict[Any, Any]] = None
    annotations: Lenient[list[Any]] = None

    @property
    def project_id(self) -> int | None:
        """Of the project, where the body names it, else of the annotation."""
        return lenient(Id, self._named_project)

    @property
    def _named_project(self) -> Any:
        if self.project is not None and self.project.id is not None:
            return self.project.id
        return (self.annotation or {}).get("project")

    @property
    def lacks_payload(self) -> bool:
        """Whether it is of `KEPT` or asks for training, and does not say about what: only that something changed."""
        if self.project_id is None:
            return self.action in KEPT or self.action == "START_TRAINING"
        if self.action in _BRING_ANNOTATIONS:
            return not self.annotation and not self.annotations
        named = {"TASKS_DELETED": self.gone_tasks, **dict.fromkeys(_DELETE_ANNOTATIONS, self.gone_annotations)}
        return self.action in named and not named[self.action]

    @property
    def gone_annotations(self) -> tuple[int, ...]:
        """Of an event of `_DELETE_ANNOTATIONS`."""
        return _ids([*(self.annotations or []), self.annotation])

    @property
    def gone_tasks(self) -> tuple[int, ...]:
        """Of TASKS_DELETED."""
        return _ids(self.tasks or [])

    @property
    def project_name(self) -> str | None:
        """The project as /setup names it, "45.1795362232": its id and when it was made, in seconds."""
        if self.project is None or not is_id(self.project.id):
            return None
        made = self.project.created_at
        return str(self.project.id) if made is None else f"{self.project.id}.{int(made.timestamp())}"

    def to_event(self, origin: str) -> WebhookEvent:
        """What an event of `KEPT`, from the Label Studio at `origin`, tells. Raises BadRequest without a project."""
        key = ProjectKey(origin, check(Id, self._named_project, f"project.id of {self.action}", BadRequest))
        annotations = [self.annotation] if self.annotation else self.annotations or []
        if self.action == "PROJECT_DELETED":
            return WebhookEvent(key, project_deleted=True)
        if self.action == "TASKS_DELETED":
            return WebhookEvent(key, deleted_tasks=self.gone_tasks)
        if self.action in _DELETE_ANNOTATIONS:
            return WebhookEvent(key, deleted_annotations=self.gone_annotations)
        project, task = self.project or _Project(), self.task or _Task()
        return WebhookEvent(
            key,
            title=project.title,
            label_config=project.label_config,
            project_updated_at=project.updated_at,
            task=task.id,
            image_url=image_url(project.label_config, task.data or {}),
            annotations=tuple(slim(each) for each in annotations),
        )


def parse_webhook(body: Any) -> Webhook:
    """The body of POST /webhook; any action is allowed. Raises BadRequest only when there is none, or no such word."""
    return check(Webhook, body, "", BadRequest)


def image_url(label_config: str | None, data: Mapping[str, Any]) -> str | None:
    """The photo's address in a task's data; None where it names none."""
    try:
        return LabelConfig.parse(label_config).image_url(data) if label_config else None
    except BadRequest:
        return None


def slim(annotation: Any) -> Any:
    """An annotation without the copies of its masks that Label Studio puts into notes and choices, nor the copy of some
    prediction of the task, which is not always the one that it was begun from.
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


def _ids(listed: list[Any]) -> tuple[int, ...]:
    """Ids, given alone or as objects with one; whatever else stands there is left out."""
    found = [each.get("id") if isinstance(each, dict) else each for each in listed]
    return tuple(each for each in found if is_id(each))
