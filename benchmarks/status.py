"""How long the status page takes: `python -m benchmarks.status [--regions 200000] [--url DATABASE]`.

A made store: three projects with 70, 25 and 5 % of the regions, ten to an annotation, every fourth annotation begun
from a prediction, masks of 200 to 1,500 characters; of ten regions one is drawn, the others were offered, each by a
prompt of its own with five candidates, and one prompt an annotation was rejected. Milliseconds, wall and processor time
of this process (all of it for SQLite), median of five: reading the status, the page made of it, and what the learner
asks every few seconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from backend.adaptation.lessons import fingerprint
from backend.records import ProjectKey
from backend.service.status import read_status
from backend.store.database import Store
from backend.store.tables import annotations, offers, predictions, projects, regions
from backend.web.pages import render

ORIGIN, BEGAN = "http://ls:8080", datetime(2026, 1, 1, tzinfo=UTC)
SHARES = (0.7, 0.25, 0.05)
OUTCOMES = ("accepted",) * 6 + ("corrected",) * 2 + ("relabelled", "drawn")
EACH = len(OUTCOMES)  #: regions of an annotation
AT_ONCE = 500  #: annotations written together
REPEATS = 5


def fill(store: Store, wanted: int) -> None:
    """Put so many regions, or a few less, into an empty store."""
    dice, number = random.Random(0), 0
    for project, share in enumerate(SHARES, start=1):
        title = {"title": f"Project {project}", "label_config": "", "updated_at": BEGAN}
        with store.write() as connection:
            connection.execute(insert(projects), [{"origin": ORIGIN, "project": project} | title])
        left = int(wanted * share) // EACH
        while left:
            rows: dict[Any, list[dict[str, Any]]] = {each: [] for each in (annotations, predictions, regions, offers)}
            for _ in range(min(left, AT_ONCE)):
                number, left = number + 1, left - 1
                for table, row in _annotation(project, number, dice):
                    rows[table].append(row)
            with store.write() as connection:
                for table, each in rows.items():
                    if each:
                        connection.execute(insert(table), each)


def _annotation(project: int, number: int, dice: random.Random) -> list[tuple[Any, dict[str, Any]]]:
    at, begun = BEGAN + timedelta(seconds=20 * number), number % 4 == 0
    where = {"origin": ORIGIN, "project": project, "task": number}
    own = {"annotation": number, "received_at": at, "updated_at": at, "prediction": number if begun else None}
    found: list[tuple[Any, dict[str, Any]]] = [(annotations, where | own)]
    if begun:
        offered = [{"region": f"{number}-{k}", "label": "a", "mask": "x" * 600} for k in range(EACH + 1)]
        row = {"origin": ORIGIN, "prediction": number, "regions": EACH + 1, "width": 1000, "height": 1000}
        found.append((predictions, row | {"offered": offered}))
    found.append((offers, _offer(where, f"rejected-{number}", at - timedelta(seconds=30))))
    for place, outcome in enumerate(OUTCOMES):
        by_click = outcome != "drawn" and not begun
        prompt = f"{number}-{place}"
        row = where | {"annotation": number, "region": prompt, "updated_at": at, "outcome": outcome, "labels": ["a"]}
        row |= {"image_sha256": f"{number:064x}", "width": 1000, "height": 1000}
        row |= {"mask": "x" * dice.randint(200, 1500), "preannotated": begun and outcome != "drawn"}
        row |= {"rank": dice.choice((1, 1, 2, 3)) if outcome != "drawn" else None}
        row |= {"prompt_id": prompt if by_click else None, "seconds": 3.0 if by_click else None}
        found.append((regions, row))
        if by_click:
            found.append((offers, _offer(where, prompt, at - timedelta(seconds=10))))
    return found


def _offer(where: dict[str, Any], prompt: str, at: datetime) -> dict[str, Any]:
    candidate = {"region": "r", "rank": 1, "level": 1, "score": 0.5, "bbox": [0, 0, 1, 1], "mask": "x" * 400}
    row = {"prompt_id": prompt, "image_sha256": "0" * 64, "width": 1000, "height": 1000, "milliseconds": 100.0}
    row |= {"prompt": {"clicks": [], "boxes": [], "text": None}, "model_version": "v", "created_at": at}
    return where | row | {"candidates": [candidate | {"label": "a", "names": []}] * 5}


def measure(what: str, work: Callable[[], Any]) -> Any:
    """Print the medians; what the last call gave."""
    wall, processor = [], []
    for _ in range(REPEATS):
        began, busy = time.perf_counter(), time.process_time()
        found = work()
        wall.append(1000 * (time.perf_counter() - began))
        processor.append(1000 * (time.process_time() - busy))
    print(f"{what}: {statistics.median(wall):.0f} ms, of the processor {statistics.median(processor):.0f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=200_000)
    parser.add_argument("--url", help="of an empty database; SQLite in a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(arguments.url or f"sqlite:///{Path(folder) / 'semsam.db'}")
        fill(store, arguments.regions)
        print(f"{store.dialect}, {arguments.regions} regions")
        status = measure("reading the status", lambda: read_status(store))
        now = datetime.now(UTC)
        health = {"status": "UP", "model_version": "v", "model_state": "ready"}
        measure("the page", lambda: render(status, health, {"live": "v"}, "http://localhost:9090", now))
        measure("the learner's look", lambda: fingerprint(store, ProjectKey(ORIGIN, 1)))
        store.close()


if __name__ == "__main__":
    main()
