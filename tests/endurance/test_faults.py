"""What the service stands on goes away and comes back: one clear line, nothing lost, and no restart."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.corrections.queries import list_projects, stream_regions
from backend.store.database import Store
from benchmarks.machine import cpu_seconds
from tests.backend import postgres
from tests.backend.annotations import annotation, brush_row, event, square
from tests.backend.studio import FakeStudio, labelled, serving
from tests.backend.studio_http import TOKEN
from tests.endurance.clicks import click, make_photos
from tests.endurance.report import Report
from tests.endurance.service_process import ServiceProcess, running
from tests.waiting import eventually

pytestmark = pytest.mark.slow

#: Of `make soak`, while Label Studio was away: 5,000 in half an hour, on one of the databases.
CHANGES_A_MINUTE = {"sqlite": 170, "postgresql": 35}
SOON_S = 60.0


def delivery(number: int) -> dict[str, Any]:
    """A webhook: a region on a task of its own."""
    return event("ANNOTATION_CREATED", annotation=annotation(number, [brush_row("a", square(1, 1, 5))], task=number))


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with serving(FakeStudio()) as studio:
        yield studio


@pytest.fixture
def settings(region_weights: Path, studio: FakeStudio, tmp_path: Path) -> dict[str, object]:
    make_photos(tmp_path / "photos", 4)
    return {
        "model": "tiny",
        "weights": region_weights,
        "local_files_root": tmp_path / "photos",
        "label_studio_url": studio.url,
        "label_studio_api_key": TOKEN,
        "threads": 2,
    }


def clicked(service: ServiceProcess) -> bool:
    """Whether a click gets a mask, whatever is away."""
    return bool(service.post("/predict", click(1, "0000.png")).json()["results"][0]["result"])


def stored(url: str) -> set[int]:
    """Annotations with regions."""
    with contextlib.closing(Store.open(url)) as store:
        every = (stream_regions(store, project.key) for project in list_projects(store))
        return {region.key.annotation for regions in every for region in regions}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_label_studio_and_database_go_and_come_back(
    database: str,
    settings: dict[str, object],
    studio: FakeStudio,
    tmp_path: Path,
    minutes: float,
    report: Report,
    request: pytest.FixtureRequest,
) -> None:
    if database == "sqlite" and not minutes:
        pytest.skip("the other one does the same, and more")
    url = f"sqlite:///{tmp_path}/data/semsam.db"
    server: postgres.Server | None = None
    if database == "postgresql":
        server = request.getfixturevalue("postgres_process")
        url = postgres.new_database(server.url)
        settings = settings | {"database_url": url}
    changes = int(CHANGES_A_MINUTE[database] * minutes) or 30
    long = SOON_S + changes / 5
    studio.task(1, labelled(1, brush_row("a", square(1, 1, 5)), task=1))
    with running(tmp_path, sync_seconds=2, **settings) as service:
        assert service.post("/webhook", delivery(1)).status_code == 200
        eventually(lambda: len(service.lines("photos fetched, 0 could not be")) > 0)

        # Label Studio is away for a while, and much changes there: no webhook of it arrives
        away = dict.fromkeys(("/api/projects/7/", "/api/tasks/"), 503)
        studio.status |= away
        eventually(lambda: len(service.lines("WARNING", "not compared with Label Studio")) == 1)
        for number in range(2, changes + 2):
            studio.task(number, labelled(number, brush_row("a", square(1, 1, 5)), task=number))
        for number in range(changes + 2, changes + 12):
            assert service.post("/webhook", delivery(number)).status_code == 200
            studio.task(number, labelled(number, brush_row("a", square(1, 1, 5)), task=number))
        assert clicked(service)
        time.sleep(5)
        said = service.lines("WARNING", "503")
        assert len(said) == 1, said  # one line, however often it was tried
        began, used = time.monotonic(), cpu_seconds(service.worker)
        studio.status.clear()
        expected = set(range(1, changes + 12))
        eventually(lambda: stored(url) == expected, long)
        took, used = time.monotonic() - began, cpu_seconds(service.worker) - used
        report.note(
            request.node.name, f"{changes} changes worked in {took:.0f} s after it was back, processor {used:.0f} s"
        )
        eventually(lambda: len(service.lines("INFO", "no longer not compared")) == 1, long)

        # the token is revoked, and a new one of the same name made
        revoked = dict.fromkeys(away, 401)
        studio.status |= revoked
        # photos of what has changed are fetched first
        eventually(lambda: len(service.lines("WARNING", "answered 401", "label_studio_api_key")) > 0, long)
        time.sleep(3)
        assert len(service.lines("WARNING", "answered 401")) == 1
        assert clicked(service)
        studio.status.clear()
        eventually(lambda: len(service.lines("INFO", "no longer not compared")) == 2, long)

        if server is not None:
            server.stop()
            try:
                answer = service.post("/webhook", delivery(changes + 50))
                assert answer.status_code == 503 and "database" in answer.json()["error"]  # not acknowledged
                assert clicked(service)
                assert service.get("/health").status_code == service.get("/versions").status_code == 200
                time.sleep(4)
                said = [line for line in service.lines("database") if "INFO" not in line and "request" not in line]
                assert 1 <= len(said) <= 6, said  # the threads that write, learn, follow and compare say it once each
            finally:
                server.start()
            # what Label Studio does not have, the next comparison takes away
            studio.task(changes + 50, labelled(changes + 50, brush_row("a", square(1, 1, 5)), task=changes + 50))
            eventually(lambda: service.post("/webhook", delivery(changes + 50)).status_code == 200)
            eventually(lambda: changes + 50 in stored(url))
        assert "Traceback" not in service.log()
        assert service.stop() == 0


def test_a_disk_that_is_full_acknowledges_nothing_and_goes_on_when_there_is_room(
    settings: dict[str, object], tmp_path: Path
) -> None:
    with running(tmp_path, **settings) as service:
        assert service.post("/webhook", delivery(1)).status_code == 200
        eventually(lambda: len(service.lines("photos fetched")) > 0)
        limits = resource.prlimit(service.worker, resource.RLIMIT_FSIZE)
        resource.prlimit(service.worker, resource.RLIMIT_FSIZE, (4096, limits[1]))  # of each file, as a full disk
        acknowledged, refused = {1}, 0
        for number in range(2, 12):
            answer = service.post("/webhook", delivery(number))
            if answer.status_code == 200:
                acknowledged.add(number)
            else:
                assert answer.status_code == 503 and "database" in answer.json()["error"], answer.text
                refused += 1
        assert refused
        assert clicked(service) and service.get("/health").json()["model_state"] == "ready"
        time.sleep(3)
        resource.prlimit(service.worker, resource.RLIMIT_FSIZE, limits)
        for number in range(2, 12):
            assert service.post("/webhook", delivery(number)).status_code == 200
        url = f"sqlite:///{service.data}/semsam.db"
        eventually(lambda: stored(url) == set(range(1, 12)))
        lines = [line for line in service.lines("WARNING") if "request" not in line and "disk" in line]
        assert len(lines) <= 4, lines
        assert "Traceback" not in service.log()
        assert acknowledged <= stored(url)


def test_a_data_folder_that_is_read_only_for_a_while_loses_nothing_that_was_acknowledged(
    settings: dict[str, object], tmp_path: Path
) -> None:
    # root may write anywhere, unless it gives that right up
    unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if unprivileged and shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv for this")
    service = ServiceProcess(tmp_path, prefix=unprivileged, **settings)
    data = service.data
    try:
        service.start()
        acknowledged = {1}
        assert service.post("/webhook", delivery(1)).status_code == 200
        eventually(lambda: len(service.lines("photos fetched")) > 0)
        paths = [data, *data.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        for number in range(2, 6):
            answer = service.post("/webhook", delivery(number))
            assert answer.status_code in (200, 503), answer.text
            acknowledged |= {number} if answer.status_code == 200 else set()
        assert clicked(service) and service.get("/health").status_code == service.get("/").status_code == 200
        time.sleep(2)
        for path, mode in modes.items():
            path.chmod(mode)
        for number in range(2, 8):
            eventually(lambda number=number: service.post("/webhook", delivery(number)).status_code == 200)
        eventually(lambda: stored(f"sqlite:///{data}/semsam.db") == set(range(1, 8)))
        assert "Traceback" not in service.log()
        assert service.stop() == 0
    finally:
        service.kill()
