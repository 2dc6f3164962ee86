"""Warm before the click: while an annotator works on a task, the photos of the next ones are fetched and embedded.

"Next" is the project's own order: the tasks after this one that nobody has annotated, by id. A project that draws its
tasks at random says nothing about the next one, so nothing is fetched for it. Each step waits until no click is being
answered, and only the newest task of a project is followed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from cachetools import LRUCache

from backend.inference.predictor import Predictor
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig
from backend.label_studio.requests import TaskRef
from backend.service.task_photos import TaskPhotos
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

IN_ORDER = "Sequential sampling"  #: of Label Studio's settings for the order of tasks
PROJECTS = 1000  #: whose newest task is remembered


class NextPhotos:
    """Thread-safe. `follow` returns at once."""

    def __init__(self, label_studio: LabelStudio, photos: TaskPhotos, predictor: Predictor, ahead: int) -> None:
        """ahead: tasks after the one that is worked on; 0: none."""
        self._label_studio = label_studio
        self._photos = photos
        self._predictor = predictor
        self._ahead = ahead
        self._worker = ThreadPoolExecutor(1, "next-photos")
        self._lock = threading.Lock()
        self._newest: LRUCache[str | None, int] = LRUCache(PROJECTS)  # name of the project -> task that is worked on

    def follow(self, project_name: str | None, project: int | None, task: int | None, config: LabelConfig) -> None:
        """Somebody works on this task now."""
        if not self._ahead or project is None or task is None:
            return
        with self._lock:
            if self._newest.get(project_name) == task:
                return
            self._newest[project_name] = task
        with contextlib.suppress(RuntimeError):  # closed
            self._worker.submit(self._warm, project_name, project, task, config)

    def close(self) -> None:
        """Begin nothing more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _is_newest(self, project_name: str | None, task: int) -> bool:
        with self._lock:
            return self._newest.get(project_name) == task

    def _warm(self, project_name: str | None, project: int, task: int, config: LabelConfig) -> None:
        warmed = 0
        try:
            if not self._is_newest(project_name, task):
                return
            if self._label_studio.get_project(project, project=project_name).get("sampling") != IN_ORDER:
                return
            for after in self._label_studio.next_tasks(project, task, self._ahead, project=project_name):
                if not self._is_newest(project_name, task):
                    break
                warmed += self._warm_task(project_name, project, after, config)
        except SemsamError as error:
            log.info("project %s: photos after task %d are not fetched ahead: %s", project_name, task, error)
        except Exception:
            log.exception("project %s: photos after task %d are not fetched ahead", project_name, task)
        log.debug("project %s: %d photos after task %d are warm", project_name, warmed, task)

    def _warm_task(self, project_name: str | None, project: int, task: dict[str, object], config: LabelConfig) -> bool:
        """Whether the photo of a task is embedded now. One that cannot be read says so when it is clicked."""
        number, data = task.get("id"), task.get("data")
        if not isinstance(number, int) or not isinstance(data, dict):
            return False
        with contextlib.suppress(SemsamError):
            ref = TaskRef(number, project, config.image_url(data))
            photo = self._photos.open(project_name, ref)
            self._predictor.run(photo.source, lambda model, embedding, encode_crop: None, "background")
            return True
        return False
