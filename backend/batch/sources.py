"""The pictures of `semsam batch`: tasks of a project, files of a folder, of a list, of an object store.

A source is told what is done and gives None for each such picture, an `Item` for every other. All are lazy, so that a
million pictures need no more memory than a few; tasks alone are counted first, as their order may change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from backend.batch.object_store import ObjectStores, is_stored
from backend.batch.task_lines import Names, TaskLines
from backend.errors import BackendError, BadRequest, ImageTooLarge, LabelStudioError, TaskRefused, TokenRefused
from backend.label_studio.client import LabelStudio, all_tasks
from backend.label_studio.connection import Connection, shown
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings
from semsam_model.errors import SemsamError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """A picture to look at. `read` raises SemsamError or OSError, the others TaskRefused for what is its own fault."""

    name: str  #: for people: a path or "task 7"
    read: Callable[[], bytes]
    write: Callable[[dict[str, Any]], None]
    wanted: Callable[[], bool] = lambda: True  #: asked just before writing: hours may have gone by


@dataclass(frozen=True)
class Lost:
    """What cannot even be looked at."""

    name: str
    error: SemsamError


@dataclass(frozen=True)
class Picture:
    """A picture that is no task yet."""

    image: str  #: its address, as the task's data will hold it
    read: Callable[[], bytes]  #: raises SemsamError or OSError


def missing(pictures: Iterable[Picture], out: TaskLines) -> Iterator[Item | None]:
    """What has no line in `out` yet."""
    for picture in pictures:
        done = picture.image in out.done
        yield None if done else Item(picture.image, picture.read, partial(out.write, picture.image))


# ------------------------------------------------------------------------------------------------------- Label Studio


def tasks_of(
    label_studio: LabelStudio, project: int, config: LabelConfig, version: str
) -> Iterator[Item | Lost | None]:
    """The project's tasks; None for one that has a prediction of exactly this version. Raises LabelStudioError where
    Label Studio answers nothing: one task that cannot be had, deleted since, is passed."""

    def of_it_alone(error: LabelStudioError) -> TaskRefused:
        if isinstance(error, TokenRefused):
            raise error
        label_studio.get_project(project)  # raises where nothing else is answered either
        return TaskRefused(str(error))

    def has_prediction(task: dict[str, Any]) -> bool:
        return any(prediction.get("model_version") == version for prediction in task.get("predictions") or [])

    def wanted(number: int) -> bool:
        try:
            return not has_prediction(label_studio.get_task(number))
        except LabelStudioError as error:
            raise of_it_alone(error) from error

    def write(prediction: dict[str, Any], number: int) -> None:
        try:
            label_studio.create_prediction({"task": number, **prediction})
        except LabelStudioError as error:
            raise of_it_alone(error) from error

    def item(number: int) -> Item | Lost | None:
        name = f"task {number}"
        try:
            task = label_studio.get_task(number)
            if has_prediction(task):
                return None
            where = config.image_url(task.get("data") or {})
        except LabelStudioError as error:
            return Lost(name, of_it_alone(error))
        except BadRequest as error:
            return Lost(name, error)
        # of the task nothing else is kept: many may wait, and annotations are large
        read = partial(label_studio.fetch_image, where, task_id=number)
        return Item(name, read, partial(write, number=number), partial(wanted, number))

    # all ids at once: the order of the pages may change as predictions are written
    yield from map(item, [int(task["id"]) for task, _ in all_tasks(label_studio, project)])


# -------------------------------------------------------------------------------------------------- files, near and far


class Reader:
    """Pictures by path or address, within the limits of the settings. Safe to use from several threads.

    An address comes from whoever runs the command and may lead anywhere; no token is sent to it. It may be pickled: on
    another machine it is one reader, whatever is read, without any secret of the settings: stores are reached with that
    machine's credentials, paths start from the same folder.
    """

    def __init__(self, settings: Settings, here: Path | None = None) -> None:
        """here: the folder that paths start from; None: the current one."""
        self._here = here or Path.cwd()
        self._limits = tuple((name, getattr(settings, name)) for name in _LIMITS)
        self._limit = settings.max_image_bytes
        self._web = Connection(settings, None)
        self.stores = ObjectStores(settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return _known_reader, (self._limits, str(self._here))

    def read(self, where: str) -> bytes:
        """A path, or an address of the web or of an object store. Raises BackendError, ImageTooLarge, OSError."""
        scheme = _SCHEME.match(where)
        if scheme is None:
            return self.file(where)
        if scheme[1].lower() in ("http", "https"):
            return self._web.download(where, None)
        if is_stored(where):
            return self.stores.read(where)
        raise BackendError(f"{shown(where)}: expected a path or an address with http, https, s3, gs, az or file")

    def file(self, path: str | Path) -> bytes:
        """A file on this machine."""
        with (self._here / path).open("rb") as file:
            data = file.read(self._limit + 1)
        if len(data) > self._limit:
            raise ImageTooLarge(f"{path}: more than {self._limit} bytes, the setting max_image_bytes")
        return data


_LIMITS = ("max_image_bytes", "image_connect_timeout", "image_read_timeout", "image_total_timeout", "threads")


@lru_cache(8)
def _known_reader(limits: tuple[tuple[str, Any], ...], here: str) -> Reader:
    return Reader(Settings(**dict(limits)), Path(here))


def in_folder(folder: Path, reader: Reader, url_prefix: str | None = None) -> Iterator[Picture]:
    """The pictures in a folder and below; links to folders are not followed. Raises BackendError.

    url_prefix: where the folder is for Label Studio; the path follows, quoted. None: tasks hold the bare path.
    """
    if not folder.is_dir():
        raise BackendError(f"{folder}: expected a folder")
    for path in _walk(str(folder)):
        inside = Path(path).relative_to(folder).as_posix()
        if _is_picture(path):
            image = inside if url_prefix is None else url_prefix + quote(inside, errors="surrogateescape")
            yield Picture(image, partial(reader.file, path))


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield entry.path


def in_list(lines: BinaryIO, reader: Reader) -> Iterator[Picture]:
    """The pictures that a list names, one path or address a line, each once; paths from the current folder."""
    seen = Names()
    for line in lines:
        where = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if where and seen.add(where):
            yield Picture(where, partial(reader.read, where))


def under_prefix(prefix: str, reader: Reader) -> Iterator[Picture]:
    """The pictures of an object store in the folder `prefix` and below. Raises BackendError, LabelStudioError."""
    for address in reader.stores.addresses(prefix):
        if _is_picture(address):
            yield Picture(address, partial(reader.read, address))


def _is_picture(path: str) -> bool:
    return path.lower().endswith(PICTURES)
