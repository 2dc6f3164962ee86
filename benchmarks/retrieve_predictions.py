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
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from backend.batch.sources import PHOTO_SUFFIXES
from backend.demo.run import ProjectMaker
from backend.demo.servers import HOST, Credentials, start_backend, start_label_studio
from backend.inference.preannotation import UNFINISHED
from benchmarks.machine import ROOT, children, cpu_seconds, described, free_port, peak_mib

CONFIG = (ROOT / "configs" / "labeling.xml").read_text()
UPLOADED = 20  #: files of one upload


@contextlib.contextmanager
def servers(data: Path) -> Iterator[tuple[ProjectMaker, str, dict[str, str], str, int]]:
    """(Label Studio's API, its address, headers for it, the backend's address, its process id)."""
    with contextlib.ExitStack() as stack:
        credentials = Credentials.load_or_create(data / "credentials.json")
        port, backend_port = free_port(), free_port()
        program = ROOT / ".venv-ls" / "bin" / "label-studio"
        studio = start_label_studio(program, port, data / "ls", credentials, data / "ls.log")
        stack.callback(studio.stop)
        url, backend_url = f"http://{HOST}:{port}", f"http://{HOST}:{backend_port}"
        backend = start_backend(backend_port, url, credentials, data, data / "backend.log")
        stack.callback(backend.stop)
        studio.wait_until_healthy(900)
        backend.wait_until_healthy(300)
        while requests.get(f"{backend_url}/health", timeout=10).json()["model_state"] != "ready":
            time.sleep(0.5)
        while "text encoder ready" not in (data / "backend.log").read_text():
            time.sleep(0.5)
        headers = {"Authorization": f"Token {credentials.token}"}
        yield ProjectMaker(url, credentials.token), url, headers, backend_url, children(backend.pid)[-1]


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


def click_ms(backend_url: str, task: dict[str, Any], size: tuple[int, int]) -> float:
    """Milliseconds of a click in the middle of a task's photo of this (W, H), as the backend answers it."""
    row = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image", "is_positive": True}
    row |= {"original_width": size[0], "original_height": size[1], "value": {"x": 50, "y": 50, "width": 0.2}}
    body = {"label_config": CONFIG, "params": {"context": {"result": [row]}}, "tasks": [task]}
    began = time.perf_counter()
    answer = requests.post(f"{backend_url}/predict", json=body, timeout=100)
    milliseconds = 1000 * (time.perf_counter() - began)
    if not answer.json()["results"][0]["result"]:
        raise RuntimeError(f"task {task['id']}: an empty answer to a click")
    return milliseconds


def said(milliseconds: list[float]) -> str:
    if not milliseconds:
        return "-"
    return f"{statistics.median(milliseconds):.0f} ms, slowest {max(milliseconds):.0f} ms ({len(milliseconds)})"


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
    step = max(1, len(photos) // (given.tasks + 2 * given.clicks + 1))  # of every kind that the folder holds
    chosen = photos[::step][: given.tasks + 2 * given.clicks + 1]
    if len(chosen) < given.tasks + 2 * given.clicks + 1:
        raise SystemExit(f"{given.photos}: {len(photos)} photos, too few")
    stack = contextlib.ExitStack()
    data = given.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with stack, servers(data) as (api, url, headers, backend_url, pid):
        title = f"{time.time():.0f}"
        clicked = tasks_of(api, upload(api, f"clicked {title}", chosen[given.tasks :], backend_url))
        project = upload(api, f"retrieved {title}", chosen[: given.tasks], backend_url)
        sizes = {task["id"]: size_of(f"{url}{task['data']['image']}", headers) for task in clicked}
        warm_photo, unseen = clicked[0], iter(clicked[1:])
        click_ms(backend_url, warm_photo, sizes[warm_photo["id"]])
        before = peak_mib(pid)

        def clicks(until: threading.Event) -> tuple[list[float], list[float]]:
            warm, cold = list[float](), list[float]()
            for task in itertools.islice(unseen, given.clicks):
                if until.wait(given.pause):
                    break
                warm.append(click_ms(backend_url, warm_photo, sizes[warm_photo["id"]]))
                if until.wait(given.pause):
                    break
                cold.append(click_ms(backend_url, task, sizes[task["id"]]))
            return warm, cold

        quiet = clicks(threading.Event())
        done, seconds, answers = threading.Event(), list[float](), list[Any]()

        def retrieve() -> None:
            began = time.perf_counter()
            selected = {"selectedItems": {"all": True, "excluded": []}, "ordering": []}
            query = {"id": "retrieve_tasks_predictions", "project": project}
            address = f"{url}/api/dm/actions"
            answer = requests.post(address, params=query, json=selected, headers=headers, timeout=200)
            seconds.append(time.perf_counter() - began)
            answers.append(answer.json())
            done.set()

        used = cpu_seconds(pid)
        asking = threading.Thread(target=retrieve)
        asking.start()
        busy = clicks(done)
        asking.join()
        used = cpu_seconds(pid) - used
        found = tasks_of(api, project)
        outcome: Counter[str] = Counter()
        for task in found:
            versions = [p["model_version"] for p in task["predictions"]]
            outcome["no answer" if not versions else "not yet" if versions[0].endswith(UNFINISHED) else "done"] += 1
        regions = sum(len(p["result"]) for task in found for p in task["predictions"])
        print(f"Label Studio answered: {answers[0]}\n")
        print("| figure | measured |\n|---|---|")
        print(f"| {given.tasks} tasks in one request | {seconds[0]:.0f} s |")
        counts = ", ".join(str(outcome[name]) for name in ("done", "not yet", "no answer"))
        print(f"| annotated, to be asked again, without answer | {counts} |")
        print(f"| regions and relations of a task | {regions / max(1, outcome['done']):.1f} |")
        print(f"| backend's processor time a task, clicks' included | {used / max(1, outcome['done']):.2f} s |")
        print(f"| backend's peak memory, before and after | {before:.0f} MiB, {peak_mib(pid):.0f} MiB |")
        for name, (warm, cold) in (("without the request", quiet), ("during the request", busy)):
            print(f"| warm click {name}, median | {said(warm)} |")
            print(f"| cold click {name}, median | {said(cold)} |")
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
