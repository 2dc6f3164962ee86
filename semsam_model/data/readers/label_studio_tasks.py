"""The tasks in a file or folder of Label Studio's: its JSON export, one task, or target storage.

Target storage holds one annotation a file, with its task inside. Other exports are refused with what to export instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semsam_model.data.readers.file_kinds import LABEL_STUDIO, parse_annotations
from semsam_model.data.readers.losses import Losses
from semsam_model.errors import DataError

_MIN = "JSON-MIN, which lacks what belongs to a mask: export as JSON instead"
_COMPLETIONS = (
    "`completions` of a Label Studio before 1.0: import it into a newer one, and export it from there as JSON"
)
_PREDICTIONS = "predictions, and no annotation: submit them in Label Studio, and export again"


@dataclass(frozen=True)
class Task:
    """A task as it stands in a file."""

    where: str  #: "task 7", or where in the file it is
    data: Any
    annotations: Any
    unsubmitted: bool  #: it has drafts or predictions


def read_tasks(export: Path, losses: Losses) -> list[Task]:
    """Every task; what is none is left out. Raises DataError for a file or folder without one that could be read."""
    reasons = dict[str, int]()
    tasks: list[Task] = []
    stored: dict[Any, list[Any]] = {}
    for number, (place, entry) in enumerate(_entries(export, losses)):
        where = place or f"entry {number}"
        if isinstance(entry, dict) and "id" in entry and not place:
            where = f"task {entry['id']!r}"
        reason = _reason(entry)
        if reason is not None:
            losses.add("task" if isinstance(entry, dict) else "entry", where.removeprefix("task "), reason, 0)
            reasons[reason] = reasons.get(reason, 0) + 1
        elif "data" not in entry:
            task = entry["task"]
            known = stored.setdefault(task.get("id", where), [])
            known.append(entry)
            if len(known) == 1:
                tasks.append(Task(f"task {task.get('id', where)!r}", task["data"], known, False))
        else:
            unsubmitted = bool(entry.get("predictions") or entry.get("drafts"))
            tasks.append(Task(where, entry["data"], entry.get("annotations"), unsubmitted))
    if not tasks:
        held = max(reasons, key=lambda each: reasons[each], default="no task")
        raise DataError(f"{export}: expected {LABEL_STUDIO}, this holds {held}")
    if tasks and all(not task.annotations and task.unsubmitted for task in tasks):
        raise DataError(f"{export}: expected annotations, this holds {_PREDICTIONS}")
    return tasks


def _reason(entry: Any) -> str | None:
    """Why an entry is no task that can be read."""
    if not isinstance(entry, dict):
        return f"a {type(entry).__name__} in the place of a task"
    if "data" in entry:
        return _COMPLETIONS if "completions" in entry and not entry.get("annotations") else None
    if "result" in entry and "task" in entry:
        if isinstance(entry["task"], dict) and "data" in entry["task"]:
            return None
        return "an annotation without its task's data: export as JSON, or take the files of a target storage"
    if "annotation_id" in entry or "annotator" in entry:
        return _MIN
    return "no task with its data"


def _entries(export: Path, losses: Losses) -> Iterator[tuple[str, Any]]:
    """(file in the folder, or "", what it holds), for each entry. Raises DataError."""
    if not export.is_dir():
        yield from (("", entry) for entry in _listed(parse_annotations(export, LABEL_STUDIO, list, dict)))
        return
    files = sorted(path for path in export.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = False
    for path in files:
        name = path.relative_to(export).as_posix()
        if path.suffix.lower() not in ("", ".json"):
            continue  # photos may lie beside them
        try:
            entries = _listed(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as exc:
            losses.add("file", name, f"expected JSON: {exc}", 0)
            continue
        found = True
        yield from ((name, entry) for entry in entries)
    if not found:
        raise DataError(f"{export}: expected files of a target storage, one annotation each, found none that is JSON")


def _listed(content: Any) -> Iterable[Any]:
    if isinstance(content, dict) and isinstance(content.get("tasks"), list):
        return list(content["tasks"])  # the API's list
    return content if isinstance(content, list) else [content]
