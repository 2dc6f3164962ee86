"""A running backend follows what another process makes live: no failed or mixed answer, and never a bad model."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from backend.metrics import Metrics
from backend.service.service import assemble
from backend.settings import Settings
from backend.store.database import open_store
from backend.versions import files as version_files
from backend.versions.registry import Registry, open_registry
from backend.versions.version import ModelVersion
from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import read_model_config
from tests.paths import BRUSH_WITH_LEVELS
from tests.semsam_model.networks import structured

CONFIG = BRUSH_WITH_LEVELS.read_text()
CLICKS = [(25, 50), (60, 30), (80, 80)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("trained")
    for seed in (1, 2):
        save(folder / f"{seed}.safetensors", structured(read_model_config("tiny"), seed), read_model_config("tiny"))
    return sorted(folder.iterdir())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        cells = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(np.kron(cells, np.ones((12, 12, 1), np.uint8))).save(folder / name)
    return folder


@pytest.fixture
def own(tmp_path: Path, trained: list[Path], photos: Path) -> Settings:
    return Settings(model="tiny", weights=trained[0], data_dir=tmp_path / "data", local_files_root=photos)


@pytest.fixture
def registry(own: Settings) -> Iterator[Registry]:
    store = open_store(own)
    yield open_registry(own, store)
    store.close()


@pytest.fixture
def child(registry: Registry, trained: list[Path]) -> ModelVersion:
    return registry.register(trained[1], parent=registry.base.version)


def request(click: tuple[int, int]) -> dict[str, Any]:
    """The same click on two photos."""
    row = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image", "is_positive": True}
    row |= {"original_width": 84, "original_height": 60, "value": {"x": click[0], "y": click[1], "width": 0.2}}
    tasks = [{"id": i, "project": 1, "data": {"image": f"/data/local-files/?d={n}.png"}} for i, n in enumerate("ab")]
    return {"project": "1.2", "label_config": CONFIG, "params": {"context": {"result": [row]}}, "tasks": tasks}


def content(predictions: list[dict[str, Any]]) -> str:
    """All that was answered, without the ids that are new each time."""
    rows = [[{k: row[k] for k in ("type", "value", "score")} for row in p["result"]] for p in predictions]
    return json.dumps([[p["model_version"] for p in predictions], [p["score"] for p in predictions], rows])


@pytest.fixture
def served(own: Settings) -> Iterator[str]:
    """Address of `semsam serve`, a process of its own."""
    variables = {
        "SEMSAM_MODEL": "tiny",
        "SEMSAM_WEIGHTS": own.weights,
        "SEMSAM_DATA_DIR": own.data_dir,
        "SEMSAM_LOCAL_FILES_ROOT": own.local_files_root,
        "SEMSAM_PORT": 0,
        "SEMSAM_TORCH_THREADS": 1,
        "SEMSAM_VERSION_POLL_SECONDS": 0.1,
    }
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), **{k: str(v) for k, v in variables.items()}}
    command = [sys.executable, "-c", "from backend.cli.main import main; main()", "serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        lines = iter(running.stderr)
        url = next(line for line in lines if "listening on" in line).split()[-1]
        reader = threading.Thread(target=lambda: [None for _ in lines])  # a full pipe would stop the server
        reader.start()
        yield url
        running.terminate()
        reader.join()


def until(url: str, version: str) -> None:
    deadline = time.monotonic() + 60
    while (health := requests.get(f"{url}/health", timeout=5).json())["model_version"] != version:
        assert time.monotonic() < deadline, health
        time.sleep(0.05)


@pytest.mark.slow
def test_while_versions_switch_under_load_every_answer_is_whole_and_of_one_version(
    registry: Registry, child: ModelVersion, served: str
) -> None:
    def ask(click: tuple[int, int], session: requests.Session) -> str:
        answer = session.post(f"{served}/predict", json=request(click), timeout=60)
        assert answer.status_code == 200
        assert all(prediction["result"] for prediction in answer.json()["results"])
        return content(answer.json()["results"])

    with requests.Session() as session:
        expected = {(0, click): ask(click, session) for click in CLICKS}
        registry.activate(child.version)
        until(served, child.version)
        expected |= {(1, click): ask(click, session) for click in CLICKS}
    assert len(set(expected.values())) == len(expected)
    names = [registry.base.version, child.version]
    assert all(answer.startswith(json.dumps([[names[which]] * 2])[:-1]) for (which, _), answer in expected.items())

    stop = threading.Event()

    def annotate(first: int) -> list[tuple[tuple[int, int], str]]:
        with requests.Session() as session:
            clicks = itertools.islice(itertools.cycle(CLICKS), first, None)
            return [(click, ask(click, session)) for click in itertools.takewhile(lambda _: not stop.is_set(), clicks)]

    with ThreadPoolExecutor(3) as pool:
        annotators = [pool.submit(annotate, first) for first in range(3)]
        try:
            for _ in range(3):
                registry.rollback()
                until(served, registry.base.version)
                registry.activate(child.version)
                until(served, child.version)
        finally:
            stop.set()
        answers = [answer for annotator in annotators for answer in annotator.result()]
    assert {expected[0, c] for c in CLICKS} | {expected[1, c] for c in CLICKS} == {answer for _, answer in answers}
    assert all(answer in (expected[0, click], expected[1, click]) for click, answer in answers)
    assert "semsam_model_switches_total 7.0" in requests.get(f"{served}/metrics", timeout=5).text
    assert requests.post(f"{served}/setup", json={"project": "1.2"}, timeout=5).json()["model_version"] == child.version
    told = requests.get(f"{served}/versions", timeout=5).json()
    assert (told["versions"], told["live"]) == (names, child.version)


class Following:
    """A service whose follower polls when told."""

    def __init__(self, own: Settings) -> None:
        self.metrics = Metrics()
        self.service = assemble(own, self.metrics)
        self.follower, self.store = self.service.follower, self.service.store
        self.service.predictor.start()
        self.service.predictor.ready()

    def failures(self) -> str:
        lines = self.metrics.render().decode().splitlines()
        return next(line for line in lines if line.startswith("semsam_model_load_failures_total")).split()[-1]

    def answered_by(self) -> str:
        """The version that answers a click, with a mask."""
        prediction, _ = self.service.predict_request(request(CLICKS[0]), "r")
        assert prediction["result"]
        version: str = prediction["model_version"]
        return version


def spoil(version: ModelVersion) -> None:
    path = version.folder / version_files.WEIGHTS
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_live_version_that_is_damaged_is_not_served_and_the_old_one_goes_on(
    own: Settings, registry: Registry, child: ModelVersion
) -> None:
    following = Following(own)
    registry.activate(child.version)
    spoil(child)
    for _ in range(3):
        following.follower.poll()
    health = following.service.health()
    assert (health["model_state"], health["model_version"]) == ("ready", registry.base.version)
    assert "altered" in health["problem"]
    assert following.failures() == "1.0", "one try a minute is enough"
    assert following.answered_by() == registry.base.version
    registry.rollback()
    following.follower.poll()
    assert "problem" not in following.service.health()


def test_a_start_with_a_damaged_live_version_serves_the_one_before_it_and_says_so(
    own: Settings, registry: Registry, child: ModelVersion
) -> None:
    registry.activate(child.version)
    spoil(child)
    following = Following(own)
    assert following.answered_by() == registry.base.version
    following.follower.poll()
    assert "altered" in following.service.health()["problem"]


def test_a_start_serves_the_live_version(own: Settings, registry: Registry, child: ModelVersion) -> None:
    registry.activate(child.version)
    assert Following(own).answered_by() == child.version


def test_without_the_database_the_model_goes_on_answering_and_follows_again_when_it_is_back(
    own: Settings, registry: Registry, child: ModelVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    following = Following(own)
    registry.activate(child.version)
    following.store.close()  # its connections would still read the file under its new name
    away = own.data_dir.rename(tmp_path / "away")
    for _ in range(3):
        following.follower.poll()
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 1
    assert following.answered_by() == registry.base.version
    assert following.service.versions()["versions"] == [registry.base.version]
    away.rename(own.data_dir)
    following.follower.poll()
    assert following.answered_by() == child.version
