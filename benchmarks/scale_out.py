"""Several backends on one PostgreSQL and one data folder: `python -m benchmarks.scale_out [--backends 1 2]`.

    --backends N ...   each N is a column
    --photos P         clicked once each ("cold"), then all over again ("warm"); 40 by default, all of which are kept
    --clicks C         warm ones (400)
    --deliveries D     annotations with 8 regions (200)
    --folder DIR       for data and database; a temporary one if not given

Default model, one torch thread a backend, a PostgreSQL server of its own without fsync. Four clients a backend; clicks
on one photo go to one backend, as the proxy sends them, deliveries to each in turn. Prints a table, a row a figure; the
processor seconds are of all backends and, for deliveries, of the database. They hardly depend on what else the machine
does, the rates do.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.corrections.queries import count_waiting
from backend.store.database import Store
from benchmarks.click_memory import make_photos
from benchmarks.label_studio import CONFIG, answer, click_request
from benchmarks.machine import children, cpu_seconds, free_port, print_table, resident_mib
from benchmarks.service import serving
from benchmarks.studio_stand_in import listing
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.masks.geometry import crop_mask
from tests.backend import postgres

CLIENTS, REGIONS = 4, 8
ALONE = 5  #: deliveries that nothing else is done beside


class Backends:
    """Running ones, their logs, and the database behind them."""

    def __init__(self, urls: Sequence[str], pids: Sequence[int], logs: Sequence[Path], store: Store) -> None:
        self.urls, self.pids, self.logs, self.store = urls, pids, logs, store

    def cpu(self) -> float:
        return sum(cpu_seconds(each) for pid in self.pids for each in (pid, *children(pid)))

    def memory(self) -> float:
        """MiB of the largest."""
        return max(sum(map(resident_mib, (pid, *children(pid)))) for pid in self.pids)

    def learned(self) -> list[int]:
        """From how many regions each has learned, by its log."""
        said = [re.findall(r"learned from (\d+) regions", log.read_text()) for log in self.logs]
        return [int(numbers[-1]) if numbers else 0 for numbers in said]

    def rate(self, work: Callable[[int], object], numbers: Sequence[int]) -> tuple[float, float]:
        """(pieces of work a second, processor seconds a piece)."""
        used, began = self.cpu(), time.monotonic()
        with ThreadPoolExecutor(CLIENTS * len(self.urls)) as pool:
            list(pool.map(work, numbers))
        return len(numbers) / (time.monotonic() - began), (self.cpu() - used) / len(numbers)


def measure(count: int, given: argparse.Namespace) -> dict[str, str]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        server = postgres.Server()
        stack.callback(server.remove)
        database = postgres.new_database(server.url)
        studio = stack.enter_context(listing(free_port(), 0, 1))
        shared, logs = folder / "shared", [folder / str(number) for number in range(count)]
        for each in (shared, *logs):
            each.mkdir()
        photos = make_photos(shared, given.photos, np.random.default_rng(0))
        settings = {"database_url": database, "data_dir": str(shared), "torch_threads": "1", "sync_seconds": "0"}
        settings |= {"label_studio_url": studio, "label_studio_api_key": "t"}
        running = [stack.enter_context(serving(log, shared, **settings)) for log in logs]
        store = stack.enter_context(contextlib.closing(Store.open(database)))
        backends = Backends(*zip(*running, strict=True), [log / "log" for log in logs], store)
        found = {"memory after the start, MiB": f"{backends.memory():.0f}"}
        found |= _clicks(backends, photos, given.clicks)
        found |= _deliveries(backends, photos, server.pid, given.deliveries)
        return found


def _clicks(backends: Backends, photos: Sequence[Path], warm: int) -> dict[str, str]:
    sizes = [Image.open(path).size for path in photos]

    def click(number: int) -> None:
        place = number % len(photos)
        task = {"id": place, "project": 1, "data": {"image": f"/data/local-files/?d={photos[place].name}"}}
        at = 20 + 60 * ((number * 7919) % 101) / 101, 20 + 60 * ((number * 104729) % 103) / 103
        with contextlib.suppress(RuntimeError):  # nothing there
            answer(backends.urls[place % len(backends.urls)], click_request(task, sizes[place], at))

    cold = backends.rate(click, range(len(photos)))
    again = backends.rate(click, range(warm))
    return {
        "cold clicks a second; processor seconds of one": f"{cold[0]:.1f}; {cold[1]:.2f}",
        "warm clicks a second; processor seconds of one": f"{again[0]:.1f}; {again[1]:.3f}",
        "memory of a backend then, MiB": f"{backends.memory():.0f}",
    }


def _deliveries(backends: Backends, photos: Sequence[Path], database: int, wanted: int) -> dict[str, str]:
    about = {"id": 1, "title": "", "label_config": CONFIG, "updated_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat()}

    def deliver(number: int) -> None:
        stamp, photo = datetime.now(UTC).isoformat(), photos[number % len(photos)]
        task = {"id": number, "data": {"image": f"/data/local-files/?d={photo.name}"}}
        made = {"id": number, "task": number, "project": 1, "updated_at": stamp, "created_at": stamp}
        body = {"action": "ANNOTATION_CREATED", "project": about, "task": task}
        body |= {"annotation": made | {"result": _rows(*Image.open(photo).size)}}
        url = backends.urls[number % len(backends.urls)]
        requests.post(f"{url}/webhook", json=body, timeout=100).raise_for_status()

    def of_database() -> float:
        return sum(map(cpu_seconds, (database, *children(database))))

    waits = []
    used, used_there = backends.cpu(), of_database()
    for number in range(ALONE):
        before, began = backends.learned(), time.monotonic()
        deliver(number)
        while any(a <= b for a, b in zip(backends.learned(), before, strict=True)) and time.monotonic() - began < 120:
            time.sleep(0.02)
        waits.append(time.monotonic() - began)
    cpu, cpu_there = (backends.cpu() - used) / ALONE, (of_database() - used_there) / ALONE
    began = time.monotonic()
    acknowledged = backends.rate(deliver, range(ALONE, ALONE + wanted))[0]
    while count_waiting(backends.store):
        time.sleep(0.02)
    worked_in = wanted / (time.monotonic() - began)
    return {
        "a delivery alone: every backend has learned it after, s": f"{sorted(waits)[ALONE // 2]:.1f}",
        "processor seconds of it, learning included; of the database": f"{cpu:.2f}; {cpu_there:.3f}",
        "many: acknowledged a second; worked in a second": f"{acknowledged:.1f}; {worked_in:.1f}",
    }


def _rows(width: int, height: int) -> list[dict[str, Any]]:
    """Squares, as the editor sends them."""
    found = []
    for place in range(REGIONS):
        mask = np.zeros((height, width), bool)
        left, top = (place % 4) * width // 4, (place // 4) * height // 2
        mask[top : top + height // 3, left : left + width // 6] = True
        value = {"format": "rle", "rle": encode_brush_rle(*crop_mask(mask), mask.shape), "brushlabels": ["object"]}
        row = {"id": f"r{place}", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": value}
        found.append(row | {"original_width": width, "original_height": height})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--clicks", type=int, default=400)
    parser.add_argument("--deliveries", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    columns = [measure(count, given) for count in given.backends]
    print_table(["backends", *map(str, given.backends)], columns)


if __name__ == "__main__":
    main()
