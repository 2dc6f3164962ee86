"""The first click on a photo that was prepared while its predecessor was worked on, beside cold and warm clicks.

    python -m benchmarks.next_photos [--model swin_t] [--photos 5]

A real Label Studio asks the backend as its editor does. Two projects: one in order, whose next photos are prepared, and
one that draws its tasks at random, of which nothing is. All weights but the embedded ones are random: values change no
timing. A table: median and largest seconds of each kind of click, with the way through Label Studio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from backend.demo.project import ProjectMaker
from benchmarks.label_studio import click_request
from benchmarks.machine import ROCKET, cpu_seconds, described
from benchmarks.retrieve_predictions import servers, upload
from semsam_model.checkpoints.checkpoint import save
from semsam_model.config import read_model_config
from semsam_model.network.model import build_model

SIZE = (600, 400)  #: (W, H) of each photo


def made_photos(folder: Path, first: int, count: int) -> list[Path]:
    """Windows of one sample photo, each a pixel further."""
    paths = [folder / f"{number}.png" for number in range(first, first + count)]
    with Image.open(ROCKET) as sample:
        for number, path in enumerate(paths, start=first):
            sample.crop((number, 0, number + SIZE[0], SIZE[1])).save(path)
    return paths


class Project:
    """Its tasks are clicked as Label Studio's editor does it."""

    def __init__(self, api: ProjectMaker, title: str, photos: list[Path], backend_url: str, sampling: str) -> None:
        self._api = api
        number = upload(api, title, photos, backend_url)
        api.call("PATCH", f"/api/projects/{number}/", json={"sampling": sampling})
        (self._backend,) = api.call("GET", "/api/ml", params={"project": number})
        found = api.call("GET", "/api/tasks", params={"project": number, "page_size": 100})["tasks"]
        self.tasks = sorted(task["id"] for task in found)

    def click(self, task: int) -> float:
        """Seconds."""
        context = click_request({"id": task}, SIZE)["params"]["context"]
        began = time.perf_counter()
        path = f"/api/ml/{self._backend['id']}/interactive-annotating"
        answer = self._api.call("POST", path, json={"task": task, "context": context})
        seconds = time.perf_counter() - began
        if not answer.get("data", {}).get("result"):
            raise RuntimeError(f"task {task}: an empty answer to a click")
        return seconds


def wait_until_idle(pid: int) -> None:
    """Until the process has done next to nothing for six seconds: nothing more is prepared."""
    idle = 0
    while idle < 2:
        before = cpu_seconds(pid)
        time.sleep(3)
        idle = idle + 1 if cpu_seconds(pid) - before < 0.1 else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="swin_t", help="a name in configs/model, or mobile for the embedded weights")
    parser.add_argument("--photos", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if given.model != "mobile":
            config = read_model_config(given.model)
            save(data / "random.safetensors", build_model(config), config)
            os.environ |= {"SEMSAM_MODEL": given.model, "SEMSAM_WEIGHTS": str(data / "random.safetensors")}
        with servers(data) as (studio, backend_url, pid):
            photos = made_photos(data, 0, 2 * given.photos + 1)
            at_random = Project(studio.api, "random", photos[: given.photos], backend_url, "Uniform sampling")
            in_order = Project(studio.api, "order", photos[given.photos :], backend_url, "Sequential sampling")
            kinds: dict[str, list[float]] = {"cold": [], "prepared": [], "warm": []}
            for task in at_random.tasks:
                kinds["cold"].append(at_random.click(task))
                kinds["warm"].append(at_random.click(task))
            in_order.click(in_order.tasks[0])
            for task in in_order.tasks[1:]:
                wait_until_idle(pid)
                kinds["prepared"].append(in_order.click(task))
                kinds["warm"].append(in_order.click(task))
        print(f"| model {given.model} | median, s | largest, s | clicks |\n|---|---|---|---|")
        for kind, seconds in kinds.items():
            print(f"| {kind} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {len(seconds)} |")
        print(f"\n{described()}")


if __name__ == "__main__":
    main()
