"""Corrections on their way from a real Label Studio into the store: by webhook, or by comparison without one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from backend.batch.sources import Item, task_items
from backend.corrections.archive import PhotoArchive
from backend.corrections.photos import fetch_photos
from backend.corrections.queries import count, find_project, stream_regions
from backend.corrections.sync import bring_up_to_date, sync_project
from backend.demo.project import DemoProject
from backend.doctor.checks import check_project
from backend.doctor.connect import connect
from backend.doctor.studio import StudioProject
from backend.errors import NotFound
from backend.label_studio.backend_calls import BackendCalls
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from tests.backend.annotations import brush_row, square
from tests.backend.studio_http import answering
from tests.journeys.conftest import Studio
from tests.paths import CONFIGS, SAMPLES
from tests.waiting import eventually

pytestmark = pytest.mark.browser

PHOTOGRAPHS = sorted(SAMPLES.glob("*.jpg"))


def regions(store: Store, key: ProjectKey) -> dict[str, tuple[int, str | None]]:
    """Region -> annotation and digest of its picture."""
    return {each.key.region: (each.key.annotation, each.image_sha256) for each in stream_regions(store, key)}


def box(region: str, at: float, side: float, photo: int = 0) -> dict[str, Any]:
    """A rectangle in percent on one of the photographs."""
    with Image.open(PHOTOGRAPHS[photo]) as image:
        size = {"original_width": image.width, "original_height": image.height}
    value = {"x": at, "y": at, "width": side, "height": side, "rotation": 0, "rectanglelabels": ["object"]}
    return {"id": region, "type": "rectanglelabels", "from_name": "mask", "to_name": "image", "value": value} | size


def test_annotations_reach_the_store_by_webhook_and_another_one_by_comparison_alone(
    studio: Studio, project: Callable[..., DemoProject], backends_store: Store, tmp_path: Path
) -> None:
    call, made = studio.api.call, project(PHOTOGRAPHS[:3])
    key = ProjectKey(studio.url, made.id)
    first, second, third = made.tasks

    def annotate(task: int, *rows: dict[str, Any]) -> int:
        return call("POST", f"/api/tasks/{task}/annotations/", json={"result": list(rows), "lead_time": 1})["id"]

    one = annotate(first, box("a", 1, 5), box("b", 9, 5))
    two = annotate(second, box("c", 1, 5, photo=1))
    three = annotate(third, box("d", 1, 5, photo=2))
    annotations = {"a": one, "b": one, "c": two, "d": three}
    eventually(lambda: annotations == {name: known[0] for name, known in regions(backends_store, key).items()})
    # their pictures are fetched afterwards, and kept
    eventually(lambda: all(known[1] for known in regions(backends_store, key).values()))
    photos = PhotoArchive(studio.demo.data / "photos")
    kept = {photos.path(sha256 or "").read_bytes() for _, sha256 in regions(backends_store, key).values()}
    assert kept == {photograph.read_bytes() for photograph in PHOTOGRAPHS[:3]}

    # a backend that was down all the time, with another store
    settings = Settings(label_studio_url=studio.url, label_studio_api_key=studio.credentials.token)
    label_studio = LabelStudio(settings)
    store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
    found = sync_project(store, label_studio, key)
    assert (found.tasks, found.read, found.changed, found.deleted) == (3, 3, 3, 0)
    assert fetch_photos(store, label_studio, PhotoArchive(tmp_path / "photos"), key) == (3, 0)
    assert regions(store, key) == regions(backends_store, key)
    again = sync_project(store, label_studio, key)
    assert (again.read, again.changed, again.deleted) == (0, 0, 0)

    call("PATCH", f"/api/annotations/{one}/", json={"result": [box("b", 9, 7)]})
    call("DELETE", f"/api/annotations/{two}/")
    call("DELETE", f"/api/tasks/{third}/")
    found = sync_project(store, label_studio, key)
    assert (found.tasks, found.read, found.changed, found.deleted) == (2, 2, 1, 2)
    assert set(regions(store, key)) == {"b"}
    assert count(store, key).deleted == 3
    fetch_photos(store, label_studio, PhotoArchive(tmp_path / "photos"), key)
    sent = regions(store, key)
    eventually(lambda: regions(backends_store, key) == sent)
    assert [each.mask for each in stream_regions(store, key)] == [
        each.mask for each in stream_regions(backends_store, key)
    ]

    call("DELETE", f"/api/projects/{made.id}/")
    with pytest.raises(NotFound):
        sync_project(store, label_studio, key)
    assert find_project(store, made.id).deleted_at is not None
    assert set(regions(store, key)) == {"b"}  # what was learned from a project outlives it
    store.close()


def test_a_webhook_without_the_secret_is_refused_and_start_training_is_not(
    studio: Studio, project: Callable[..., DemoProject]
) -> None:
    body = {"action": "ANNOTATION_CREATED", "annotation": {}}
    assert requests.post(f"{studio.backend_url}/webhook", json=body, timeout=30).status_code == 401
    made = project(PHOTOGRAPHS[:1])
    (connection,) = studio.api.call("GET", "/api/ml", params={"project": made.id})
    studio.api.call("POST", f"/api/ml/{connection['id']}/train", json={})
    (connection,) = studio.api.call("GET", "/api/ml", params={"project": made.id})
    assert connection["error_message"] in (None, "")


@contextlib.contextmanager
def counting_backend() -> Iterator[tuple[str, list[str]]]:
    """Address of a backend that annotates whatever it is asked for, and the requests for predictions so far."""
    asked: list[str] = []

    def post(body: bytes) -> tuple[int, bytes]:
        tasks = json.loads(body).get("tasks")
        if tasks is None:  # /setup
            return 200, b'{"model_version": "counting"}'
        asked.append(f"{len(tasks)} tasks")
        return 200, json.dumps({"results": [{"result": [], "score": 0.0} for _ in tasks]}).encode()

    with answering(lambda _: (200, b'{"status": "UP"}'), post, token=None) as url:
        yield url, asked


@pytest.mark.parametrize("settings", [{}, {"evaluate_predictions_automatically": True}])
def test_reading_a_project_with_label_studios_own_settings_asks_nobody_for_predictions(
    studio: Studio, tmp_path: Path, settings: dict[str, Any]
) -> None:
    call, config = studio.api.call, (CONFIGS / "labeling.xml").read_text()
    title = f"defaults {len(settings)}"
    with counting_backend() as (url, asked):
        number = call("POST", "/api/projects", json={"title": title, "label_config": config})["id"]
        call("POST", "/api/ml", json={"project": number, "url": url, "title": "counting", "is_interactive": True})
        pictures = [{"image": f"/data/upload/{number}/{name}.png"} for name in "abc"]
        call("POST", f"/api/projects/{number}/import", json=pictures)
        call("PATCH", f"/api/projects/{number}/", json=settings)
        tasks = studio.api.make(title, config, [], url).tasks
        asked.clear()

        def predictions() -> list[str]:
            return [each["model_version"] for each in call("GET", "/api/predictions/", params={"project": number})]

        before = predictions()
        rows = [brush_row("a", square(1, 1, 5))]
        for task in tasks[:2]:
            call("POST", f"/api/tasks/{task}/annotations/", json={"result": rows, "was_cancelled": task == tasks[1]})
        ours = Settings(label_studio_url=studio.url, label_studio_api_key=studio.credentials.token)
        label_studio, key = LabelStudio(ours), ProjectKey(studio.url, number)
        store = Store.open(f"sqlite:///{tmp_path}/semsam.db")
        photos = PhotoArchive(tmp_path / "photos")
        synced, _ = bring_up_to_date(store, label_studio, photos, key, everything=True)
        assert (synced.tasks, synced.read, synced.changed) == (3, 3, 2)
        store.close()
        items = list(task_items(label_studio, number, LabelConfig.parse(config), "ours"))
        assert [item.name for item in items if isinstance(item, Item)] == [f"task {task}" for task in tasks]
        assert isinstance(items[0], Item) and items[0].wanted()
        assert (asked, predictions()) == ([], before)
        items[0].write({"model_version": "ours", "score": 0.5, "result": []})
        assert not items[0].wanted()
        items = list(task_items(label_studio, number, LabelConfig.parse(config), "ours"))
        assert [item is None for item in items] == [True, False, False]
        assert asked == []


def test_a_project_made_by_hand_is_connected_by_a_command_and_the_doctor_has_nothing_to_say(studio: Studio) -> None:
    call, config = studio.api.call, (CONFIGS / "labeling.xml").read_text()
    number = call("POST", "/api/projects", json={"title": "by hand", "label_config": config})["id"]
    with PHOTOGRAPHS[0].open("rb") as picture:
        call("POST", f"/api/projects/{number}/import", files={"a.jpg": ("a.jpg", picture)})
    settings = Settings(
        label_studio_url=studio.url,
        label_studio_api_key=studio.credentials.token,
        webhook_secret=studio.credentials.webhook_secret,
        data_dir=studio.demo.data,
    )
    project = StudioProject(LabelStudio(settings), ProjectKey(studio.url, number))
    backend = BackendCalls(studio.backend_url, settings)
    before = [finding.check for finding in check_project(project, settings, backend) if finding.wrong]
    assert before == ["connection", "webhook"]
    for _ in range(2):
        connect(project, studio.backend_url, settings, prelabel=False)
    found = list(check_project(project, settings, backend, address=studio.backend_url))
    assert not [finding for finding in found if finding.wrong] and found[-1].check == "click"
    assert len(project.connections()) == 1
    assert not project.call("GET", f"/api/projects/{number}/")["show_collab_predictions"]
