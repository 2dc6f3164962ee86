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
from tests.backend.studio import chosen_task
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
        #: called when a path, or "task 1", has been asked for, with how often; before that is answered
        self.on_get: Callable[[str, int], None] = lambda path, times: None
        self._asked: Counter[str] = Counter()

    def delete(self, number: int) -> None:
        del self.images[number]

    def versions(self) -> dict[int, list[str]]:
        """Of each task's predictions."""
        return {number: [each["model_version"] for each in found] for number, found in self.predictions.items()}

    def get(self, path: str) -> bytes | None:
        """What is at a path; None: nothing."""
        number, parts = chosen_task(path), urlsplit(path)
        self._asked[path] += 1
        self.on_get(parts.path if number is None else f"task {number}", self._asked[path])
        if path in self.files:
            return self.files[path]
        if parts.path == "/api/projects/1/":
            return json.dumps({"id": 1, "label_config": self.config}).encode()
        if parts.path != "/api/tasks/":
            return None
        if number is None:
            query = {key: int(value[0]) for key, value in parse_qs(parts.query).items() if key.startswith("page")}
            first = (query["page"] - 1) * query["page_size"]
            shown = [{"id": number} for number in self.images][first : first + query["page_size"]]
            return json.dumps({"tasks": shown, "total": len(self.images)}).encode()
        here = [number] if number in self.images else []
        tasks = [{"id": n, "data": {"image": self.images[n]}, "predictions": self.predictions[n]} for n in here]
        return json.dumps({"tasks": tasks, "total": len(tasks)}).encode()

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
