"""Killed at random moments, nothing that was acknowledged is lost or doubled, and no half-made file stays."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endurance.killed.__main__ import KINDS
from tests.endurance.report import Report
from tests.paths import ROOT

pytestmark = pytest.mark.slow

SHARE = 0.3  #: of the minutes of `make soak`, for all of these together


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: a killed process, unlike a power cut, needs no disk to be survived."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_at_random_moments(
    database: str,
    folder: Path,
    weights: Path,
    region_weights: Path,
    minutes: float,
    report: Report,
    request: pytest.FixtureRequest,
) -> None:
    server = "sqlite" if database == "sqlite" else request.getfixturevalue("postgres_server")
    seconds = 60 * minutes * SHARE / (2 * len(KINDS))
    seed = random.randrange(10**6) if minutes else 1
    arguments = (server, folder, seconds, seed, weights, region_weights)
    done = subprocess.run(
        [sys.executable, "-m", "tests.endurance.killed", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (seed, done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, each in found.items():
        line = f"{kind}: killed in {each['killed']} of {each['rounds']} rounds, {each['said']} acknowledged"
        report.note(request.node.name, line)
    assert set(found) == set(KINDS) and sum(each["killed"] for each in found.values()) >= 5
    assert not minutes or all(each["killed"] for each in found.values())
