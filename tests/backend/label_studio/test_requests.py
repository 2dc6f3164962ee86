import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import BadRequest
from backend.label_studio.prompt_rows import MAX_PROMPT_ROWS, KeypointRow, RectangleRow, TextRow
from backend.label_studio.prompts import parse_interaction
from backend.label_studio.requests import parse_predict, parse_setup

quick = settings(max_examples=80, deadline=None)

XML = (
    '<View><Image name="image" value="$image"/><KeyPoint name="kp" toName="image" smartOnly="true"/>'
    '<PolygonLabels name="mask" toName="image" smart="false"><Label value="object"/></PolygonLabels></View>'
)
SIZE = {"original_width": 800, "original_height": 600, "image_rotation": 0}


def keypoint(id: str = "p1", x: Any = 50.0, y: Any = 25.0, **own: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.2472, "labels": []}
    row = {"id": id, "type": "keypoint", "from_name": "kp", "to_name": "image", "origin": "manual", "is_positive": True}
    return row | SIZE | {"value": value} | own


def rectangle(id: str = "r1", **value: Any) -> dict[str, Any]:
    row = {"id": id, "type": "rectangle", "from_name": "box", "to_name": "image", "origin": "manual"}
    return row | SIZE | {"value": {"x": 31.02, "y": 30.96, "width": 37.96, "height": 47.63, "rotation": 0} | value}


def body(*rows: dict[str, Any], **own: Any) -> dict[str, Any]:
    """As Label Studio 1.23.2 sends it."""
    task = {"id": 296, "project": 45, "data": {"image": "/data/upload/45/1a832500-car.png"}, "annotations": []}
    params = {"login": None, "password": None, "context": {"result": list(rows)}}
    return {"project": "45.1795362232", "label_config": XML, "params": params, "tasks": [task]} | own


def test_an_interactive_request_is_read() -> None:
    request = parse_predict(body(keypoint(), keypoint("p2", 31.0, 69.0, is_positive=False), rectangle()))
    assert (request.project, request.project_name) == (45, "45.1795362232")
    assert request.context is not None
    assert [(t.id, t.project, t.image_url) for t in request.tasks] == [(296, 45, "/data/upload/45/1a832500-car.png")]
    first, second, box = request.context
    assert isinstance(first, KeypointRow) and isinstance(second, KeypointRow) and isinstance(box, RectangleRow)
    assert (first.is_positive, second.is_positive) == (True, False)
    assert (first.value.x, first.value.y, second.value.y, box.value.width) == (50.0, 25.0, 69.0, 37.96)
    assert [(row.control, row.size) for row in request.context] == [
        ("kp", (600, 800)),
        ("kp", (600, 800)),
        ("box", (600, 800)),
    ]


@pytest.mark.parametrize("params", [{"context": None}, {}, None, [], "", False])
def test_a_request_without_context_is_a_batch(params: Any) -> None:
    assert parse_predict(body(params=params)).context is None


@pytest.mark.parametrize("context", [{"result": []}, {"result": None}, {"result": ""}, {"result": False}, {}])
def test_an_empty_context_is_interactive_with_nothing_asked(context: dict) -> None:
    assert parse_predict(body(params={"context": context})).context == ()


def test_a_batch_keeps_a_task_without_a_photo_in_its_place() -> None:
    tasks = [{"id": 1, "data": {"image": "a"}}, {"id": 2, "data": {"text": "b"}}, {"id": 3, "data": {"image": "c"}}]
    request = parse_predict(body(params={"context": None}, tasks=tasks))
    assert [task.image_url for task in request.tasks] == ["a", None, "c"]
    assert "task 2: task data 'image'" in (request.tasks[1].problem or "")
    assert [task.project for task in request.tasks] == [45, 45, 45]


def test_a_prompt_drawn_while_a_label_was_active_counts_once() -> None:
    twin = keypoint() | {"type": "brushlabels", "value": {"brushlabels": ["object"], "format": "rle"}}
    labelled = keypoint() | {"type": "keypointlabels"}
    for rows in ([keypoint(), twin, labelled], [twin, keypoint(), labelled], [labelled, keypoint(), twin]):
        request = parse_predict(body(*rows))
        assert request.context is not None and [type(row) for row in request.context] == [KeypointRow]
        assert len(request.ignored) == 2
        assert request.context[0].labels == ("object",)


def test_a_prompt_has_the_label_that_was_active_in_its_own_control_or_in_one_beside_it() -> None:
    own = keypoint() | {
        "type": "keypointlabels",
        "value": {"x": 5, "y": 5, "keypointlabels": ["cup"], "labels": ["cup"]},
    }
    beside = keypoint() | {"type": "labels", "from_name": "label", "value": {"x": 5, "y": 5, "labels": ["cup"]}}
    odd = keypoint() | {"type": "keypointlabels", "labels": ["x"], "value": {"x": 5, "y": 5, "keypointlabels": [3, ""]}}
    for rows, labels in (([own], ("cup",)), ([keypoint(), beside], ("cup",)), ([odd], ()), ([keypoint()], ())):
        request = parse_predict(body(*rows))
        assert request.context is not None and [row.labels for row in request.context] == [labels]


def test_a_prompt_that_was_submitted_with_an_annotation_is_not_meant_any_more() -> None:
    old, new = keypoint("old"), keypoint("new")
    tasks = [{"id": 1, "data": {"image": "a"}, "annotations": [{"result": [old, {"id": 3}, None]}, None]}]
    request = parse_predict(body(old, new, tasks=tasks))
    assert request.context is not None and [row.id for row in request.context] == ["new"]
    assert request.ignored == ("params.context.result[0]: 'old' was submitted with an annotation",)
    drafted = [{"id": 1, "data": {"image": "a"}, "drafts": [{"result": [old]}], "annotations": "odd"}]
    request = parse_predict(body(old, new, tasks=drafted))
    assert request.context is not None and [row.id for row in request.context] == ["old", "new"]


def test_text_prompts_need_no_size() -> None:
    row = {"type": "textarea", "from_name": "prompt", "value": {"text": ["red car wheel", "  "]}}
    request = parse_predict(body(row))
    assert request.context is not None
    (text,) = request.context
    assert isinstance(text, TextRow) and text.texts == ("red car wheel",) and text.size is None


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (3, "tasks[1]: expected an object, got 3"),
        (None, "tasks[1]: expected an object, got None"),
        ({"id": "seven", "data": {"image": "b"}}, "tasks[1].id: expected an id, got 'seven'"),
        ({"id": float("nan"), "data": {"image": "b"}}, "tasks[1].id: expected an id, got nan"),
        ({"id": 2, "project": [], "data": {"image": "b"}}, "tasks[1].project: expected an id, got []"),
        ({"id": 2, "data": None}, "tasks[1].data: expected an object, got None"),
        ({"id": 2}, "tasks[1].data: expected an object, got nothing"),
    ],
)
def test_a_malformed_task_keeps_its_place_with_its_problem_and_the_others_are_read(bad: Any, problem: str) -> None:
    tasks = [{"id": 1, "data": {"image": "a"}}, bad, {"id": 3, "data": {"image": "c"}}]
    request = parse_predict(body(keypoint(), tasks=tasks))
    assert [task.image_url for task in request.tasks] == ["a", None, "c"]
    assert [task.problem for task in request.tasks] == [None, problem, None]
    assert request.tasks[1].id == (2 if isinstance(bad, dict) and bad["id"] == 2 else None)


@pytest.mark.parametrize("empty", [None, [], {}, "", False])
def test_an_empty_value_of_another_form_counts_as_absent_where_label_studio_may_send_one(empty: Any) -> None:
    (box,) = parse_predict(body(rectangle(rotation=empty))).context or ()
    assert isinstance(box, RectangleRow) and box.value.rotation == 0
    setup = parse_setup({"project": "45.1", "schema": empty, "hostname": empty, "access_token": empty})
    assert (setup.label_config, setup.hostname, setup.access_token) == ("", "", "")


def test_an_id_may_be_a_number_as_text() -> None:
    (task,) = parse_predict(body(tasks=[{"id": "296", "project": "45", "data": {"image": "a"}}])).tasks
    assert (task.id, task.project, task.problem) == (296, 45, None)


VALUE = "params.context.result[0].value"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda b: b.pop("label_config"), "label_config: expected the project's labeling config as text, got nothing"),
        (lambda b: b.update(label_config="<View>"), "label_config: expected XML"),
        (lambda b: b.update(project="x.1"), "project: expected a project such as"),
        (lambda b: b.pop("tasks"), "tasks: expected a list, got nothing"),
        (lambda b: b.update(params=[1]), "params: expected an object"),
        (lambda b: b["params"].update(context=[1]), "params.context: expected an object"),
        (lambda b: b["params"]["context"].update(result={"a": 1}), "params.context.result: expected a list"),
        (lambda b: b["params"]["context"]["result"][0].pop("type"), "params.context.result[0].type: expected text"),
        (lambda b: b["params"]["context"]["result"][0].pop("value"), f"{VALUE}: expected an object, got nothing"),
        (lambda b: b["params"]["context"]["result"][0].update(is_positive="no"), "is_positive: expected true or false"),
        (
            lambda b: b["params"]["context"]["result"][0].update(original_width=0),
            "original_width: expected a whole number of pixels from 1, got 0",
        ),
        (
            lambda b: b["params"]["context"]["result"][0].pop("original_height"),
            "original_height: expected a whole number of pixels from 1, got nothing",
        ),
    ],
)
def test_a_malformed_field_is_named_with_value_and_expected_form(change: Any, field: str) -> None:
    request = body(keypoint())
    change(request)
    with pytest.raises(BadRequest) as caught:
        parse_predict(request)
    assert field in str(caught.value)


@pytest.mark.parametrize("x", [None, "50", True, [], float("nan"), float("inf"), 10**400])
def test_a_coordinate_that_is_no_finite_number_is_refused(x: Any) -> None:
    with pytest.raises(BadRequest, match=r"result\[0\].value.x: expected a percent number, got "):
        parse_predict(body(keypoint(x=x)))


def test_hundreds_of_leftover_points_are_refused() -> None:
    with pytest.raises(BadRequest, match=f"at most {MAX_PROMPT_ROWS} rows"):
        parse_predict(body(*[keypoint(str(k)) for k in range(MAX_PROMPT_ROWS + 1)]))


def test_a_very_deep_value_is_refused_without_being_printed() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(BadRequest, match="expected a percent number") as caught:
        parse_predict(body(keypoint(x=deep)))
    assert len(str(caught.value)) < 200


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)


@quick
@given(any_json)
def test_arbitrary_json_never_raises_anything_but_bad_request(value: Any) -> None:
    for parse in (parse_predict, parse_setup):
        with contextlib.suppress(BadRequest):
            parse(value)


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in inner for p in _paths(child, (*path, key)))]


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_request_with_any_one_field_replaced_never_raises_anything_but_bad_request(data: st.DataObject) -> None:
    request = body(keypoint(), rectangle(), {"type": "textarea", "from_name": "t", "value": {"text": ["a"]}})
    *path, last = data.draw(st.sampled_from(_paths(request)[1:]))
    place = request
    for key in path:
        place = place[key]
    place[last] = data.draw(any_json)
    with contextlib.suppress(BadRequest):
        parsed = parse_predict(copy.deepcopy(request))
        parse_interaction(parsed.context or (), parsed.config, (600, 800))


def test_setup_is_read_and_the_token_stays_out_of_sight() -> None:
    sent = {
        "project": "45.1",
        "schema": XML,
        "hostname": "http://h",
        "access_token": "sesame",
        "extra_params": '{"a": 6}',
    }
    setup = parse_setup(sent)
    assert (setup.project, setup.project_name, setup.hostname) == (45, "45.1", "http://h")
    assert (setup.access_token, setup.label_config) == ("sesame", XML)
    assert setup.config is not None and setup.problems == []
    assert "sesame" not in repr(setup)
    for extra in ({"b": 1}, "", None, {}):
        assert parse_setup(sent | {"extra_params": extra}).problems == []
    with pytest.raises(BadRequest) as caught:
        parse_setup(sent | {"access_token": ["sesame"]})
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("extra", ["{", "[1]", 3, "[" * 100_000])
def test_setup_with_unusable_extras_or_config_still_succeeds_and_says_so(extra: Any) -> None:
    setup = parse_setup({"project": "45.1", "schema": "<View>", "extra_params": extra})
    assert setup.config is None and setup.label_config == "<View>"
    assert [problem.split(":")[0] for problem in setup.problems] == ["label_config", "extra_params"]
