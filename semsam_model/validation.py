"""Values that others write, checked by pydantic: JSON bodies field by field here, configs in `config`.

    class Point(JsonModel):
        x: Annotated[float, Strict(), Expected("a percent number")]

    check(Point, {"x": "left"}, "value", BadRequest)  # BadRequest: value.x: expected a percent number, got 'left'

Fields that a JsonModel does not name are ignored. null counts as absent for a field that has a default.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Sequence
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
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from semsam_model.errors import SemsamError

T = TypeVar("T")

#: pydantic's type of a problem -> the form that it expects, with the values of its context.
_FORMS = {
    "model_type": "an object",
    "dict_type": "an object",
    "dataclass_type": "a mapping of settings",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "string_unicode": "text in valid Unicode",
    "string_too_short": "some text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_long": "at most {max_length} values",
    "missing": "a value",
}
_short = reprlib.Repr()  # because a hostile value may be nested as deep as the JSON reader allows
_short.maxstring = 100


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


def empty_as(default: Any) -> BeforeValidator:
    """Annotation of a field: an empty value of any form (null, false, 0, "", [], {}) counts as `default`."""
    return BeforeValidator(lambda value: value or default)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def check(kind: type[T], value: Any, name: str, error: type[SemsamError]) -> T:
    """`value` as `kind`, a JsonModel or any annotated type. Raises `error` about the first field that is wrong.

    name: what the value is called in the error; "" for the whole body, whose fields are then named alone.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as problems:
        problem = problems.errors(include_url=False)[0]
    place = path_to(name, problem["loc"], ".").removeprefix(".") or "body"
    raise error(f"{place}: {explain(problem)}")


def explain(problem: ErrorDetails, *, secret: bool = False) -> str:
    """One problem of a ValidationError: "expected a list, got 3". secret: the type of the value is shown alone.

    Of an address neither user and password nor query are shown.
    """
    kind, value = problem["type"], NOTHING if problem["type"] == "missing" else problem["input"]
    if kind in ("expected", "secret"):
        text = f"expected {problem['msg']}"
    elif kind in _FORMS:
        text = f"expected {_FORMS[kind].format(**problem.get('ctx', {}))}"
    else:
        text = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error" and not isinstance(value, str | int | float):
        return text  # about several fields of an object, which it names itself
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"(?<=://)\S*@|(?<=\?)\S+", "...", value)
    return f"{text}, got {type(value).__name__ if secret or kind == 'secret' else _short.repr(value)}"


def path_to(start: str, location: Sequence[str | int], joint: str) -> str:
    """The way to a field, as pydantic gives it, in words: with "." tasks[0].data."""
    return start + "".join(f"[{step}]" if isinstance(step, int) else f"{joint}{step}" for step in location)


def lenient(kind: type[T], value: Any) -> T | None:
    """`value` as `kind`, any annotated type; None where it has another form."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        return None
