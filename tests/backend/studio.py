"""A Label Studio over HTTP, as far as comparing with it goes: projects, tasks with annotations, predictions, photos."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.backend.annotations import CONFIG, SIZE, annotation, at
from tests.backend.stored import photo
from tests.backend.studio_http import answering


class FakeStudio:
    """What it holds may be changed while it serves; every change of a task's annotations is a newer `updated_at`."""

    def __init__(self) -> None:
        self.url = ""
        self.projects: set[int] = set()
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, Any]] = {}
        self.asked: list[str] = []  #: paths, with their queries
        self.status: dict[str, int] = {}  #: of answers to paths, or "task 1", that are asked for in vain
        self.before: Callable[[str], None] = lambda path: None  #: called before an answer is sent

    def task(self, number: int, *annotations: dict[str, Any], project: int = 7) -> None:
        """Make the task have these annotations."""
        self.projects.add(project)
        before = self.tasks.get(number, {"changes": 0})
        self.tasks[number] = {
            "id": number,
            "project": project,
            "data": {"image": f"/data/upload/{project}/{number}.png"},
            "annotations": list(annotations),
            "changes": before["changes"] + 1,
            "updated_at": at(before["changes"]).isoformat(),
        }

    def read(self) -> list[int]:
        """Tasks that were asked for with their annotations since this was called last."""
        asked, self.asked = self.asked, []
        return [number for number in map(chosen_task, asked) if number is not None]

    def answer(self, path: str) -> tuple[int, bytes]:
        parts = urlsplit(path)
        words = parts.path.strip("/").split("/")
        found: Any = None
        name = parts.path if (number := chosen_task(path)) is None else f"task {number}"
        if name in self.status:
            return self.status[name], b"{}"
        if words[0] == "data":
            return 200, photo(int(words[-1].removesuffix(".png")), SIZE)
        if words[1] == "projects" and int(words[2]) in self.projects:
            found = {"id": int(words[2]), "title": f"project {words[2]}", "label_config": CONFIG}
        elif words[1] == "predictions":
            found = self.predictions.get(int(words[2]))
        elif number is not None:
            found = {"tasks": [self.tasks[number]] if number in self.tasks else [], "total": int(number in self.tasks)}
        elif parts.path == "/api/tasks/":  # a task's own address makes predictions: nobody may ask for it
            query = parse_qs(parts.query)
            found = self._page({name: int(query[name][0]) for name in ("project", "page", "page_size")})
        return (404, b"{}") if found is None else (200, json.dumps(found).encode())

    def _page(self, asked: dict[str, int]) -> dict[str, Any]:
        mine = [task for _, task in sorted(self.tasks.items()) if task["project"] == asked["project"]]
        first = (asked["page"] - 1) * asked["page_size"]
        listed = [{name: task[name] for name in ("id", "updated_at")} for task in mine]
        return {"tasks": listed[first : first + asked["page_size"]], "total": len(mine)}


def chosen_task(path: str) -> int | None:
    """The task that a list of tasks is asked for alone, with all that it has."""
    query = parse_qs(urlsplit(path).query)
    return json.loads(query["query"][0])["selectedItems"]["included"][0] if "query" in query else None


def labelled(number: int, *rows: dict[str, Any], task: int, project: int = 7, **more: Any) -> dict[str, Any]:
    """An annotation of a task of this Label Studio."""
    return annotation(number, list(rows), task=task, **more) | {"project": project}


@contextlib.contextmanager
def serving(studio: FakeStudio) -> Iterator[FakeStudio]:
    """The same, at `studio.url`."""

    def get(path: str) -> tuple[int, bytes]:
        studio.asked.append(path)
        answer = studio.answer(path)
        studio.before(path)
        return answer

    with answering(get) as studio.url:
        yield studio
