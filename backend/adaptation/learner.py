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
from typing import TYPE_CHECKING, Literal, NamedTuple

from backend.adaptation.concepts import examples_of, fit_worth
from backend.adaptation.lesson_maker import LessonMaker, MissingPhoto
from backend.adaptation.lessons import (
    Look,
    TrainingRegion,
    drop_lessons,
    kept_lessons,
    lesson_keys,
    looks,
    training_regions,
)
from backend.corrections.outcomes import config_or_empty
from backend.corrections.photos import PhotoArchive
from backend.errors import StoreError
from backend.inference.label_embeddings import specific_labels
from backend.inference.loaded import Loaded
from backend.inference.predictor import Predictor
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey, RegionKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.checkpoints.header import Version
from semsam_model.errors import DataError, SemsamError
from semsam_model.masks.geometry import Size
from semsam_model.types import Box, PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import Lesson, ProjectAdaptation
    from semsam_model.network.query_calibration import Curve

log = logging.getLogger(__name__)

POLL_S = 2.0  #: seconds after which the store is read unasked: another process may have changed it
WORTH_S = 20.0  #: seconds after which what a concept model's scores are worth is found anew, at most
PUBLISH_S = 3.0  #: seconds of work on many regions after which what they have taught so far is published
HELD = 4  #: projects whose lessons stay in memory, some 10 MB each; all others keep what these add up to


@dataclass
class _Project:
    """What the thread knows of a project, for the model of `digest`."""

    digest: str
    context: PromptContext = field(default_factory=PromptContext)  #: as the project's prompts are asked
    seen: Look | None = None  #: when it was last caught up with
    lessons: dict[RegionKey, tuple[datetime, Lesson]] = field(default_factory=dict)  #: with the region's updated_at
    failed: dict[RegionKey, datetime] = field(default_factory=dict)  #: updated_at of regions that gave no lesson
    missing_photos: set[str] = field(default_factory=set)  #: digests of photos that were not in the archive then


class _Worth(NamedTuple):
    """What scores of a concept model are worth in a project."""

    of: Version
    seen: Look  #: when that was found
    until: float  #: time from which it may be found anew
    curve: Curve | None


class Learner:
    """Thread-safe. `start` before use."""

    def __init__(self, store: Store, photos: PhotoArchive, predictor: Predictor, settings: Settings) -> None:
        self._store = store
        self._photos = photos
        self._predictor = predictor
        self._lessons = LessonMaker(store, photos, predictor, settings)
        self._projects: dict[ProjectKey, _Project] = {}
        self._learned: dict[ProjectKey, tuple[str, ProjectAdaptation]] = {}
        self._worth: dict[ProjectKey, _Worth] = {}
        self._clicked: dict[ProjectKey, float] = {}  # when a project last was
        self._recent: list[ProjectKey] = []  # that learned last, whose lessons are in memory
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
        """What the project has taught the model with this digest; None for nothing. At once, from memory.

        A click asks: where much is to be learned, the project that was clicked last is learned from first.
        """
        self._clicked[key] = time.monotonic()
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
                    self._poll(self._predictor.ready(), asked=asked > self._polls_done)
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

    def _poll(self, loaded: Loaded, *, asked: bool) -> None:
        """Learn from what has changed since the last poll; the project that was clicked last comes first.

        asked: photos that were missing may have come.
        """
        waiting = self._waiting(loaded, photos=asked)
        elsewhere: set[ProjectKey] = set()
        while waiting and not self._should_stop(loaded):
            key = max(waiting, key=self._last_clicked)
            outcome = self._catch_up(key, waiting[key], loaded)
            if outcome == "elsewhere":
                elsewhere.add(key)
            elif outcome == "done":
                self._projects[key].seen = waiting.pop(key)
            waiting |= self._waiting(loaded)
            waiting = {key: look for key, look in waiting.items() if key not in elsewhere}
        if loaded.concepts is not None:
            self._weigh_concepts(loaded.concepts.version)

    def _waiting(self, loaded: Loaded, *, photos: bool = False) -> dict[ProjectKey, Look]:
        """Projects that are not caught up with. photos: those too for which a photo has come that was missing."""
        digest, found = loaded.described_by.digest, {}
        for key, look in looks(self._store).items():
            project = self._projects.get(key)
            if project is None or project.digest != digest:
                self._projects[key] = project = _Project(digest)
            if look != project.seen or (photos and any(map(self._photos.has, project.missing_photos))):
                found[key] = look
        return found

    def _last_clicked(self, key: ProjectKey) -> float:
        return self._clicked.get(key, 0.0)

    def _weigh_concepts(self, concepts: Version) -> None:
        """Fit what the concept model's scores are worth in projects that have changed."""
        for key, project in self._projects.items():
            known, look = self._worth.get(key), project.seen
            if look is None or (known is not None and known[:2] == (concepts, look)):
                continue
            if known is None or known.of != concepts or time.monotonic() >= known.until:
                curve = fit_worth(self._store, key, concepts.version) if look.state.enabled else None
                self._worth[key] = _Worth(concepts, look, time.monotonic() + WORTH_S, curve)

    def _catch_up(self, key: ProjectKey, look: Look, loaded: Loaded) -> Literal["done", "cut off", "elsewhere"]:
        """Learn what a project has to teach. elsewhere: another backend makes its lessons; they are read soon."""
        began, project = time.perf_counter(), self._projects[key]
        config = config_or_empty(look.label_config)
        project.context = PromptContext(config.granularity)
        project.missing_photos.clear()
        if not look.state.enabled:
            self._learned.pop(key, None)
            project.lessons.clear()
            return "done"
        regions = training_regions(self._store, key)
        wanted = self._needed(regions, project, config)
        before = {each: at for each, (at, _) in project.lessons.items()}
        with self._store.claim(f"lessons of {key}") as mine:
            new = self._read_lessons(key, regions, wanted, project)
            if mine and not self._make_lessons(key, wanted, new, project, loaded):
                return "cut off"
        if new and not mine and before == {each: at for each, (at, _) in project.lessons.items()}:
            return "elsewhere"
        self._publish(key, wanted, project)
        self._let_go(key)
        if new and not mine:
            return "elsewhere"
        if wanted:
            seconds = time.perf_counter() - began
            log.info("project %s: learned from %d regions in %.0f ms", key, len(project.lessons), 1000 * seconds)
        return "done"

    def _needed(self, regions: list[TrainingRegion], project: _Project, config: LabelConfig) -> list[TrainingRegion]:
        """The regions whose lessons are made use of, oldest first."""
        from semsam_model.adaptation.lessons import needed

        left = [each for each in regions if project.failed.get(each.key) != each.updated_at]
        known = {label.value for label in specific_labels(config.labels)}
        return [left[i] for i in needed([each.label for each in left], known)]

    def _read_lessons(
        self, key: ProjectKey, regions: list[TrainingRegion], wanted: list[TrainingRegion], project: _Project
    ) -> list[TrainingRegion]:
        """Take over the lessons that the store keeps, and drop those of regions that are gone.

        Returns the wanted regions that still need a lesson.
        """
        from semsam_model.adaptation.lessons import Lesson

        current, held = {each.key for each in regions}, {each.key: each for each in wanted}
        for k, (at, _) in list(project.lessons.items()):
            if k not in held or held[k].updated_at != at:
                del project.lessons[k]
        drop_lessons(self._store, [k for k in lesson_keys(self._store, key, project.digest) if k not in current])
        missing = [each for each in wanted if each.key not in project.lessons]
        kept = kept_lessons(self._store, [each.key for each in missing], project.digest)
        new = []
        for each in missing:
            found = kept.get(each.key)
            try:
                if found is None or found.updated_at != each.updated_at:
                    raise DataError("none is kept")
                project.lessons[each.key] = each.updated_at, Lesson.from_bytes(found.data, label=each.label)
            except DataError:
                new.append(each)
        return new

    def _make_lessons(
        self,
        key: ProjectKey,
        wanted: list[TrainingRegion],
        new: list[TrainingRegion],
        project: _Project,
        loaded: Loaded,
    ) -> bool:
        """Lessons of the new ones of the wanted regions.

        False when that ended early, see `_should_stop`, or because another project that waits was clicked after this.
        """
        from semsam_model.adaptation.lessons import Lesson

        published = time.monotonic()
        for each in reversed(new):  # the newest first: the annotator's next click is likely to be of its kind
            if self._should_stop(loaded):
                return False
            try:
                data = self._lessons.make(each, project.context, loaded)
            except MissingPhoto:
                project.missing_photos.add(each.image_sha256)  # it is still being fetched
                continue
            except SemsamError as error:
                if isinstance(error, StoreError):
                    raise
                name, task = each.key.region, each.key.task
                log.warning("region %s of task %d: nothing is learned from it: %s", name, task, error)
                project.failed[each.key] = each.updated_at
                continue
            if data is None:
                continue  # seen at the next poll
            project.lessons[each.key] = each.updated_at, Lesson.from_bytes(data, label=each.label)  # as after a restart
            if time.monotonic() - published > PUBLISH_S:
                self._publish(key, wanted, project)
                published = time.monotonic()
                if any(self._last_clicked(other) > self._last_clicked(key) for other in self._waiting(loaded)):
                    return False
        return True

    def _publish(self, key: ProjectKey, wanted: list[TrainingRegion], project: _Project) -> None:
        """From now on clicks get what the lessons add up to."""
        from semsam_model.adaptation.lessons import adapt

        learned = adapt([project.lessons[each.key][1] for each in wanted if each.key in project.lessons])
        if learned is None:
            self._learned.pop(key, None)
        else:
            self._learned[key] = project.digest, learned

    def _let_go(self, key: ProjectKey) -> None:
        """Keep the lessons of the projects that learned last in memory; the store has those of the others."""
        self._recent = [key, *(each for each in self._recent if each != key)]
        for other in self._recent[HELD:]:
            self._projects[other].lessons.clear()
        del self._recent[HELD:]
