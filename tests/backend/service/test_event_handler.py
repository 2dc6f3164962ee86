"""From a click to the store, through the service, with its own threads; and what cannot be understood."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import count, find_project, list_projects, problems, stream_regions
from backend.label_studio.client import LabelStudio
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.service import SemsamService, build_service
from backend.settings import Settings
from backend.store.database import Store
from backend.web.app import create_app
from tests.backend.annotations import CONFIG, annotation, brush_row, square
from tests.backend.photo_studio import Files, body, keypoint, serving
from tests.backend.stored import find_suggestion
from tests.backend.studio_http import TOKEN
from tests.waiting import eventually

PROJECT = {
    "id": 1,
    "title": "p",
    "label_config": CONFIG,
    "created_at": "1970-01-01T00:00:17Z",
    "updated_at": "1970-01-01T00:00:17Z",
}


@pytest.fixture
def settings(weights: Path, tmp_path: Path) -> Iterator[Settings]:
    with serving(Files()) as url:
        yield Settings(
            label_studio_url=url, label_studio_api_key=TOKEN, model="tiny", weights=weights, data_dir=tmp_path
        )


@pytest.fixture
def service(settings: Settings) -> Iterator[SemsamService]:
    with contextlib.closing(build_service(settings, Metrics())) as service:
        yield service


@pytest.fixture
def kept(settings: Settings, service: SemsamService) -> Iterator[Store]:
    """The service's store, opened beside it."""
    with contextlib.closing(Store.open(f"sqlite:///{settings.data_dir}/semsam.db")) as store:
        yield store


def submitted(*rows: dict[str, Any]) -> dict[str, Any]:
    """The webhook of an annotation of the first task, made now."""
    made = annotation(1, list(rows)) | {"project": 1, "updated_at": "2100-01-01T00:00:00Z"}
    task = {"id": 1, "data": {"image": "/data/upload/1/a.png"}}
    return {"action": "ANNOTATION_CREATED", "annotation": made, "task": task, "project": PROJECT}


def test_what_was_clicked_and_accepted_is_in_the_store_with_its_picture(
    settings: Settings, service: SemsamService, kept: Store
) -> None:
    (prediction,) = service.predict_request(body([keypoint(25, 50)], "a.png"), "r1")
    rows = [row for row in prediction["result"] if "meta" in row]
    drawn = brush_row("by-hand", square(1, 1, 5)) | {"original_width": 84, "original_height": 60}
    key = ProjectKey(LabelStudio(settings).origin("1.17"), 1)
    assert service.event(submitted(rows[-1], drawn))["status"] == "noted"
    eventually(lambda: all(r.image_sha256 for r in stream_regions(kept, key)) and count(kept, key).regions == 1)

    (region,) = stream_regions(kept, key)
    assert (region.outcome, region.iou_with_offer, region.rank) == ("accepted", 1.0, 1)
    assert region.click == (21, 30)
    assert list(problems(kept, key).values()) != []  # drawn on a photo of another size
    suggestion = find_suggestion(kept, region.prompt_id or "")
    assert suggestion is not None
    assert len(suggestion.candidates) == len(rows)
    assert suggestion.model_version == prediction["model_version"] == region.model_version
    photos = PhotoArchive(settings.data_dir / "photos")
    eventually(lambda: photos.has(region.image_sha256 or ""))
    assert photos.path(region.image_sha256 or "").read_bytes() == Files().content["/data/upload/1/a.png"]
    assert find_project(kept, 1).label_config == CONFIG


def test_a_project_is_known_from_its_introduction(service: SemsamService, kept: Store, settings: Settings) -> None:
    setup = {"project": "5.17", "schema": CONFIG, "hostname": settings.label_studio_url, "access_token": ""}
    service.setup(setup)
    eventually(lambda: [(found.key.project, found.label_config) for found in list_projects(kept)] == [(5, CONFIG)])


def test_an_event_that_brings_nothing_is_ignored(service: SemsamService) -> None:
    assert service.event({"action": "LABEL_LINK_CREATED", "project": PROJECT})["status"] == "ignored"
    assert service.event({"action": "SOMETHING_NEW"})["status"] == "ignored"


def test_a_webhook_that_cannot_be_stored_is_not_acknowledged(
    service: SemsamService, settings: Settings, kept: Store
) -> None:
    http = create_app(settings, service, Metrics()).test_client()
    with kept.write() as connection:
        connection.exec_driver_sql("ALTER TABLE inbox RENAME TO away")
    assert http.post("/webhook", json=submitted()).status_code == 503
    with kept.write() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO inbox")
    assert http.post("/webhook", json=submitted()).status_code == 200


def test_a_webhook_that_says_too_little_or_carries_no_secret_has_its_project_compared_and_is_named(
    settings: Settings, service: SemsamService, kept: Store
) -> None:
    service.setup({"project": "1.17", "schema": CONFIG, "hostname": settings.label_studio_url, "access_token": ""})
    eventually(lambda: [found.key.project for found in list_projects(kept)] == [1])
    asked = list[ProjectKey]()
    service.events._sync_thread.request_sync_soon = asked.append  # type: ignore[method-assign]
    for sent in ({"action": "ANNOTATION_CREATED"}, {"action": "START_TRAINING", "project": {"id": "text"}}):
        assert service.event(sent) == {"status": "compared", "action": sent["action"]}
    http = create_app(replace(settings, webhook_secret=SecretStr("s")), service, Metrics()).test_client()
    assert http.post("/webhook", json=submitted()).status_code == 401
    assert http.post("/webhook", json=submitted() | {"project": {"id": 99}}).status_code == 401
    assert [key.project for key in asked] == [1, 1, 1]
    page = http.get("/").text
    paths = {path.project and path.project.project: path.refused for path in service.status().paths}
    assert [line.split(",")[0] for line in paths[1]] == ["1 without secret"]
    assert [line.split(",")[0] for line in paths[None]] == ["2 without payload", "1 without secret"]
    assert "webhooks refused: 2 without payload, compared instead; switch" in page
