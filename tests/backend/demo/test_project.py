"""The demo's project: what an earlier start has made is found and left as it is; what goes wrong is said plainly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.demo.project import CONNECTION_TITLE, PROJECT_TITLE, DemoProject, ProjectMaker
from backend.errors import DemoError
from tests.backend.studio_http import TOKEN, Answer, answering

BACKEND = "http://127.0.0.1:9090"
MADE = {
    "/api/projects": {"results": [{"id": 3, "title": "other"}, {"id": 7, "title": PROJECT_TITLE}]},
    "/api/tasks": {"tasks": [{"id": 12}, {"id": 11}]},
    "/api/ml": [{"id": 1, "title": CONNECTION_TITLE, "url": BACKEND}],
    "/api/webhooks/": [{"id": 5, "url": f"{BACKEND}/webhook", "headers": {"X-Semsam-Secret": "secret"}}],
}


def test_a_project_that_is_complete_is_left_as_it_is() -> None:
    posted = list[bytes]()

    def get(path: str) -> Answer:
        return 200, json.dumps(MADE[path.split("?")[0]]).encode()

    def post(content: bytes) -> Answer:
        posted.append(content)
        return 201, b"{}"

    with answering(get, post) as url:
        made = ProjectMaker(url, TOKEN).make(PROJECT_TITLE, "<View/>", [Path("a.jpg")], BACKEND, "secret")
    assert made == DemoProject(7, [11, 12])
    assert posted == []


def test_a_token_of_another_label_studio_is_explained() -> None:
    with (
        answering(lambda path: (200, b"{}")) as url,
        pytest.raises(DemoError, match="do not belong together"),
    ):
        ProjectMaker(url, "f" * 40).make(PROJECT_TITLE, "<View/>", [], BACKEND)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html><h1>Bad\n request</h1></html>", "Bad request"),
        (b'{"detail": "no such field"}', '"no such field"'),
        (b'{"detail": "invalid", "validation_errors": {"label_config": ["empty"]}}', '{"label_config": ["empty"]}'),
    ],
)
def test_a_refusal_is_one_line_without_markup(body: bytes, reason: str) -> None:
    with answering(lambda path: (400, body)) as url, pytest.raises(DemoError) as refused:
        ProjectMaker(url, TOKEN).call("GET", "/api/projects")
    assert str(refused.value) == f"Label Studio refused GET /api/projects with 400: {reason}"


def test_a_label_studio_that_does_not_answer_is_named() -> None:
    with pytest.raises(DemoError, match=r"Label Studio at http://127\.0\.0\.1:1 does not answer"):
        ProjectMaker("http://127.0.0.1:1", TOKEN).call("GET", "/api/projects")
