"""Pre-annotation of many pictures: whatever lacks a prediction of a version gets one, a bad picture is told and passed.

Nothing is remembered here: Label Studio, or the file of JSON lines, says what is done. So a run that was killed is
resumed by running it again, and a second run writes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from backend import protocol
from backend.errors import BackendError, LabelStudioError
from backend.images import decode_photo
from backend.label_config import LabelConfig
from backend.labelstudio import LabelStudio
from backend.naming import Namer
from backend.preannotation import as_prediction, names_of, wanted_regions
from backend.predictor import Loaded, read_model
from backend.settings import Settings
from semsam_model.errors import ConfigError, SemsamError
from semsam_model.text import TextEncoder

GROUP = 8  #: pictures between two writings
PAGE = 100  #: tasks listed at a time
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
Annotate = Callable[[bytes, LabelConfig], dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """A picture to look at. `read` raises SemsamError or OSError."""

    name: str  #: for people: a path or "task 7"
    read: Callable[[], bytes]
    write: Callable[[dict[str, Any]], None]


@dataclass
class Summary:
    """What a run came to."""

    done: int = 0  #: already had a prediction
    written: int = 0
    regions: int = 0
    failed: int = 0


class Annotator:
    """A model of its own, and the text encoder."""

    def __init__(self, settings: Settings, weights: Path) -> None:
        """Raises CheckpointError; ConfigError for a model without object queries."""
        self._settings = settings
        self.loaded: Loaded = read_model(settings, weights)
        config = self.loaded.model.config
        if not config.generic_queries:
            raise ConfigError(
                f"model {self.loaded.version} has no object queries (generic_queries): it annotates no picture without"
                " a click; make a version live that has them"
            )
        self._namer = Namer(TextEncoder(settings.text_encoder)) if config.name_features else None

    def __call__(self, data: bytes, config: LabelConfig) -> dict[str, Any]:
        """The prediction for a picture file, the one that the service gives. Raises ImageError."""
        from semsam_model.preannotate import preannotate

        limits = self._settings.max_image_bytes, self._settings.max_image_pixels
        photo = decode_photo(data, max_bytes=limits[0], max_pixels=limits[1])
        model, version = self.loaded.model, self.loaded.version.version
        labels = names_of(self._namer, config, model.config.text_dim)
        regions = preannotate(model, model.encode(photo.rgb), labels, wanted_regions(self._settings, config))
        return as_prediction(regions, config, photo.sha256, version)


_annotators: list[Annotator] = []  # of a worker process: one


def _begin(settings: Settings, weights: Path) -> None:
    _annotators.append(Annotator(settings, weights))


def _annotate(data: bytes, config: LabelConfig) -> dict[str, Any]:
    return _annotators[0](data, config)


def processes(settings: Settings, weights: Path, workers: int) -> ProcessPoolExecutor:
    """Workers, each with a model of its own."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, _begin, (settings, weights))


def run(
    items: Iterator[Item | None],
    config: LabelConfig,
    annotate: Annotate | Executor,
    *,
    seconds_between: float = 0.0,
    tell: Callable[[str], None] = print,
    on_picture: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Annotate every item, None standing for one that is done, and write group by group.

    seconds_between: least time from one writing to the next. tell: gets a line for each bad picture. Raises
    BackendError when a worker process died, and LabelStudioError when a prediction cannot be written.
    """
    summary, last = Summary(), 0.0
    while group := list(islice(items, GROUP)):
        pending: list[tuple[Item, Callable[[], dict[str, Any]]]] = []
        for item in group:
            if item is None:
                summary.done += 1
                on_picture(summary)
                continue
            try:
                data = item.read()
            except (SemsamError, OSError) as error:
                _failed(summary, item, error, tell, on_picture)
                continue
            if isinstance(annotate, Executor):
                future: Future[dict[str, Any]] = annotate.submit(_annotate, data, config)
                pending.append((item, future.result))
            else:
                pending.append((item, partial(annotate, data, config)))
        for item, answer in pending:
            try:
                prediction = answer()
            except BrokenProcessPool:
                raise BackendError("a worker process has died; run the command again, it goes on from here") from None
            except SemsamError as error:
                _failed(summary, item, error, tell, on_picture)
                continue
            time.sleep(max(0.0, last + seconds_between - time.monotonic()))
            item.write(prediction)
            last = time.monotonic()
            summary.written += 1
            summary.regions += len({row["id"] for row in prediction["result"]})
            on_picture(summary)
    return summary


def _failed(
    summary: Summary, item: Item, error: Exception, tell: Callable[[str], None], on_picture: Callable[[Summary], None]
) -> None:
    summary.failed += 1
    tell(f"{item.name}: {error}")
    on_picture(summary)


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


def read_config(xml: str) -> LabelConfig:
    """A labeling config that answers can be written for. Raises BackendError, BadRequest."""
    config = protocol.LabelConfig.parse(xml)
    if config.answer is None:
        raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
    return config
