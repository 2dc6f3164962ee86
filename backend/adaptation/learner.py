"""Learning at once: what a project accepts changes its next click, without training.

One thread follows the store. It turns new regions into lessons on the model that answers, newest first, keeps them in
the store, and puts what they add up to in place; a click only looks it up. After a restart the lessons come from the
store; after a switch of the model they are made anew from the archive of pictures, and until they are there the project
knows what has been looked at already. A database that is away, a picture that is missing: what was learned stays.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as coco_mask

from backend.adaptation.lessons import (
    KeptLesson,
    TrainingRegion,
    drop_lessons,
    fingerprint,
    keep_lesson,
    kept_lessons,
    learning_state,
    training_regions,
)
from backend.corrections.photo_archive import PhotoArchive
from backend.corrections.queries import find_region, list_projects
from backend.errors import BackendError, StoreError
from backend.images import decode_photo
from backend.inference.predictor import Loaded, Predictor
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey, RegionKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.errors import DataError, SemsamError
from semsam_model.types import Click, PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import Lesson, ProjectAdaptation

log = logging.getLogger(__name__)

LOOK_S = 2.0  #: seconds after which the store is looked at unasked: another process may have changed it
SHOW_S = 3.0  #: seconds of work on many regions after which what they taught so far is put in place


@dataclass
class _Project:
    """What the thread knows of a project, for the model of `digest`."""

    digest: str = ""
    seen: tuple[object, ...] | None = None  #: fingerprint that was caught up with
    missing_photos: set[str] = field(default_factory=set)  #: digests of pictures that were not in the archive then
    lessons: dict[RegionKey, tuple[datetime, Lesson]] = field(default_factory=dict)
    failed: dict[RegionKey, datetime] = field(default_factory=dict)  #: regions that cannot teach as they are


class Learner:
    """Thread-safe. `start` before use."""

    def __init__(self, store: Store, photos: PhotoArchive, predictor: Predictor, settings: Settings) -> None:
        self._store = store
        self._photos = photos
        self._predictor = predictor
        self._settings = settings
        self._projects: dict[ProjectKey, _Project] = {}
        self._learned: dict[ProjectKey, tuple[str, ProjectAdaptation]] = {}
        self._changed = threading.Condition()
        self._asked = self._answered = 0  # looks at the store, wanted and done
        self._stopping = False
        self._away = False
        self._thread = threading.Thread(target=self._run, name="learn", daemon=True)

    def start(self) -> None:
        """Begin with every project that the store knows."""
        self._thread.start()

    def stop(self, wait_s: float = 10.0) -> None:
        """End after the region that is being looked at."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def learned(self, key: ProjectKey, model: str) -> ProjectAdaptation | None:
        """What the project has taught the model with this digest; None for nothing. At once, from memory."""
        digest, learned = self._learned.get(key, ("", None))
        return learned if digest == model else None

    def look(self) -> None:
        """The store or the model has changed: look soon; at once."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Look now, and return whether everything in the store has been caught up with in time."""
        self.look()
        with self._changed:
            wanted = self._asked
            return self._changed.wait_for(lambda: self._answered >= wanted, timeout_s)

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._asked > self._answered, LOOK_S)
                if self._stopping:
                    return
                asked = self._asked
            try:
                if self._predictor.version is not None:
                    self._follow(self._predictor.ready())
                self._away = False
            except StoreError as error:
                if not self._away:
                    log.warning("nothing new is learned until the database is back: %s", error)
                self._away = True
            except Exception:
                log.exception("unexpected failure while learning")
            with self._changed:
                self._answered = max(self._answered, asked)
                self._changed.notify_all()

    def _follow(self, loaded: Loaded) -> None:
        for known in list_projects(self._store):
            if self._stopping:
                return
            if known.deleted_at is None:
                self._catch_up(known.key, known.label_config, loaded)

    def _catch_up(self, key: ProjectKey, label_config: str, loaded: Loaded) -> None:
        digest = loaded.version.digest
        project = self._projects.get(key)
        if project is None or project.digest != digest:
            project = self._projects[key] = _Project(digest)
        seen = fingerprint(self._store, key)
        if seen == project.seen and not any(self._photos.has(sha256) for sha256 in project.missing_photos):
            return
        began = time.perf_counter()
        if not learning_state(self._store, key).enabled:
            self._learned.pop(key, None)
            project.lessons.clear()
            project.missing_photos.clear()
            project.seen = seen
            return
        regions = training_regions(self._store, key)
        if not self._study(key, regions, project, _wanted(label_config), loaded):
            return
        self._show(key, regions, project)
        project.seen = seen
        if project.lessons:
            seconds = time.perf_counter() - began
            log.info("project %s: learned from %d regions in %.0f ms", key, len(project.lessons), 1000 * seconds)

    def _study(
        self, key: ProjectKey, regions: list[TrainingRegion], project: _Project, wanted: PromptContext, loaded: Loaded
    ) -> bool:
        """Lessons for the regions that have none; False when that ended early: stopped, or another model."""
        from semsam_model.adaptation.lessons import Lesson

        project.missing_photos.clear()
        current = {each.key: each for each in regions}
        gone = [k for k, (at, _) in project.lessons.items() if k not in current or current[k].updated_at != at]
        for k in gone:
            del project.lessons[k]
        missing = [e for e in regions if e.key not in project.lessons and project.failed.get(e.key) != e.updated_at]
        kept = kept_lessons(self._store, key, project.digest) if missing else {}
        new = []
        for each in missing:
            found = kept.get(each.key)
            try:
                if found is None or found.updated_at != each.updated_at:
                    raise DataError("none is kept")
                lesson = Lesson.from_bytes(found.data, photo=each.image_sha256, label=each.label)
                project.lessons[each.key] = each.updated_at, lesson
            except DataError:
                new.append(each)
        drop_lessons(self._store, [k for k in {*gone, *kept} if k not in current])
        shown = time.monotonic()
        for each in reversed(new):  # the newest first: the annotator is about to see it
            if self._stopping or self._predictor.version != loaded.version:
                return False
            lesson_or_none = self._lesson(each, wanted, loaded, project)
            if lesson_or_none is None:
                continue
            project.lessons[each.key] = each.updated_at, lesson_or_none
            if time.monotonic() - shown > SHOW_S:
                self._show(key, regions, project)
                shown = time.monotonic()
        return True

    def _lesson(self, each: TrainingRegion, wanted: PromptContext, loaded: Loaded, project: _Project) -> Lesson | None:
        from semsam_model.adaptation.lessons import Lesson

        region = find_region(self._store, each.key)
        if region is None or region.updated_at != each.updated_at:
            return None  # it has changed since: seen at the next look

        def pixels() -> np.ndarray:
            if not self._photos.has(each.image_sha256):
                raise _NotThere(each.image_sha256)
            try:
                content = self._photos.path(each.image_sha256).read_bytes()
            except OSError as error:
                raise DataError(f"its picture cannot be read: {error}") from error
            settings = self._settings
            return decode_photo(content, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels).rgb

        try:
            mask = coco_mask.decode(dict(region.mask)).astype(bool)
            click = Click(*region.click) if region.click else None
            lesson = self._predictor.lesson(
                each.image_sha256, pixels, mask, label=each.label, click=click, wanted=wanted, using=loaded
            )
        except _NotThere:
            project.missing_photos.add(each.image_sha256)  # it is still being fetched
            return None
        except SemsamError as error:
            log.warning("region %s of task %d: nothing is learned from it: %s", each.key.region, each.key.task, error)
            project.failed[each.key] = each.updated_at
            return None
        data = lesson.to_bytes()
        keep_lesson(self._store, each.key, project.digest, KeptLesson(each.updated_at, data))
        return Lesson.from_bytes(data, photo=each.image_sha256, label=each.label)  # as after a restart

    def _show(self, key: ProjectKey, regions: list[TrainingRegion], project: _Project) -> None:
        """Put what the lessons add up to in place."""
        from semsam_model.adaptation.lessons import adapt

        known = [project.lessons[each.key][1] for each in regions if each.key in project.lessons]
        learned = adapt(known)
        if learned is None:
            self._learned.pop(key, None)
        else:
            self._learned[key] = project.digest, learned


class _NotThere(BackendError):
    """A picture that is not in the archive yet."""


def _wanted(label_config: str) -> PromptContext:
    try:
        return PromptContext(LabelConfig.parse(label_config).granularity)
    except BackendError:
        return PromptContext()
