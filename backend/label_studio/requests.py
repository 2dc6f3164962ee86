"""The bodies of POST /predict and POST /setup, checked field by field; coordinates stay percent, as sent.

A malformed body raises BadRequest naming the field, the value and the form expected; a malformed task keeps its place
and says what is wrong with it. Nothing else is raised, whatever the JSON. Written against what Label Studio 1.23 sends.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backend.errors import BadRequest
from backend.label_studio.fields import Id, is_id
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.prompt_rows import PromptRow, on_one_image, prompt_rows
from semsam_model.validation import Expected, JsonModel, Lenient, check, empty_as, lenient


def _number_in_text(value: Any) -> Any:
    is_number = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
    return int(value) if is_number else value


def _project_name(value: Any) -> str:
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not is_id(_number_in_text(name.split(".")[0])):
        raise ValueError
    return name


#: An id of a task or project, as a number or as text.
_TaskId = Annotated[Id, BeforeValidator(_number_in_text), Expected("an id")]
#: A project as Label Studio names it to a backend: its id and when it was made. Ids alone are the same on every server.
_ProjectName = Annotated[str, BeforeValidator(_project_name), Expected('a project such as "45.1795362232"')]


def project_id(name: str | None) -> int | None:
    """The id in a project's name."""
    return None if name is None else int(name.split(".")[0])


# ------------------------------------------------------------------------------------------------------------- /predict


@dataclass(frozen=True)
class TaskRef:
    """One task of a request. Without a usable photo address `image_url` is None and `problem` says why."""

    id: int | None
    project: int | None
    image_url: str | None
    problem: str | None = None
    config: LabelConfig | None = None  #: with the labels that the task brings; None: the request's


@dataclass(frozen=True)
class PredictRequest:
    """A parsed /predict body. `context` is None for a batch; a tuple, perhaps empty, for an interactive request."""

    project_name: str | None  #: as Label Studio names it, "45.1795362232": unlike any other server's
    config: LabelConfig  #: of the image that the prompts are on
    tasks: tuple[TaskRef, ...]
    context: tuple[PromptRow, ...] | None
    ignored: tuple[str, ...] = ()  #: rows of the context that are not used, in words for the log
    page: int = 0  #: that the prompts are on
    of_first_photo: bool = True  #: whether the prompts are on the photo of a task that corrections are kept of

    @property
    def project(self) -> int | None:
        """The project's id."""
        return project_id(self.project_name)

    def config_of(self, task: TaskRef) -> LabelConfig:
        """As the task's own data completes it."""
        return task.config or self.config


class _NamedProject(JsonModel):
    project: Lenient[_ProjectName] = None


def project_name(body: Any) -> str | None:
    """The project as a body of any form names it; None where it names none."""
    named = lenient(_NamedProject, body)
    return None if named is None else named.project


class _Context(JsonModel):
    result: Annotated[list[Any], empty_as([])] = Field(default_factory=list)


class _Params(JsonModel):
    context: _Context | None = None


class _PredictBody(JsonModel):
    label_config: Annotated[str, Expected("the project's labeling config as text")]
    project: _ProjectName | None = None
    tasks: list[Any]
    params: Annotated[_Params, empty_as({})] = _Params()


class _Task(JsonModel):
    id: _TaskId | None = None
    project: _TaskId | None = None
    data: dict[Any, Any]


class _NamedTask(JsonModel):
    id: Lenient[_TaskId] = None


def parse_predict(body: Any) -> PredictRequest:
    """The body of POST /predict. Raises BadRequest.

    A task that names no photo, or is malformed, keeps its place, with `problem`: the others are answered.
    """
    sent = check(_PredictBody, body, "", BadRequest)
    config = LabelConfig.parse(sent.label_config)
    project = project_id(sent.project)

    def tasks(config: LabelConfig, page: int = 0) -> tuple[TaskRef, ...]:
        return tuple(_task(task, f"tasks[{k}]", project, config, page) for k, task in enumerate(sent.tasks))

    if sent.params.context is None:
        return PredictRequest(sent.project, config, tasks(config), None)
    every, unused = prompt_rows(sent.params.context.result, "params.context.result", _submitted(sent.tasks))
    own, page, prompts, elsewhere = on_one_image(every, config)
    is_first = own is config and page == 0
    return PredictRequest(sent.project, own, tasks(own, page), prompts, unused + elsewhere, page, is_first)


class _SubmittedRow(JsonModel):
    id: str


class _SubmittedAnnotation(JsonModel):
    result: list[Lenient[_SubmittedRow]]


class _AnnotatedTask(JsonModel):
    annotations: list[Lenient[_SubmittedAnnotation]]


def _submitted(tasks: list[Any]) -> frozenset[str]:
    """Ids of the rows in the tasks' annotations; drafts do not count, they hold the prompts of now."""
    annotated = [found for task in tasks if (found := lenient(_AnnotatedTask, task)) is not None]
    annotations = [each for task in annotated for each in task.annotations if each is not None]
    return frozenset(row.id for each in annotations for row in each.result if row is not None)


def _task(value: Any, name: str, project: int | None, config: LabelConfig, page: int) -> TaskRef:
    try:
        task = check(_Task, value, name, BadRequest)
    except BadRequest as error:
        named = lenient(_NamedTask, value) or _NamedTask()
        return TaskRef(named.id, project, None, str(error))
    own_project = project if task.project is None else task.project
    try:
        own = config.with_labels_of(task.data)
        return TaskRef(task.id, own_project, config.image_url(task.data, page), None, None if own is config else own)
    except BadRequest as error:
        return TaskRef(task.id, own_project, None, f"task {task.id}: {error}")


# --------------------------------------------------------------------------------------------------------------- /setup


#: Never shown in a message, in case the token came in the wrong field.
_SecretText = Annotated[str, empty_as(""), Expected("text", secret=True)]


class Setup(JsonModel):
    """The body of POST /setup. The token is a secret and is left out of the repr.

    Label Studio posts it again and again and refuses the connection without a usable answer, so a labeling config or
    extra_params that cannot be read are `problems`, not errors.
    """

    project_name: _ProjectName | None = Field(default=None, alias="project")  #: as in PredictRequest
    label_config: _SecretText = Field(default="", alias="schema")  #: XML, as sent
    hostname: _SecretText = ""
    access_token: _SecretText = Field(default="", repr=False)
    extra_params: Annotated[Any, empty_as({})] = Field(default_factory=dict)

    @property
    def project(self) -> int | None:
        """The project's id."""
        return project_id(self.project_name)

    @cached_property
    def config(self) -> LabelConfig | None:
        """The labeling config; None when it cannot be read."""
        with contextlib.suppress(BadRequest):
            return LabelConfig.parse(self.label_config)
        return None

    @property
    def problems(self) -> list[str]:
        """What is wrong with the labeling config and with extra_params, in words."""
        try:
            problems = (self.config or LabelConfig.parse(self.label_config)).problems()
        except BadRequest as error:
            problems = [str(error)]
        if not _is_json_object(self.extra_params):
            problems.append('extra_params: expected a JSON object such as {"key": "value"}; it is not used')
        return problems


def parse_setup(body: Any) -> Setup:
    """The body of POST /setup. Raises BadRequest for a body of another form."""
    return check(Setup, body, "", BadRequest)


def _is_json_object(value: Any) -> bool:
    """Whether it is an object, or the text of one."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    return isinstance(value, dict)
