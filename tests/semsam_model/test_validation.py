"""Fields of a JSON body, checked: what an error says, and what counts as absent."""

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Strict

from semsam_model.errors import DataError
from semsam_model.validation import Expected, Flag, JsonModel, Lenient, check


class Part(JsonModel):
    share: Annotated[float, Strict(), Expected("a number")]


class Whole(JsonModel):
    parts: list[Part]
    name: str = "whole"
    note: Lenient[str] = None
    done: Flag = False
    token: Annotated[str, Expected("text", secret=True)] = ""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (3, "body: expected an object, got 3"),
        ({}, "parts: expected a list, got nothing"),
        ({"parts": None}, "parts: expected a list, got None"),
        ({"parts": [{"share": 1}, []]}, "parts[1]: expected an object, got []"),
        ({"parts": [{"share": "all"}]}, "parts[0].share: expected a number, got 'all'"),
        ({"parts": [{}]}, "parts[0].share: expected a number, got nothing"),
        ({"parts": [], "name": 4}, "name: expected text, got 4"),
        ({"parts": [], "token": ["sesame"]}, "token: expected text, got list"),
    ],
)
def test_an_error_names_the_field_the_form_and_what_came(body: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        check(Whole, body, "", DataError)
    assert str(caught.value) == problem
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_null_is_absent_where_there_is_a_default_and_a_lenient_field_of_another_form_too() -> None:
    read = check(Whole, {"parts": [], "name": None, "note": 3, "done": "yes", "more": 1}, "", DataError)
    assert (read.name, read.note, read.done) == ("whole", None, False)


def test_a_value_nested_without_end_is_cut_in_the_error() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(DataError) as caught:
        check(Whole, {"parts": deep}, "it", DataError)
    assert str(caught.value).startswith("it.parts[0]: expected an object, got [") and len(str(caught.value)) < 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["parts", "share", "name"]), inner),
    max_leaves=10,
)


@given(json_values)
def test_whatever_the_json_nothing_else_is_raised(body: Any) -> None:
    try:
        assert isinstance(check(Whole, body, "", DataError), Whole)
    except DataError as error:
        assert ": expected " in str(error)
