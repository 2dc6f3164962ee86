"""Label Studio's "Retrieve predictions" for many tasks in one request, with clicks all the while.

    python -m benchmarks.retrieve_predictions PHOTOS [--tasks 250] [--clicks 20] [--data DIR]

PHOTOS is a folder with so many different photos and more. A real Label Studio (.venv-ls) and `semsam serve` with its
default settings and model are started in a temporary folder; the action is asked for through the API, as the browser
does. Clicks go to the backend as Label Studio sends them: warm ones on one photo, cold ones each on a photo that no
one has seen. Prints seconds, how many tasks were annotated, the backend's peak memory, and milliseconds a click.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from backend.batch.sources import PHOTO_SUFFIXES
from backend.demo.project import ProjectMaker
from backend.demo.servers import HOST, start_backend
from backend.inference.preannotation import UNFINISHED
from benchmarks.label_studio import CONFIG, LabelStudio, answer, click_request, starting_label_studio
from benchmarks.machine import children, cpu_seconds, described, free_port, peak_mib

UPLOADED = 20  #: files of one upload


@contextlib.contextmanager
def servers(data: Path) -> Iterator[tuple[LabelStudio, str, int]]:
    """(Label Studio, the backend's address, its process id), both ready and with their models loaded."""
    with starting_label_studio(data) as studio:
        port = free_port()
        backend = start_backend(port, studio.url, studio.credentials, data, data / "backend.log")
        try:
            backend_url = f"http://{HOST}:{port}"
            studio.server.wait_until_healthy(900)
            backend.wait_until_healthy(300)
            while requests.get(f"{backend_url}/health", timeout=10).json()["model_state"] != "ready":
                time.sleep(0.5)
            while "text encoder ready" not in (data / "backend.log").read_text():
                time.sleep(0.5)
            yield studio, backend_url, children(backend.pid)[-1]
        finally:
            backend.stop()


def upload(api: ProjectMaker, title: str, photos: list[Path], backend_url: str) -> int:
    """A project with a task for each photo, connected to the backend."""
    project = api.make(title, CONFIG, [], backend_url).id
    for first in range(0, len(photos), UPLOADED):
        with contextlib.ExitStack() as stack:
            some = photos[first : first + UPLOADED]
            files = {p.name: (f"{first}-{p.name}", stack.enter_context(p.open("rb"))) for p in some}
            api.call("POST", f"/api/projects/{project}/import", files=files)
    return project


def tasks_of(api: ProjectMaker, project: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for page in itertools.count(1):
        query = {"project": project, "page": page, "page_size": 100, "fields": "all"}
        answer = api.call("GET", "/api/tasks", params=query)
        found += answer["tasks"]
        if len(found) >= answer["total"]:
            return found
    raise AssertionError


def size_of(address: str, headers: dict[str, str]) -> tuple[int, int]:
    """(W, H) of a photo that Label Studio holds."""
    return Image.open(BytesIO(requests.get(address, headers=headers, timeout=60).content)).size


@dataclass
class Clicker:
    """Clicks as Label Studio sends them, warm ones on `warm` and cold ones on each task of `unseen` once."""

    backend_url: str
    sizes: dict[int, tuple[int, int]]  #: (W, H) of the photo of each task
    warm: dict[str, Any]
    unseen: Iterator[dict[str, Any]]
    pause: float  #: seconds between clicks

    def click(self, task: dict[str, Any]) -> float:
        """Milliseconds."""
        return answer(self.backend_url, click_request(task, self.sizes[task["id"]]))[1]

    def clicks(self, count: int, until: threading.Event) -> Clicks:
        """At most `count` warm and cold ones, until the event is set."""
        found = Clicks()
        for task in itertools.islice(self.unseen, count):
            if until.wait(self.pause):
                break
            found.warm.append(self.click(self.warm))
            if until.wait(self.pause):
                break
            found.cold.append(self.click(task))
        return found


@dataclass
class Clicks:
    """Milliseconds of each."""

    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)


def retrieve(studio: LabelStudio, project: int) -> tuple[float, Any]:
    """ "Retrieve predictions" for all tasks of a project: (seconds, Label Studio's answer)."""
    began = time.perf_counter()
    selected = {"selectedItems": {"all": True, "excluded": []}, "ordering": []}
    query: dict[str, str | int] = {"id": "retrieve_tasks_predictions", "project": project}
    address = f"{studio.url}/api/dm/actions"
    body = requests.post(address, params=query, json=selected, headers=studio.headers, timeout=200).json()
    return time.perf_counter() - began, body


def said(milliseconds: list[float]) -> str:
    if not milliseconds:
        return "-"
    return f"{statistics.median(milliseconds):.0f} ms, slowest {max(milliseconds):.0f} ms ({len(milliseconds)})"


def print_tasks(tasks: list[dict[str, Any]], used: float) -> None:
    """Rows about the tasks after the request, for which the backend used so many seconds of a processor."""
    counts: Counter[str] = Counter()
    for task in tasks:
        versions = [p["model_version"] for p in task["predictions"]]
        counts["no answer" if not versions else "not yet" if versions[0].endswith(UNFINISHED) else "done"] += 1
    regions, done = sum(len(p["result"]) for task in tasks for p in task["predictions"]), max(1, counts["done"])
    annotated = ", ".join(str(counts[name]) for name in ("done", "not yet", "no answer"))
    print(f"| annotated, to be asked again, without answer | {annotated} |")
    print(f"| regions and relations of a task | {regions / done:.1f} |")
    print(f"| backend's processor time a task, clicks' included | {used / done:.2f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--tasks", type=int, default=250)
    parser.add_argument("--clicks", type=int, default=20, help="warm and cold, before the request and during it")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between clicks")
    parser.add_argument(
        "--data", type=Path, help="Label Studio's database is kept there: its first start takes minutes"
    )
    given = parser.parse_args()
    photos = sorted(p for p in given.photos.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    step = max(1, len(photos) // (given.tasks + 2 * given.clicks + 1))  # evenly spread over the folder
    chosen = photos[::step][: given.tasks + 2 * given.clicks + 1]
    if len(chosen) < given.tasks + 2 * given.clicks + 1:
        raise SystemExit(f"{given.photos}: {len(photos)} photos, too few")
    with contextlib.ExitStack() as stack:
        data = given.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        studio, backend_url, pid = stack.enter_context(servers(data))
        title = f"{time.time():.0f}"
        clicked = tasks_of(studio.api, upload(studio.api, f"clicked {title}", chosen[given.tasks :], backend_url))
        project = upload(studio.api, f"retrieved {title}", chosen[: given.tasks], backend_url)
        sizes = {task["id"]: size_of(f"{studio.url}{task['data']['image']}", studio.headers) for task in clicked}
        clicker = Clicker(backend_url, sizes, clicked[0], iter(clicked[1:]), given.pause)
        clicker.click(clicker.warm)
        before = peak_mib(pid)
        quiet = clicker.clicks(given.clicks, threading.Event())
        used, done = cpu_seconds(pid), threading.Event()
        with ThreadPoolExecutor(1) as thread:
            retrieving = thread.submit(retrieve, studio, project)
            retrieving.add_done_callback(lambda _: done.set())
            busy = clicker.clicks(given.clicks, done)
            seconds, body = retrieving.result()
        used = cpu_seconds(pid) - used
        print(f"Label Studio answered: {body}\n")
        print("| figure | measured |\n|---|---|")
        print(f"| {given.tasks} tasks in one request | {seconds:.0f} s |")
        print_tasks(tasks_of(studio.api, project), used)
        print(f"| backend's peak memory, before and after | {before:.0f} MiB, {peak_mib(pid):.0f} MiB |")
        for name, clicks in (("without the request", quiet), ("during the request", busy)):
            print(f"| warm click {name}, median | {said(clicks.warm)} |")
            print(f"| cold click {name}, median | {said(clicks.cold)} |")
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
