"""Forms of fields that several bodies of Label Studio's have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeGuard

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Strict

from semsam_model.validation import Expected, lenient

MAX_ID = 2**63 - 1
MAX_TEXT = 1000  #: characters of a text kept


def clean(text: str) -> str:
    """Text that every database takes: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _cleaned(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return clean(value)[:MAX_TEXT]


def _utc(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError
    try:
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError from error


Id = Annotated[int, Strict(), Ge(0), Le(MAX_ID), Expected("an id")]
#: A text that is not empty, cleaned and cut.
Text = Annotated[str, BeforeValidator(_cleaned), Expected("text")]
Time = Annotated[datetime, BeforeValidator(_utc), Expected("a time such as 2026-01-31T12:00:00.123456Z")]


def is_id(value: Any) -> TypeGuard[int]:
    """Whether this can be an id of Label Studio's."""
    return lenient(Id, value) is not None
