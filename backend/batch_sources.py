"""The pictures of `semsam batch`: where they come from, which are done, and where their predictions go.

Sources say what is there and what is done; `batch` annotates the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import BackendError, LabelStudioError
from backend.label_config import LabelConfig
from backend.labelstudio import LabelStudio

PAGE = 100  #: tasks listed at a time
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Item:
    """A picture to look at. `read` raises SemsamError or OSError."""

    name: str  #: for people: a path or "task 7"
    read: Callable[[], bytes]
    write: Callable[[dict[str, Any]], None]


# ------------------------------------------------------------------------------------------------------- Label Studio


def tasks_of(label_studio: LabelStudio, project: int, config: LabelConfig, version: str) -> Iterator[Item | None]:
    """The project's tasks; None for one that has a prediction of exactly this version. Raises LabelStudioError."""
    for number in _listed(label_studio, project):
        task = label_studio.get_task(number)
        if any(prediction.get("model_version") == version for prediction in task.get("predictions") or []):
            yield None
            continue

        def read(number: int = number, task: dict[str, Any] = task) -> bytes:
            return label_studio.fetch_image(config.image_url(task.get("data") or {}), task_id=number)

        def write(prediction: dict[str, Any], number: int = number) -> None:
            label_studio.create_prediction({"task": number, **prediction})

        yield Item(f"task {number}", read, write)


def _listed(label_studio: LabelStudio, project: int) -> list[int]:
    """All ids at once: the order of the pages may change as predictions are written."""
    found: list[int] = []
    page = 1
    while True:
        answer = label_studio.list_tasks(project, page, PAGE)
        tasks, total = answer.get("tasks"), answer.get("total")
        if not isinstance(tasks, list) or not isinstance(total, int):
            raise LabelStudioError(f"project {project}: its list of tasks has another form than expected")
        found += [int(task["id"]) for task in tasks]
        if len(tasks) < PAGE or page * PAGE >= total:
            return found
        page += 1


# ------------------------------------------------------------------------------------------------------------- folders


def pictures_of(folder: Path, out: Path, version: str, limit: int) -> Iterator[Item | None]:
    """The pictures in a folder and below; None for one with a line of this version in `out`. limit: bytes of a file.

    A line that a killed run left unfinished is cut off.
    """
    done = _finished(out, version)
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()):
        name = path.relative_to(folder).as_posix()

        def read(path: Path = path) -> bytes:
            with path.open("rb") as file:
                return file.read(limit + 1)

        def write(prediction: dict[str, Any], name: str = name) -> None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"image": name, **prediction}) + "\n")
                file.flush()
                os.fsync(file.fileno())

        yield None if name in done else Item(name, read, write)


def _finished(out: Path, version: str) -> set[str]:
    if not out.exists():
        return set()
    with out.open("r+b") as file:
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        file.truncate(len(whole))
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return {row["image"] for row in rows if row["model_version"] == version}
    except (ValueError, KeyError, TypeError):
        raise BackendError(f"{out}: expected the JSON lines of an earlier run; name another file") from None
