"""The API of Label Studio, and what never reaches a log."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from backend.errors import (
    LabelStudioError,
    SettingsError,
)
from backend.label_studio.client import LabelStudio, task_pages
from backend.settings import Settings
from semsam_model.errors import SemsamError
from tests.backend.label_studio.web import LEGACY, Tokens, Web, client, redirect, reply
from tests.backend.studio import FakeStudio, serving
from tests.backend.studio_http import TOKEN

# ---- API


def test_the_api_is_called_with_the_token(studio: Web) -> None:
    answers = {
        "/api/tasks/": {"tasks": [{"id": 7}], "total": 1},
        "/api/predictions/": {"id": 1},
        "/api/predictions/1/": {"id": 1, "task": 7},
    }
    for path, answer in answers.items():
        body = json.dumps(answer).encode()
        studio.routes[path] = lambda handler, body=body: reply(handler, body, 201 if handler.command == "POST" else 200)
    api = client(studio)
    assert api.get_task(1, 7) == {"id": 7}
    assert api.create_prediction({"task": 7, "result": []}) == {"id": 1}
    assert json.loads(studio.requests[-1].body) == {"task": 7, "result": []}
    assert api.get_prediction(1) == {"id": 1, "task": 7}
    assert {request.authorization for request in studio.requests} == {f"Token {LEGACY}"}


@pytest.mark.parametrize(("body", "status"), [(b"[]", 200), (b"<html>", 200), (b"", 200), (b"{}", 302), (b"{}", 500)])
def test_an_api_answer_that_is_no_object_is_an_error(studio: Web, body: bytes, status: int) -> None:
    studio.routes["/api/projects/1/"] = lambda handler: reply(handler, body, status, Location="http://elsewhere/")
    with pytest.raises(LabelStudioError):
        client(studio).get_project(1)


# ---- secrets


def test_no_secret_is_ever_in_a_log_line_or_a_message(
    studio: Web, web: Callable[..., Web], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(studio)
    store = web(signed=lambda handler: reply(handler, b"", 403))
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary-query")
    studio.routes["/elsewhere"] = redirect("http://user:canary-query@third/x?X-Signature=canary-query")
    messages = []
    for key in (LEGACY, tokens.personal, "canary-\u20ac", None):
        try:
            api = client(studio, label_studio_api_key=key, allowed_origins=(store.url,))
        except SettingsError as error:
            messages.append(str(error))
            continue
        api.connect("1.11", studio.url, "canary-setup")
        for value in (
            "s3://bucket/a.png?x=canary-query",
            "/photo",
            "/elsewhere",
            "/data/upload/1/a.png",
            "http://canary-query@h/",
            "data:image/png;base64,canary-query",
            store.url + "/signed?X-Signature=canary-query",
            "http://127.0.0.1:1/?X-Signature=canary-query",
        ):
            try:
                api.fetch_image(value, project="1.11", task_id=7)
            except SemsamError as error:
                messages.append(f"{error!r} {error.__cause__!r}")
        messages.append(repr(api))
    assert len(messages) > 20
    assert any("photo not fetched" in record.getMessage() for record in caplog.records)
    for text in [*messages, caplog.text]:
        for secret in ("canary", tokens.personal, *tokens.issued):
            assert secret not in text


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 7])
def test_every_task_is_listed_whatever_the_page(number: int) -> None:
    fake = FakeStudio()
    fake.projects.add(7)
    for task in range(1, number + 1):
        fake.task(task)
    with serving(fake):
        api = LabelStudio(Settings(label_studio_url=fake.url, label_studio_api_key=TOKEN))
        listed = [(task, total) for page, total in task_pages(api, 7, page_size=3) for task in page]
    assert [(task["id"], total) for task, total in listed] == [(task, number) for task in range(1, number + 1)]


@pytest.mark.parametrize("answer", [{"tasks": None, "total": 1}, {"tasks": []}, {}])
def test_a_list_of_tasks_in_another_form_is_an_error(studio: Web, answer: dict[str, Any]) -> None:
    studio.routes["/api/tasks/"] = lambda handler: reply(handler, json.dumps(answer).encode())
    with pytest.raises(LabelStudioError, match="another form"):
        list(task_pages(client(studio), 7))
