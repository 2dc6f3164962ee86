"""A real Label Studio for benchmarks, and its requests to the backend."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend.demo.project import ProjectMaker
from backend.demo.servers import HOST, Credentials, Server, label_studio_program, start_label_studio
from benchmarks.machine import LABELING, ROOT, free_port

CONFIG = LABELING.read_text()


@dataclass(frozen=True)
class LabelStudio:
    """A running Label Studio with an empty or an earlier database."""

    url: str
    credentials: Credentials
    server: Server
    database: Path  #: its folder

    @property
    def api(self) -> ProjectMaker:
        return ProjectMaker(self.url, self.credentials.token)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Token {self.credentials.token}"}


@contextlib.contextmanager
def starting_label_studio(data: Path) -> Iterator[LabelStudio]:
    """Label Studio (.venv-ls) with its database in the folder `data`; it may not answer yet, see `server`."""
    credentials, port = Credentials.load_or_create(data / "credentials.json"), free_port()
    server = start_label_studio(label_studio_program(ROOT), port, data / "ls", credentials, data / "ls.log")
    try:
        yield LabelStudio(f"http://{HOST}:{port}", credentials, server, data / "ls")
    finally:
        server.stop()


def click_request(task: dict[str, Any], size: tuple[int, int], at: tuple[float, float] = (50, 50)) -> dict[str, Any]:
    """A predict request as Label Studio sends it: a click on a task's photo of this (W, H), at percent of it."""
    row = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image", "is_positive": True}
    row |= {"original_width": size[0], "original_height": size[1], "value": {"x": at[0], "y": at[1], "width": 0.2}}
    return {"label_config": CONFIG, "params": {"context": {"result": [row]}}, "tasks": [task]}


def answer(backend_url: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """(The backend's prediction, milliseconds). Raises RuntimeError when it is empty."""
    began = time.perf_counter()
    (prediction,) = requests.post(f"{backend_url}/predict", json=body, timeout=100).json()["results"]
    milliseconds = 1000 * (time.perf_counter() - began)
    if not prediction["result"]:
        raise RuntimeError(f"task {body['tasks'][0]['id']}: an empty answer to a click")
    return prediction, milliseconds
