"""Bodies of webhooks: what is kept of them, and what is refused."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import BadRequest
from backend.label_studio.annotations import parse_annotation
from backend.label_studio.events import KEPT, WebhookEvent, parse_webhook
from backend.records import ProjectKey
from tests.backend.annotations import ORIGIN, event
from tests.backend.label_studio.odd_json import odd_json

ANNOTATION = {"id": 23, "task": 296, "project": 45, "updated_at": "2026-01-02T03:04:05Z", "result": [{"id": "a"}]}


def test_annotation_events_are_read() -> None:
    sent = {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "project": {"id": 45}, "task": {"id": 296}}
    webhook = parse_webhook(json.loads(json.dumps(sent)))
    assert (webhook.action, webhook.project_id) == ("ANNOTATION_CREATED", 45)
    read = webhook.to_event(ORIGIN)
    assert (read.key, read.task, read.annotations) == (ProjectKey(ORIGIN, 45), 296, (ANNOTATION,))
    without = parse_webhook({"action": "ANNOTATION_UPDATED", "annotation": ANNOTATION})
    assert (without.project_id, without.project_name) == (45, None)
    assert without.to_event(ORIGIN).key == ProjectKey(ORIGIN, 45)


def test_a_project_is_named_by_its_id_and_when_it_was_made() -> None:
    made = {"id": 45, "created_at": "2026-11-18T00:00:32.5Z"}
    assert parse_webhook({"action": "A", "project": made}).project_name == "45.1794960032"
    assert parse_webhook({"action": "A", "project": made | {"created_at": "then"}}).project_name == "45"


def test_deleted_annotations_come_as_several_ids_or_as_one_annotation() -> None:
    several = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 23}, {"id": 24}, {}], "project": {"id": 45}}
    assert parse_webhook(several).to_event(ORIGIN).deleted_annotations == (23, 24)
    one = {"action": "ANNOTATION_DELETED", "annotation": {"id": 23}, "project": {"id": 45}}
    assert parse_webhook(one).to_event(ORIGIN).deleted_annotations == (23,)


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}]}, False),
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": "x"}, None]}, True),
        ({"action": "ANNOTATION_DELETED"}, True),
        ({"action": "TASKS_DELETED", "tasks": [{"id": 1}]}, False),
        ({"action": "TASKS_DELETED", "tasks": []}, True),
        ({"action": "ANNOTATION_CREATED", "annotation": {}}, True),
        ({"action": "PROJECT_DELETED"}, False),
        ({"action": "PROJECT_UPDATED"}, False),
    ],
)
def test_an_event_that_does_not_say_about_what_says_only_that_something_changed(body: Any, lacks: bool) -> None:
    assert parse_webhook(body | {"project": {"id": 45}}).lacks_payload == lacks


def test_unknown_actions_pass_and_a_missing_or_odd_one_is_refused() -> None:
    assert parse_webhook({"action": "SOMETHING_NEW", "task": 3, "annotations": "x"}).annotations is None
    for action in (None, "", 3, "A\nB", "A" * 65):
        with pytest.raises(BadRequest, match="action: expected a word"):
            parse_webhook({"action": action})


def test_an_event_of_no_project_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match=r"project\.id of TASKS_DELETED: expected an id, got None"):
        parse_webhook({"action": "TASKS_DELETED", "tasks": [{"id": 1}]}).to_event(ORIGIN)
    odd = {"action": "ANNOTATION_CREATED", "project": {"id": "45"}, "annotation": ANNOTATION}
    with pytest.raises(BadRequest, match="expected an id, got '45'"):  # rather than taken for the annotation's project
        parse_webhook(odd).to_event(ORIGIN)


@given(odd_json)
def test_a_body_of_any_content_is_read_or_refused(body: Any) -> None:
    with contextlib.suppress(BadRequest):
        parse_webhook(body)


@given(
    st.sampled_from(sorted(KEPT)),
    st.dictionaries(st.sampled_from(["annotation", "annotations", "tasks", "task", "project"]), odd_json),
)
def test_an_event_of_any_content_is_read_or_refused_by_name(action: str, odd: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        read = parse_webhook(event(action) | odd).to_event(ORIGIN)
        assert vars(WebhookEvent.from_json(read.to_json())).keys() == vars(read).keys()
        for each in read.annotations:
            parse_annotation(each, project=1, task=1)
