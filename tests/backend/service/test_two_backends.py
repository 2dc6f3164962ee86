"""Two backends on one PostgreSQL, with one folder or object store of photos, while one of them is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import func, select

from backend.corrections.archive import PhotoArchive, open_photos
from backend.corrections.queries import count_waiting, stream_regions
from backend.records import ProjectKey
from backend.settings import load_settings
from backend.store.database import Store
from backend.store.tables import lessons
from tests.backend import postgres
from tests.backend.annotations import CONFIG, KEY, SIZE, brush_row, event, square
from tests.backend.photo_studio import keypoint
from tests.backend.s3 import serving_s3
from tests.backend.studio import FakeStudio, labelled, serving
from tests.backend.studio_http import TOKEN
from tests.waiting import eventually

SUBMITTED = 60


@dataclass
class Backend:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def is_ready(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=5).json()["model_state"] == "ready"
        return False

    def learned(self) -> int:
        """From how many regions, by its log."""
        return max(map(int, re.findall(r"learned from (\d+) regions", self.log.read_text())), default=0)


@pytest.fixture(params=["one folder", "one object store"])
def backends(
    request: pytest.FixtureRequest, weights: Path, tmp_path: Path, postgres_server: str
) -> Iterator[tuple[list[Backend], Store, ProjectKey, PhotoArchive]]:
    database = postgres.new_database(postgres_server)
    with serving_s3(), serving(FakeStudio()) as studio, contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store.open(database)))
        environment = {
            **os.environ,
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": TOKEN,
            "SEMSAM_DATABASE_URL": database,
            "SEMSAM_MODEL": "tiny",
            "SEMSAM_WEIGHTS": str(weights),
            "SEMSAM_TORCH_THREADS": "1",
        }
        found = []
        own = {"SEMSAM_DATA_DIR": str(tmp_path)}
        for number in range(2):
            if request.param == "one object store":
                own = {"SEMSAM_DATA_DIR": str(tmp_path / str(number)), "SEMSAM_PHOTO_STORE": "s3://photos/kept"}
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            log = tmp_path / f"backend{number}.log"
            process = subprocess.Popen(
                [sys.executable, "-m", "backend.cli.main", "serve", "--port", str(port)],
                env=environment | own,
                stderr=stack.enter_context(log.open("wb")),
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(_kill, process)
            found.append(Backend(f"http://127.0.0.1:{port}", process, log))
        for each in found:
            eventually(each.is_ready, 120)
        photos = open_photos(load_settings(environ=own))
        yield found, store, ProjectKey(studio.url, KEY.project), photos


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def post(backends: list[Backend], first: int, path: str, body: Any) -> requests.Response:
    """As a proxy does it: to one of them, and where that one does not answer, to the other."""
    for turn in range(2 * len(backends)):
        with contextlib.suppress(requests.RequestException):
            answer = requests.post(f"{backends[(first + turn) % 2].url}{path}", json=body, timeout=60)
            if answer.status_code != 503:
                return answer
    raise AssertionError(f"{path}: nobody answers")


def click(task: int, *rows: dict[str, Any]) -> dict[str, Any]:
    """A predict request about a task's photo."""
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    tasks = [{"id": task, "project": 7, "data": {"image": f"/data/upload/7/{task}.png"}}]
    context = {"result": [row | size for row in rows]}
    return {"project": "7.1", "label_config": CONFIG, "params": {"context": context}, "tasks": tasks}


def shown(answer: requests.Response) -> list[Any]:
    """What an annotator sees of it; ids are drawn anew each time."""
    (prediction,) = answer.json()["results"]
    return [(row["type"], row["value"], row.get("score")) for row in prediction["result"]]


@pytest.mark.slow
def test_one_of_two_backends_may_die_nothing_acknowledged_is_lost_or_doubled_and_the_other_has_learned_it(
    backends: tuple[list[Backend], Store, ProjectKey, PhotoArchive],
) -> None:
    both, store, key, photos = backends
    rows: list[dict[str, Any]] = []
    for step in range(3):  # each further click has the next candidate, whoever answered the one before
        rows.append(keypoint(20 + step, 20, control="click"))
        one, other = (shown(post(both, number, "/predict", click(1, *rows))) for number in range(2))
        assert one == other != []
    killing = threading.Event()

    def submit(number: int) -> int:
        row = brush_row(f"r{number}", square(1 + number % 40, 1, 12))
        body = event("ANNOTATION_CREATED", annotation=labelled(number, row, task=number))
        if number == SUBMITTED // 3:
            killing.set()
        return post(both, number, "/webhook", body).status_code

    def ask(number: int) -> tuple[int, int]:
        answer = post(both, number, "/predict", click(number, keypoint(20, 20)))
        return answer.status_code, len(answer.json()["results"])

    def kill() -> None:
        killing.wait(60)
        _kill(both[0].process)

    with ThreadPoolExecutor(8) as pool:
        killed = pool.submit(kill)
        clicks = [pool.submit(ask, number) for number in range(1, 21)]
        acknowledged = list(pool.map(submit, range(1, SUBMITTED + 1)))
        killed.result()
        assert {each.result() for each in clicks} == {(200, 1)}
    assert set(acknowledged) == {200}
    eventually(lambda: count_waiting(store) == 0)
    regions = Counter(region.key.region for region in stream_regions(store, key))
    assert regions == Counter(f"r{number}" for number in range(1, SUBMITTED + 1))

    def kept() -> int:
        with store.read() as connection:
            return connection.scalar(select(func.count()).select_from(lessons)) or 0

    eventually(lambda: kept() == SUBMITTED)
    eventually(lambda: both[1].learned() == SUBMITTED)
    eventually(lambda: all(photos.has(region.image_sha256 or "") for region in stream_regions(store, key)))
    assert both[1].process.poll() is None
    assert "Traceback" not in both[1].log.read_text()
