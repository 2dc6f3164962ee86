"""No acknowledged correction is lost or doubled: killed at every step, disk full, database gone and back."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.queries import count, stream_regions
from backend.corrections.writer import StoreWriter
from backend.errors import StoreUnavailable
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
from backend.store.database import Store
from tests.backend import postgres
from tests.backend.annotations import KEY, ORIGIN, annotation, answered, brush_row, event, square
from tests.backend.corrections.killed_writer import STATES, bodies
from tests.backend.stored import find_suggestion
from tests.paths import ROOT
from tests.waiting import eventually


def held(store: Store) -> dict[int, dict[int, set[str]]]:
    """Regions by round and annotation; no region comes twice."""
    found: dict[int, dict[int, set[str]]] = defaultdict(dict)
    keys = Counter(region.key for region in stream_regions(store, KEY))
    assert not keys or max(keys.values()) == 1
    for key in keys:
        found[key.task].setdefault(key.annotation - key.task, set()).add(key.region)
    return found


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process, unlike a power cut, needs no disk to be survived."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stride"), [("sqlite", 1), ("postgresql", 3)])
def test_killed_at_any_step_it_has_what_was_acknowledged_once(
    kind: str, stride: int, memory_folder: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{memory_folder}/semsam.db"
    if kind == "postgresql":
        url = postgres.new_database(request.getfixturevalue("postgres_server"))
    command = [sys.executable, "-m", "tests.backend.corrections.killed_writer", url, str(stride), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert sum(killed for _, _, killed in rounds) > 80 / stride  # it has that many steps

    store = Store.open(url)
    process_inbox(store)
    found = held(store)
    for base, acknowledged, killed in rounds:
        # the next one may have been stored though there was no time left to say so
        possible = STATES[acknowledged : acknowledged + 2] if killed else STATES[-1:]
        assert found[base] in possible, (base, acknowledged)
    for base, _, _ in rounds:
        for body in bodies(base):
            enqueue(store, parse_webhook(body).to_event(ORIGIN))
    process_inbox(store)
    assert held(store) == {base: STATES[-1] for base, _, _ in rounds}
    store.close()


FULL = """
import resource, sys
from pathlib import Path
from tests.backend.corrections.test_killed_writer import until_full
until_full(Path(sys.argv[1]))
"""


def until_full(folder: Path) -> None:
    """In a process of its own: write until the disk takes no more, then make room and write on."""
    store = Store.open(f"sqlite:///{folder}/semsam.db")
    size = max(file.stat().st_size for file in folder.iterdir())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 60_000, hard))
    stored = 0
    try:
        for number in range(1, 1000):
            rows = [brush_row("a", square(1, 1, 5)), brush_row("b", square(9, 9, 5))]
            body = event("ANNOTATION_CREATED", annotation=annotation(number, rows, task=number))
            enqueue(store, parse_webhook(body).to_event(ORIGIN))
            stored += 1
            if number % 3 == 0:
                process_inbox(store)
    except StoreUnavailable as error:
        assert "disk" in str(error)
    else:
        raise AssertionError("the disk never filled up")
    assert count(store, KEY).regions <= 2 * stored
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    enqueue(store, parse_webhook(event("ANNOTATION_CREATED", annotation=annotation(2000, []))).to_event(ORIGIN))
    process_inbox(store)
    assert count(store, KEY).regions == 2 * stored
    store.close()


@pytest.mark.slow
def test_a_full_disk_refuses_and_loses_nothing_that_it_took(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_while_the_database_is_gone_nothing_is_acknowledged_and_suggestions_wait_for_it(
    postgres_process: postgres.Server,
) -> None:
    store = Store.open(postgres.new_database(postgres_process.url))
    store_writer = StoreWriter(store, Metrics())
    store_writer.start()
    first = event("ANNOTATION_CREATED", annotation=annotation(1, [brush_row("a", square(1, 1, 5))]))
    store_writer.enqueue(parse_webhook(first).to_event(ORIGIN))
    postgres_process.stop()
    try:
        with pytest.raises(StoreUnavailable):
            store_writer.enqueue(parse_webhook(first).to_event(ORIGIN))
        answer, (row,) = answered([square(5, 5, 20)])
        store_writer.add_answer(answer)
    finally:
        postgres_process.start()
    store_writer.enqueue(parse_webhook(event("ANNOTATION_CREATED", annotation=annotation(2, [row]))).to_event(ORIGIN))
    eventually(lambda: find_suggestion(store, row["meta"]["prompt_id"]) is not None)
    eventually(lambda: count(store, KEY).regions == 2)
    assert {region.iou_with_offer for region in stream_regions(store, KEY)} == {None, 1.0}
    store_writer.stop()
    store.close()
