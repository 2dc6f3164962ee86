from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backend.conftest import postgres_process, postgres_server, region_weights, weights
from tests.endurance.clicks import make_photos
from tests.endurance.report import Report
from tests.endurance.service_process import ServiceProcess, running
from tests.paths import ROOT

__all__ = ["minutes", "postgres_process", "postgres_server", "region_weights", "weights"]


@pytest.fixture(scope="session")
def minutes(request: pytest.FixtureRequest) -> float:
    """How long `make soak` takes; 0: the short form of each test, of a few seconds."""
    return float(request.config.getoption("--soak-minutes"))


@dataclass(frozen=True)
class Shared:
    """A service that several tests ask, and the photos that it can read."""

    service: ServiceProcess
    photos: list[str]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, region_weights: Path, minutes: float) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    photos = make_photos(folder / "photos", 48)
    settings = {"model": "tiny", "weights": region_weights, "local_files_root": folder / "photos", "threads": 2}
    with running(folder, max_image_pixels=1_000_000, max_body_bytes=2**23, **settings) as service:
        while minutes and not service.lines("text encoder ready"):  # to import it is not what is measured
            time.sleep(0.1)
        yield Shared(service, photos)


@pytest.fixture(scope="session")
def report(minutes: float) -> Report:
    return Report(ROOT / "out" / "soak" if minutes else None)
