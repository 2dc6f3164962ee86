"""JSON that other programs write, checked field by field: pydantic models, whose errors become one sentence.

    class Point(JsonModel):
        x: Annotated[float, Strict(), Expected("a percent number")]

    check(Point, {"x": "left"}, "value", BadRequest)  # BadRequest: value.x: expected a percent number, got 'left'

Fields that a model does not name are ignored. null counts as absent for a field that has a default.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from semsam_model.errors import SemsamError

T = TypeVar("T")

#: What pydantic's own error types expect, in words.
_FORMS = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "an integer",
    "bool_type": "true or false",
}


class _Nothing:
    """Stands in for the value of a field that is absent, so that its own check refuses it in its own words."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


@dataclass(frozen=True)
class Expected:
    """Annotation of a field: the form it should have, in words for the error. secret: the value is not shown."""

    form: str
    secret: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kind = "secret" if self.secret else "expected"
        return core_schema.custom_error_schema(handler(source), kind, custom_error_message=self.form)


class JsonModel(BaseModel):
    """An object of a JSON body."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {}
        for name, field in cls.model_fields.items():
            key = field.alias or name
            if field.is_required():
                known[key] = value.get(key, NOTHING)
            elif value.get(key) is not None:
                known[key] = value[key]
        return known


def _none_if_wrong(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


#: A field that counts as absent when it has another form.
Lenient = Annotated[T | None, WrapValidator(_none_if_wrong)]
#: True where the body says true, False for anything else.
Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def check(kind: type[T], value: Any, name: str, error: type[SemsamError]) -> T:
    """`value` as `kind`, a JsonModel or any annotated type. Raises `error` about the first field that is wrong.

    name: what the value is called in the error; "" for the whole body, whose fields are then named alone.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as problems:
        problem = problems.errors(include_url=False)[0]
    place = name + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"])
    form = problem["msg"] if problem["type"] in ("expected", "secret") else _FORMS.get(problem["type"], problem["msg"])
    # reprlib, because a hostile value may be nested as deep as the JSON reader allows
    came = type(problem["input"]).__name__ if problem["type"] == "secret" else reprlib.repr(problem["input"])
    raise error(f"{place.removeprefix('.') or 'body'}: expected {form}, got {came}")


def lenient(kind: type[T], value: Any) -> T | None:
    """`value` as `kind`, any annotated type; None where it has another form."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None
