"""A Label Studio over HTTP, as far as `semsam batch` talks to it: one project, its tasks, photos and predictions."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.backend.photo_studio import CONFIG, Files
from tests.backend.studio_http import answering


class Studio:
    """What it holds. Tasks name photos of `Files`; number them from 1."""

    def __init__(self, *pictures: str, config: str = CONFIG) -> None:
        self.config, self.files = config, Files().content
        self.images = {number: f"/data/upload/1/{name}" for number, name in enumerate(pictures, 1)}
        self.predictions: dict[int, list[dict[str, Any]]] = {number: [] for number in self.images}
        self.written: list[float] = []  #: time.monotonic() of each prediction
        self.gone = False  #: whether it answers nothing any more
        self.refused = set[int]()  #: tasks whose predictions it does not take
        #: called when a path has been asked for, with how often; before that is answered
        self.on_get: Callable[[str, int], None] = lambda path, times: None
        self._asked: Counter[str] = Counter()

    def delete(self, number: int) -> None:
        del self.images[number]

    def versions(self) -> dict[int, list[str]]:
        """Of each task's predictions."""
        return {number: [each["model_version"] for each in found] for number, found in self.predictions.items()}

    def get(self, path: str) -> bytes | None:
        """What is at a path; None: nothing."""
        self._asked[path] += 1
        self.on_get(path.split("?")[0], self._asked[path])
        if path in self.files:
            return self.files[path]
        parts = urlsplit(path)
        if parts.path == "/api/projects/1/":
            return json.dumps({"id": 1, "label_config": self.config}).encode()
        if parts.path == "/api/tasks/":
            query = {key: int(value[0]) for key, value in parse_qs(parts.query).items() if key.startswith("page")}
            first = (query["page"] - 1) * query["page_size"]
            tasks = [{"id": number} for number in self.images]
            shown = tasks[first : first + query["page_size"]]
            return json.dumps({"tasks": shown, "total": len(tasks)}).encode()
        number = int(parts.path.rstrip("/").rpartition("/")[2]) if parts.path.startswith("/api/tasks/") else 0
        if number not in self.images:
            return None
        task = {"id": number, "data": {"image": self.images[number]}, "predictions": self.predictions[number]}
        return json.dumps(task).encode()

    def post(self, prediction: dict[str, Any]) -> bool:
        """Whether it is taken."""
        number = prediction["task"]
        if number not in self.images or number in self.refused:
            return False
        self.predictions[number].append(prediction)
        self.written.append(time.monotonic())
        return True


@contextlib.contextmanager
def at_work(studio: Studio) -> Iterator[str]:
    """Its address."""

    def get(path: str) -> tuple[int, bytes]:
        body = studio.get(path)
        return (503, b"") if studio.gone else (404, b"") if body is None else (200, body)

    def post(content: bytes) -> tuple[int, bytes]:
        taken = studio.post(json.loads(content))
        return (503, b"") if studio.gone else (201 if taken else 400, b"{}")

    with answering(get, post) as url:
        yield url
