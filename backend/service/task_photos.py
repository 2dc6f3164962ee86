"""The photos of tasks: fetched from Label Studio when needed, known by the digest of their bytes."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass

import numpy as np
from cachetools import TTLCache

from backend.images import decode_photo, probe_size
from backend.inference.predictor import PhotoSource
from backend.label_studio.client import LabelStudio
from backend.label_studio.requests import TaskRef
from backend.settings import Settings

REMEMBERED_FILES = 10_000


@dataclass(frozen=True)
class TaskPhoto:
    """A task's photo, not decoded yet."""

    source: PhotoSource
    size: tuple[int, int]  #: (H, W), EXIF-oriented
    fetch_s: float  #: seconds until that was known


class TaskPhotos:
    """Thread-safe. Remembers digest and size of a file for `image_recheck_seconds`, its bytes for one request only."""

    def __init__(self, label_studio: LabelStudio, settings: Settings) -> None:
        self._label_studio = label_studio
        self._settings = settings
        self._known: TTLCache[tuple[str, str], tuple[str, tuple[int, int]]] = TTLCache(
            REMEMBERED_FILES, settings.image_recheck_seconds
        )
        self._lock = threading.Lock()

    def open(self, project_name: str | None, task: TaskRef) -> TaskPhoto:
        """The photo of a task that names one; fetched unless it is remembered.

        Raises what fetching it raises, and ImageFormatError or ImageTooLarge; its pixels raise the same.
        """
        began = time.perf_counter()
        assert task.image_url is not None
        # an address may bring the whole picture along
        key = project_name or "", hashlib.sha256(task.image_url.encode("utf-8", "replace")).hexdigest()
        with self._lock:
            known = self._known.get(key)
        data: bytes | None = None
        if known is None:
            data = self._fetch(project_name, task)
            size = probe_size(data, max_pixels=self._settings.max_image_pixels)
            known = hashlib.sha256(data).hexdigest(), size
            with self._lock:
                self._known[key] = known

        def pixels() -> np.ndarray:
            content = self._fetch(project_name, task) if data is None else data
            settings = self._settings
            return decode_photo(content, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels).rgb

        sha256, size = known
        return TaskPhoto(PhotoSource(sha256, pixels), size, time.perf_counter() - began)

    def _fetch(self, project_name: str | None, task: TaskRef) -> bytes:
        assert task.image_url is not None
        return self._label_studio.fetch_image(task.image_url, project=project_name, task_id=task.id)
