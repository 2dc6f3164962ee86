"""The photos of `semsam batch`: tasks of a project, files of a folder, of a list, of an object store.

A source gives None for each photo that has a prediction, an `Item` for each other. Sources are lazy: a million photos
need no more memory than a few. Only a project's task ids are all read first, as their order may change.
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

from backend.batch.task_lines import NameSet, TaskLines
from backend.errors import BackendError, BadRequest, ImageTooLarge, LabelStudioError, TaskRefused, TokenRefused
from backend.label_studio.client import LabelStudio, task_pages
from backend.label_studio.connection import Connection
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.object_store import ObjectStores, is_stored
from backend.label_studio.servers import shown
from backend.settings import Settings
from semsam_model.data.readers import photo_names
from semsam_model.errors import SemsamError

PHOTO_SUFFIXES = tuple(f".{suffix}" for suffix in photo_names.PHOTO_SUFFIXES)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """A photo to annotate. `read` raises SemsamError or OSError; `write` and `wanted` raise TaskRefused when only this
    photo's prediction cannot be written."""

    name: str  #: for people: a path or "task 7"
    read: Callable[[], bytes]
    write: Callable[[dict[str, Any]], None]
    wanted: Callable[[], bool] = lambda: True  #: asked just before writing, maybe hours after reading


@dataclass(frozen=True)
class FailedItem:
    """A photo that cannot be read, and why."""

    name: str
    error: SemsamError


@dataclass(frozen=True)
class PhotoFile:
    """A photo that is no task yet."""

    image: str  #: its address, as the task's data will hold it
    read: Callable[[], bytes]  #: raises SemsamError or OSError


def photo_items(photos: Iterable[PhotoFile], out: TaskLines) -> Iterator[Item | None]:
    """An item for each photo; None for one that has a line in `out`."""
    for photo in photos:
        done = photo.image in out.done
        yield None if done else Item(photo.image, photo.read, partial(out.write, photo.image))


# ------------------------------------------------------------------------------------------------------- Label Studio


def task_items(
    label_studio: LabelStudio, project: int, config: LabelConfig, version: str
) -> Iterator[Item | FailedItem | None]:
    """An item for each task of the project; None for one that has a prediction of exactly this version.

    A task that cannot be read, because it has been deleted say, is a failed item. Raises LabelStudioError when Label
    Studio answers no other request either.
    """
    tasks = _ProjectTasks(label_studio, project, config, version)
    # all ids first: the order of the pages may change as predictions are written
    yield from map(tasks.item, [int(task["id"]) for page, _ in task_pages(label_studio, project) for task in page])


@dataclass(frozen=True)
class _ProjectTasks:
    label_studio: LabelStudio
    project: int
    config: LabelConfig
    version: str

    def item(self, number: int) -> Item | FailedItem | None:
        name = f"task {number}"
        try:
            task = self.label_studio.get_task(self.project, number)
            if self._has_prediction(task):
                return None
            address = self.config.image_url(task.get("data") or {})
        except LabelStudioError as error:
            return FailedItem(name, self._refused(error))
        except BadRequest as error:
            return FailedItem(name, error)
        # nothing else of the task is kept: many may wait, and annotations are large
        read = partial(self.label_studio.fetch_image, address, task_id=number)
        return Item(name, read, partial(self._write, number), partial(self._wanted, number))

    def _has_prediction(self, task: dict[str, Any]) -> bool:
        return any(prediction.get("model_version") == self.version for prediction in task.get("predictions") or [])

    def _wanted(self, number: int) -> bool:
        try:
            return not self._has_prediction(self.label_studio.get_task(self.project, number))
        except LabelStudioError as error:
            raise self._refused(error) from error

    def _write(self, number: int, prediction: dict[str, Any]) -> None:
        try:
            self.label_studio.create_prediction({"task": number, **prediction})
        except LabelStudioError as error:
            raise self._refused(error) from error

    def _refused(self, error: LabelStudioError) -> TaskRefused:
        """The error of one task. Raises LabelStudioError when Label Studio answers nothing else either."""
        if isinstance(error, TokenRefused):
            raise error
        self.label_studio.get_project(self.project)
        return TaskRefused(str(error))


# -------------------------------------------------------------------------------------------------- files, near and far


class PhotoReader:
    """Photos by path or address, within the limits of the settings. Safe to use from several threads.

    An address comes from whoever runs the command and may lead anywhere; no token is sent to it. A reader may be
    pickled, without any secret of the settings: on another machine all copies are one reader, which uses that machine's
    credentials for object stores, and paths start from the same folder.
    """

    def __init__(self, settings: Settings, here: Path | None = None) -> None:
        """here: the folder that paths start from; None: the current one."""
        self._here = here or Path.cwd()
        self._limits = tuple((name, getattr(settings, name)) for name in _LIMITS)
        self._limit = settings.max_image_bytes
        self._web = Connection(settings, None)
        self.stores = ObjectStores(settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return _cached_reader, (self._limits, str(self._here))

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
def _cached_reader(limits: tuple[tuple[str, Any], ...], here: str) -> PhotoReader:
    return PhotoReader(Settings(**dict(limits)), Path(here))


def in_folder(folder: Path, reader: PhotoReader, url_prefix: str | None = None) -> Iterator[PhotoFile]:
    """The photos in a folder and below; links to folders are not followed. Raises BackendError.

    url_prefix: Label Studio's address of the folder; the path follows, quoted. None: tasks hold the bare path.
    """
    if not folder.is_dir():
        raise BackendError(f"{folder}: expected a folder")
    found = False
    for path in _walk(str(folder)):
        inside = Path(path).relative_to(folder).as_posix()
        if _is_photo(path):
            image = inside if url_prefix is None else url_prefix + quote(inside, errors="surrogateescape")
            found = True
            yield PhotoFile(image, partial(reader.file, path))
    if not found:
        raise BackendError(f"{folder}: expected photos in it or below ({', '.join(PHOTO_SUFFIXES)}), found none")


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield entry.path


def in_list(lines: BinaryIO, reader: PhotoReader) -> Iterator[PhotoFile]:
    """The photos that a list names, one path or address a line, each once; paths start from the current folder."""
    seen = NameSet()
    for line in lines:
        where = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if where and seen.add(where):
            yield PhotoFile(where, partial(reader.read, where))


def under_prefix(prefix: str, reader: PhotoReader) -> Iterator[PhotoFile]:
    """The photos of an object store in the folder `prefix` and below. Raises BackendError, LabelStudioError."""
    found = False
    for address in reader.stores.addresses(prefix):
        if _is_photo(address):
            found = True
            yield PhotoFile(address, partial(reader.read, address))
    if not found:
        raise BackendError(f"{shown(prefix)}: expected photos below it ({', '.join(PHOTO_SUFFIXES)}), found none")


def _is_photo(path: str) -> bool:
    return path.lower().endswith(PHOTO_SUFFIXES)
