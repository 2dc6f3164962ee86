"""Eight clients click while versions switch, lessons come in and a job runs: no answer fails or is of two versions."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.finetuning import jobs
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import open_store
from backend.versions.registry import Registry, open_registry
from semsam_model.checkpoints.checkpoint import load, save
from tests.backend.annotations import annotation, brush_row, event
from tests.endurance.clicks import SIZE, click, make_photos
from tests.endurance.report import Report
from tests.endurance.service_process import COMMAND, ServiceProcess, running
from tests.paths import ROOT

pytestmark = pytest.mark.slow

CLIENTS = 8
SHARE = 0.3  #: of the minutes of `make soak`
SHORT_S = 6.0
SWITCHES = 100
PLACES = [(30.0, 40.0), (70.0, 60.0)]
LESSONS = 7  #: the project that lessons come in for
ORIGIN = "http://127.0.0.1:8080"

Clicked = tuple[str, tuple[float, float]]


def shown(prediction: dict[str, Any]) -> tuple[str, str]:
    """(version, all that the annotator sees of the answer). Raises AssertionError for an answer of two versions."""
    rows = prediction["result"]
    versions = {prediction["model_version"], *(row["meta"]["model_version"] for row in rows if "meta" in row)}
    assert len(versions) == 1, versions
    assert {(row["original_height"], row["original_width"]) for row in rows} <= {SIZE}
    return versions.pop(), json.dumps([[row["type"], row["value"]] for row in rows], sort_keys=True)


def ask(service: ServiceProcess, number: int, clicked: Clicked, project: int = 1) -> tuple[str, str]:
    answer = service.post("/predict", click(number, *clicked, project=project))
    assert answer.status_code == 200
    (prediction,) = answer.json()["results"]
    assert prediction["result"], service.log()[-2000:]
    return shown(prediction)


def lesson(number: int, photo: str) -> dict[str, Any]:
    """A webhook of project LESSONS: something was drawn by hand on a photo."""
    mask = np.zeros(SIZE, bool)
    mask[10 + number % 40 : 50 + number % 40, 20:90] = True
    body = event("ANNOTATION_CREATED", annotation=annotation(number, [brush_row("a", mask)], task=number))
    body["task"]["data"] = {"image": f"/data/local-files/?d={photo}"}
    return body


def registered(registry: Registry, weights: Path, folder: Path, count: int) -> list[str]:
    """Names of so many versions, each with slightly other weights, and of the first."""
    names = [registry.base.version]
    for number in range(count):
        model, _ = load(weights)
        next(model.parameters()).data.mul_(1 + (number + 1) / 50)
        save(folder / f"{number}.safetensors", model, model.config)
        names.append(registry.register(folder / f"{number}.safetensors", parent=registry.base.version).version)
    return names


def test_no_click_fails_or_is_answered_by_two_versions(
    region_weights: Path, tmp_path: Path, minutes: float, report: Report, request: pytest.FixtureRequest
) -> None:
    seconds = 60 * minutes * SHARE or SHORT_S
    photos = make_photos(tmp_path / "photos", 200 if minutes else 6)
    settings: dict[str, Any] = {
        "model": "tiny",
        "weights": region_weights,
        "local_files_root": tmp_path / "photos",
        "version_poll_seconds": 0.2,
        "embedding_cache_bytes": 8 * 2**20,
        "finetune_config": ROOT / "tests" / "journeys" / "finetune.yaml",
        "finetune_after_corrections": 0,
        "label_studio_url": ORIGIN,
    }
    clicks: list[Clicked] = [(photo, place) for photo in photos for place in PLACES]
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running(tmp_path, **settings))
        mine = Settings(data_dir=service.data, model="tiny", weights=region_weights)
        store = stack.enter_context(contextlib.closing(open_store(mine)))
        registry = open_registry(mine, store)
        names = registered(registry, region_weights, tmp_path, 2)

        expected: dict[tuple[str, Clicked], str] = {}
        for name in names:  # each version alone
            registry.activate(name)
            while ask(service, 1, clicks[0])[0] != name:
                time.sleep(0.05)
            for clicked in clicks:
                version, expected[name, clicked] = ask(service, 1, clicked)
                assert version == name

        over, answers, wrong = threading.Event(), Counter[str](), list[object]()
        memory = list[tuple[float, float]]()
        began = time.monotonic()

        def annotate(client: int) -> None:
            chance = random.Random(client)
            while not over.is_set():
                clicked, project = chance.choice(clicks), chance.choice([1, 1, LESSONS])
                try:
                    version, seen = ask(service, chance.randrange(1, 10**6), clicked, project)
                except Exception as error:
                    wrong.append(error)
                    return
                if project == 1 and expected.get((version, clicked), seen) != seen:
                    wrong.append((version, clicked))
                answers[version] += 1

        def switch() -> None:
            chance = random.Random(0)
            # a few more than are wanted: to one that lasts no longer than a poll no service switches
            while not over.wait(seconds / SWITCHES / 1.3 if minutes else 0.5):
                if chance.random() < 0.3 and len(registry.stack()) > 1:
                    registry.rollback()
                else:
                    live = registry.live().version.version
                    registry.activate(chance.choice([name for name in names if name != live]))

        def teach() -> None:
            number = 0
            while not over.wait(max(0.2, seconds / 300)):
                number += 1
                assert service.post("/webhook", lesson(number, photos[number % len(photos)])).status_code == 200

        def measure() -> None:
            while not over.wait(0.5):
                memory.append((time.monotonic() - began, service.resident_mb()))

        with ThreadPoolExecutor(CLIENTS + 3) as pool:
            running_threads = [pool.submit(annotate, client) for client in range(CLIENTS)]
            running_threads += [pool.submit(work) for work in (switch, teach, measure)]
            worker = None
            if minutes:
                time.sleep(seconds / 4)  # until there are enough lessons for a job
                jobs.request(store, ProjectKey(ORIGIN, LESSONS), "command")
                log = stack.enter_context((tmp_path / "worker.txt").open("wb"))
                worker = subprocess.Popen(
                    [*COMMAND, "worker"], env=service.environment, cwd=ROOT, stdout=log, stderr=log
                )
                stack.callback(worker.wait)
                stack.callback(worker.kill)
            try:
                while time.monotonic() < began + seconds and not wrong:
                    time.sleep(0.2)
            finally:
                over.set()
            for each in running_threads:
                each.result()
        assert not wrong, wrong[:3]
        assert sum(answers.values()) > 20 and len(answers) >= 2, answers
        assert "Traceback" not in service.log()
        switches = service.metric("semsam_model_switches_total")
        note = f"{sum(answers.values())} clicks in {seconds:.0f} s, {switches:.0f} switches, {len(answers)} versions"
        report.note(request.node.name, f"{note} answered, none failed or mixed")
        report.plot("memory", "Memory of the service while clicked (resident)", memory)
        if minutes:
            job = jobs.find(store, 1)
            report.note(request.node.name, f"job: {job.state}, {job.stage} {job.message}")
            assert job.state != "failed", (job, (tmp_path / "worker.txt").read_text()[-2000:])
            quarters = [[mb for at, mb in memory if q / 4 <= at / memory[-1][0] <= (q + 1) / 4] for q in range(4)]
            second, last = statistics.median(quarters[1]), statistics.median(quarters[3])
            report.note(request.node.name, f"memory: {second:.0f} MB in the second quarter, {last:.0f} MB in the last")
            assert last < 1.1 * second + 30
        assert service.stop() == 0
