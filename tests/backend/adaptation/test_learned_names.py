"""Through the service as it is wired: a submitted region changes the next click; switched off, nothing changes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.service import SemsamService, assemble, build_service
from backend.settings import Settings
from tests.backend.annotations import CONFIG, NOON

ORIGIN = "http://127.0.0.1:9"  # nobody listens there
WORDS = CONFIG.replace('value="object"', 'value="wheel"').replace('value="part"', 'value="door"')
PHOTO = {"image": "/data/local-files/?d=a.png"}


@pytest.fixture
def settings(tmp_path: Path, weights: Path) -> Settings:
    cells = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.kron(cells, np.ones((12, 12, 1), np.uint8))).save(tmp_path / "photos" / "a.png")
    folders: dict[str, Any] = {"data_dir": tmp_path / "data", "local_files_root": tmp_path / "photos"}
    return Settings(model="tiny", weights=weights, label_studio_url=ORIGIN, sync_seconds=3600, **folders)


@pytest.fixture
def service(settings: Settings) -> Iterator[SemsamService]:
    with contextlib.closing(build_service(settings, Metrics())) as made:
        yield made


def click(service: SemsamService) -> list[dict[str, Any]]:
    """Masks of a click, best last."""
    row = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image", "is_positive": True}
    row |= {"original_width": 84, "original_height": 60, "value": {"x": 40, "y": 50, "width": 0.2}}
    body = {"project": "7.2", "label_config": WORDS, "params": {"context": {"result": [row]}}}
    (prediction,) = service.predict_request(body | {"tasks": [{"id": 1, "project": 7, "data": PHOTO}]}, "r")
    return [row for row in prediction["result"] if row["type"] == "brushlabels"]


def told(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["score"], row["value"], row["meta"]["text"], row["meta"]["level"]) for row in rows]


def submit(service: SemsamService, *rows: dict[str, Any]) -> None:
    project = {"id": 7, "title": "cars", "label_config": WORDS, "created_at": NOON.isoformat()}
    one = {"id": 3, "task": 1, "project": 7, "completed_by": 3, "was_cancelled": False, "ground_truth": False}
    one |= {"created_at": NOON.isoformat(), "updated_at": NOON.isoformat(), "result": list(rows)}
    body = {"action": "ANNOTATION_CREATED", "annotation": one, "task": {"id": 1, "data": PHOTO}}
    assert service.event(body | {"project": project})["status"] == "noted"


def labelled(row: dict[str, Any], label: str) -> dict[str, Any]:
    return row | {"value": row["value"] | {"brushlabels": [label]}}


def test_a_submitted_region_names_the_next_click_and_puts_its_like_first(service: SemsamService) -> None:
    before = click(service)
    assert not any("door" in row["meta"]["text"][0] and "wheel" in row["meta"]["text"][0] for row in before)
    *_, smallest, best = before  # large to small, but the best last
    submit(service, labelled(smallest, "door"), labelled(best, "wheel"))
    until = time.monotonic() + 60
    while told(after := click(service)) == told(before):
        assert time.monotonic() < until, "nothing was learned"
        time.sleep(0.05)
    same = next(row for row in after if row["value"]["rle"] == smallest["value"]["rle"])
    assert same["value"]["brushlabels"] == ["door"] and "door" in same["meta"]["text"][0].split("|")[0]
    assert same["score"] > smallest["score"]


def test_switched_off_in_the_settings_what_is_stored_changes_nothing(settings: Settings) -> None:
    service = build_service(replace(settings, learning=False), Metrics())
    before = told(click(service))
    submit(service, labelled(click(service)[-2], "door"))
    time.sleep(0.3)
    assert told(click(service)) == before
    service.close()


def test_another_project_learns_nothing_from_it(settings: Settings) -> None:
    with contextlib.closing(assemble(settings, Metrics())) as service:
        service.predictor.start()
        service.events.start()
        service.learner.start()
        submit(service, labelled(click(service)[-2], "door"))
        until = time.monotonic() + 60
        digest = service.predictor.ready().version.digest
        while service.learner.learned(ProjectKey(ORIGIN, 7), digest) is None:
            assert time.monotonic() < until and service.learner.wait(60)
        assert service.learner.learned(ProjectKey(ORIGIN, 8), digest) is None
