"""What the doctor says of a Label Studio whose project is connected well, and of each fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from backend.doctor.checks import Finding, check_backend, check_project
from backend.doctor.studio import StudioProject
from backend.label_studio.backend_calls import BackendCalls
from backend.label_studio.client import LabelStudio
from backend.label_studio.servers import origin_of
from backend.records import ProjectKey
from backend.settings import Settings
from tests.backend.annotations import SIZE
from tests.backend.s3 import serving_s3
from tests.backend.stored import photo
from tests.backend.studio_http import TOKEN, answering

BACKEND = "http://backend.example:9090"
CONFIG = (
    '<View><Image name="image" value="$image"/><KeyPoint name="click" toName="image" smartOnly="true"/>'
    '<PolygonLabels name="mask" toName="image" smart="false"><Label value="car"/></PolygonLabels></View>'
)


def well() -> dict[str, Any]:
    """Answers by path of a Label Studio whose project is connected well."""
    hook = {"url": f"{BACKEND}/webhook", "is_active": True, "send_payload": True, "send_for_all_actions": True}
    return {
        "/api/version": {"release": "1.23.2"},
        "/api/projects/7/": {"id": 7, "title": "cars", "label_config": CONFIG},
        "/api/ml": [{"id": 1, "url": BACKEND, "state": "CO", "is_interactive": True, "error_message": None}],
        "/api/webhooks/": [hook | {"headers": {"X-Semsam-Secret": "s"}}],
        "/api/tasks/": {"tasks": [{"id": 1, "data": {"image": "/data/upload/7/1.png"}}]},
    }


def checked(answers: dict[str, Any], **more: Any) -> list[Finding]:
    def get(path: str) -> tuple[int, bytes]:
        name = urlsplit(path).path
        if name.startswith("/data/"):
            return 200, photo(1, SIZE)
        return (200, json.dumps(answers[name]).encode()) if name in answers else (404, b"{}")

    with answering(get) as url:
        settings = Settings(label_studio_url=url, label_studio_api_key=TOKEN, webhook_secret="s", **more)
        project = StudioProject(LabelStudio(settings), ProjectKey(str(origin_of(url)), 7))
        return list(check_project(project, settings))


def test_a_project_that_is_connected_well_has_nothing_to_set_right() -> None:
    found = checked(well())
    assert [finding.check for finding in found if not finding.wrong] == [
        *("token", "Label Studio", "project", "labeling config", "connection", "webhook", "prelabelling", "photo")
    ]
    assert not [finding for finding in found if finding.wrong]


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (lambda it: it["/api/version"].update(release="1.23.0"), "Label Studio", "context null"),
        (lambda it: it.pop("/api/projects/7/"), "project", "not found"),
        (lambda it: it["/api/projects/7/"].update(label_config="<View/>"), "labeling config", "no <Image> tag"),
        (lambda it: it["/api/ml"].clear(), "connection", "run `semsam connect --project 7`"),
        (lambda it: it["/api/ml"][0].update(is_interactive=False), "connection", "interactive preannotations"),
        (
            lambda it: it["/api/ml"][0].update(state="ER", error_message="URL resolves to a reserved network"),
            "connection",
            "lies in a network that Label Studio does not call",
        ),
        (lambda it: it["/api/ml"][0].update(state="DI"), "connection", "does not reach it"),
        (lambda it: it["/api/webhooks/"].clear(), "webhook", "there is none"),
        (lambda it: it["/api/webhooks/"][0].update(send_payload=False), "webhook", '"Send payload" is off'),
        (lambda it: it["/api/webhooks/"][0].update(headers={}), "webhook", "lacks our secret"),
        (lambda it: it["/api/webhooks/"][0].update(is_active=False), "webhook", "switched off"),
        (lambda it: it["/api/tasks/"]["tasks"][0]["data"].clear(), "photo", "expected the address of a photo"),
    ],
)
def test_each_fault_is_named_with_the_way_out(change: Callable[[dict[str, Any]], Any], check: str, words: str) -> None:
    answers = well()
    change(answers)
    wrong = [finding for finding in checked(answers) if finding.wrong]
    assert wrong[0].check == check  # what follows from it may be wrong, too
    assert words in wrong[0].text


def test_a_token_that_label_studio_does_not_accept_is_all_that_is_said_of_a_project() -> None:
    with answering(lambda path: (401, b"{}")) as url:
        settings = Settings(label_studio_url=url, label_studio_api_key=TOKEN)
        project = StudioProject(LabelStudio(settings), ProjectKey(str(origin_of(url)), 7))
        (found,) = check_project(project, settings)
    assert found.check == "token" and found.wrong and "SEMSAM_LABEL_STUDIO_API_KEY" in found.text


def test_a_project_of_a_server_without_a_token_says_where_to_get_one() -> None:
    settings = Settings(label_studio_url="http://127.0.0.1:1")
    (found,) = check_project(StudioProject(LabelStudio(settings), ProjectKey("http://127.0.0.1:1", 7)), settings)
    assert found.check == "token" and found.wrong and "personal access token" in found.text


def test_an_object_store_for_photos_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serving_s3():
        for address, wrong in (("s3://photos/kept", False), ("s3://nowhere/kept", True)):
            settings = Settings(data_dir=tmp_path, photo_store=address)
            found = {each.check: each for each in check_backend(settings, BackendCalls("http://127.0.0.1:1", settings))}
            assert found["photo store"].wrong == wrong and address in found["photo store"].text


def test_a_backend_that_does_not_answer_and_a_token_that_is_missing_are_named(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    nobody = BackendCalls("http://127.0.0.1:1", settings)
    found = {finding.check: finding for finding in check_backend(settings, nobody)}
    assert found["backend"].wrong and "`semsam serve` starts it" in found["backend"].text
    assert found["token"].wrong and "SEMSAM_LABEL_STUDIO_API_KEY" in found["token"].text
    assert not found["disk"].wrong
