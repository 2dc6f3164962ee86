"""Learning at once: what a project accepts changes its next click, without training.

One thread follows the store. It turns new regions into lessons for the model that answers, newest first, keeps the
lessons in the store, and publishes what they add up to; a click only looks that up. After a restart the lessons come
from the store; of several backends one makes those of a project, and the others read them. After a switch of the model
they are made again from the archive of photos. While the database is away or a photo is missing, what was learned
stays in use.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backend.adaptation.concepts import examples_of, fit_worth, judged_state
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
from backend.corrections.outcomes import config_or_empty
from backend.corrections.photos import PhotoArchive
from backend.corrections.queries import find_region, list_projects
from backend.errors import BackendError, StoreError
from backend.images import decode_photo
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor
from backend.records import ProjectKey, RegionKey, StoredRegion
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.checkpoints.header import Version
from semsam_model.errors import DataError, SemsamError
from semsam_model.masks.codecs import decode_coco_rle
from semsam_model.masks.geometry import Size
from semsam_model.types import Box, Click, PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import Lesson, ProjectAdaptation
    from semsam_model.network.query_calibration import Curve

log = logging.getLogger(__name__)

POLL_S = 2.0  #: seconds after which the store is read unasked: another process may have changed it
WORTH_S = 20.0  #: seconds after which what a concept model offered, and what became of it, is looked at again
PUBLISH_S = 3.0  #: seconds of work on many regions after which what they have taught so far is published


@dataclass
class _Project:
    """What the thread knows of a project, for the model of `digest`."""

    digest: str
    context: PromptContext  #: as the project's prompts are asked
    seen: tuple[object, ...] | None = None  #: fingerprint of the store when it was last caught up with
    lessons: dict[RegionKey, tuple[datetime, Lesson]] = field(default_factory=dict)  #: with the region's updated_at
    failed: dict[RegionKey, datetime] = field(default_factory=dict)  #: updated_at of regions that gave no lesson
    missing_photos: set[str] = field(default_factory=set)  #: digests of photos that were not in the archive then


class _Worth(NamedTuple):
    """What scores of a concept model are worth in a project."""

    of: Version
    until: float  #: when the store is looked at again
    seen: tuple[object, ...]  #: its state when it was last looked at
    curve: Curve | None


class Learner:
    """Thread-safe. `start` before use."""

    def __init__(self, store: Store, photos: PhotoArchive, predictor: Predictor, settings: Settings) -> None:
        self._store = store
        self._photos = photos
        self._predictor = predictor
        self._settings = settings
        self._projects: dict[ProjectKey, _Project] = {}
        self._learned: dict[ProjectKey, tuple[str, ProjectAdaptation]] = {}
        self._worth: dict[ProjectKey, _Worth] = {}
        self._changed = threading.Condition()
        self._polls_asked = self._polls_done = 0
        self._stopping = False
        self._store_away = False
        self._thread = threading.Thread(target=self._run, name="learn", daemon=True)

    def start(self) -> None:
        """Begin with every project that the store knows."""
        self._thread.start()

    def stop(self, wait_s: float = 10.0) -> None:
        """End after the region in work."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def learned(self, key: ProjectKey, model: str) -> ProjectAdaptation | None:
        """What the project has taught the model with this digest; None for nothing. At once, from memory."""
        digest, learned = self._learned.get(key, ("", None))
        return learned if digest == model else None

    def worth(self, key: ProjectKey, concepts: Version) -> Curve | None:
        """What scores of a concept model were worth in the project; None while too few are known. From memory."""
        known = self._worth.get(key)
        return known.curve if known is not None and known.of == concepts else None

    def examples(self, key: ProjectKey, task: int, photo: Size) -> dict[str, tuple[Box, ...]]:
        """Boxes of what is accepted in a task's photo, by label; {} while the database is away."""
        try:
            return examples_of(self._store, key, task, photo)
        except StoreError as error:
            log.warning("task %d: its regions are no examples: %s", task, error)
            return {}

    def notify(self) -> None:
        """The store or the model has changed: read the store soon; returns at once."""
        with self._changed:
            self._polls_asked += 1
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Read the store now, and return whether everything in the store has been caught up with in time."""
        self.notify()
        with self._changed:
            mine = self._polls_asked
            return self._changed.wait_for(lambda: self._polls_done >= mine, timeout_s)

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._polls_asked > self._polls_done, POLL_S)
                if self._stopping:
                    return
                asked = self._polls_asked
            try:
                if self._predictor.version is not None:
                    self._poll(self._predictor.ready())
                self._store_away = False
            except StoreError as error:
                if not self._store_away:
                    log.warning("nothing new is learned until the database is back: %s", error)
                self._store_away = True
            except Exception:
                log.exception("unexpected failure while learning")
            with self._changed:
                self._polls_done = max(self._polls_done, asked)
                self._changed.notify_all()

    def _should_stop(self, loaded: Loaded) -> bool:
        """The process ends, or another model answers."""
        return self._stopping or self._predictor.version != loaded.version

    def _poll(self, loaded: Loaded) -> None:
        for stored in list_projects(self._store):
            if self._stopping:
                return
            if stored.deleted_at is None:
                self._catch_up(stored.key, stored.label_config, loaded)
                if loaded.concepts is not None:
                    self._weigh_concepts(stored.key, loaded.concepts.version)

    def _weigh_concepts(self, key: ProjectKey, concepts: Version) -> None:
        """Fit what the concept model's scores are worth, where more of what it offered has been judged."""
        known = self._worth.get(key)
        if known is not None and known.of == concepts and time.monotonic() < known.until:
            return
        seen = judged_state(self._store, key), learning_state(self._store, key).enabled
        curve = None if known is None else known.curve
        if known is None or (known.of, known.seen) != (concepts, seen):
            curve = fit_worth(self._store, key, concepts.version) if seen[1] else None
        self._worth[key] = _Worth(concepts, time.monotonic() + WORTH_S, seen, curve)

    def _catch_up(self, key: ProjectKey, label_config: str, loaded: Loaded) -> None:
        """Learn from what has changed since the last poll, if anything has."""
        digest = loaded.described_by.digest
        project = self._projects.get(key)
        if project is None or project.digest != digest:
            project = self._projects[key] = _Project(digest, PromptContext())
        seen = fingerprint(self._store, key)
        if seen == project.seen and not any(self._photos.has(sha256) for sha256 in project.missing_photos):
            return
        began = time.perf_counter()
        project.context = PromptContext(config_or_empty(label_config).granularity)
        project.missing_photos.clear()
        if learning_state(self._store, key).enabled:
            regions = training_regions(self._store, key)
            with self._store.claim(f"lessons of {key}") as mine:
                new = self._read_lessons(key, regions, project)
                if mine and not self._make_lessons(key, regions, new, project, loaded):
                    return
            self._publish(key, regions, project)
            if new and not mine:
                return  # another backend makes them; they are read at the next poll
            if project.lessons:
                seconds = time.perf_counter() - began
                log.info("project %s: learned from %d regions in %.0f ms", key, len(project.lessons), 1000 * seconds)
        else:
            self._learned.pop(key, None)
            project.lessons.clear()
        project.seen = seen

    def _read_lessons(self, key: ProjectKey, regions: list[TrainingRegion], project: _Project) -> list[TrainingRegion]:
        """Take over the lessons that the store keeps, and drop those of regions that are gone or have changed.

        Returns the regions that still need a lesson.
        """
        from semsam_model.adaptation.lessons import Lesson

        current = {each.key: each for each in regions}
        gone = [k for k, (at, _) in project.lessons.items() if k not in current or current[k].updated_at != at]
        for k in gone:
            del project.lessons[k]
        missing = [e for e in regions if e.key not in project.lessons and project.failed.get(e.key) != e.updated_at]
        # all of them only once: the store has lessons of regions that are gone, too
        tasks = {each.key.task for each in missing} if project.lessons else None
        kept = kept_lessons(self._store, key, project.digest, tasks) if missing else {}
        drop_lessons(self._store, [k for k in {*gone, *kept} if k not in current])
        new = []
        for each in missing:
            found = kept.get(each.key)
            try:
                if found is None or found.updated_at != each.updated_at:
                    raise DataError("none is kept")
                lesson = Lesson.from_bytes(found.data, label=each.label)
                project.lessons[each.key] = each.updated_at, lesson
            except DataError:
                new.append(each)
        return new

    def _make_lessons(
        self,
        key: ProjectKey,
        regions: list[TrainingRegion],
        new: list[TrainingRegion],
        project: _Project,
        loaded: Loaded,
    ) -> bool:
        """Lessons of the new ones of the regions; False when that ended early, see `_should_stop`."""
        published = time.monotonic()
        for each in reversed(new):  # the newest first: the annotator's next click is likely to be of its kind
            if self._should_stop(loaded):
                return False
            lesson = self._make_lesson(each, project, loaded)
            if lesson is None:
                continue
            project.lessons[each.key] = each.updated_at, lesson
            if time.monotonic() - published > PUBLISH_S:
                self._publish(key, regions, project)
                published = time.monotonic()
        return True

    def _make_lesson(self, each: TrainingRegion, project: _Project, loaded: Loaded) -> Lesson | None:
        """The lesson of a region, which the store keeps from now on; None where there is none (yet)."""
        from semsam_model.adaptation.lessons import Lesson

        region = find_region(self._store, each.key)
        if region is None or region.updated_at != each.updated_at:
            return None  # it has changed since: seen at the next poll
        try:
            data = self._lesson_of(each, region, project.context, loaded).to_bytes()
        except _MissingPhoto:
            project.missing_photos.add(each.image_sha256)  # it is still being fetched
            return None
        except SemsamError as error:
            log.warning("region %s of task %d: nothing is learned from it: %s", each.key.region, each.key.task, error)
            project.failed[each.key] = each.updated_at
            return None
        keep_lesson(self._store, each.key, project.digest, KeptLesson(each.updated_at, data))
        return Lesson.from_bytes(data, label=each.label)  # as after a restart

    def _lesson_of(self, each: TrainingRegion, region: StoredRegion, context: PromptContext, loaded: Loaded) -> Lesson:
        """Raises _MissingPhoto; DataError for a mask that does not fit the photo; ImageError, MaskError, ..."""
        from semsam_model.adaptation.lessons import make_lesson

        sha256 = each.image_sha256
        make = partial(
            make_lesson,
            mask=decode_coco_rle(dict(region.mask)),
            label=each.label,
            click=Click(*region.click) if region.click else None,
            context=context,
        )
        return self._predictor.run(
            PhotoSource(sha256, lambda: self._pixels(sha256)),
            lambda model, embedding, encode_crop: make(model, embedding, encode_crop=encode_crop),
            "background",
            using=loaded,
        ).value

    def _pixels(self, sha256: str) -> np.ndarray:
        if not self._photos.has(sha256):
            raise _MissingPhoto(sha256)
        try:
            content = self._photos.path(sha256).read_bytes()
        except OSError as error:
            raise DataError(f"its photo cannot be read: {error}") from error
        settings = self._settings
        return decode_photo(content, max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels).rgb

    def _publish(self, key: ProjectKey, regions: list[TrainingRegion], project: _Project) -> None:
        """From now on clicks get what the lessons add up to."""
        from semsam_model.adaptation.lessons import adapt

        learned = adapt([project.lessons[each.key][1] for each in regions if each.key in project.lessons])
        if learned is None:
            self._learned.pop(key, None)
        else:
            self._learned[key] = project.digest, learned


class _MissingPhoto(BackendError):
    """A photo that is not in the archive yet."""
