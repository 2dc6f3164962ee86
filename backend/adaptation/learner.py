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
from typing import TYPE_CHECKING, Literal

from backend.adaptation.concepts import ConceptWorth, examples_of
from backend.adaptation.lesson_maker import LessonMaker, MissingPhoto
from backend.adaptation.lessons import Look, TrainingRegion, looks, training_regions
from backend.adaptation.project_lessons import ProjectLessons
from backend.corrections.archive import PhotoArchive
from backend.corrections.outcomes import config_or_empty
from backend.errors import PhotosUnavailable, StoreError
from backend.inference.loaded import Loaded
from backend.inference.predictor import Predictor
from backend.outages import Outages
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from semsam_model.checkpoints.header import Version
from semsam_model.errors import SemsamError
from semsam_model.masks.geometry import Size
from semsam_model.types import Box, PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import ProjectAdaptation
    from semsam_model.network.query_calibration import Curve

log = logging.getLogger(__name__)

POLL_S = 2.0  #: seconds after which the store is read unasked: another process may have changed it
PUBLISH_S = 3.0  #: seconds of work on many regions after which what they have taught so far is published
HELD = 4  #: projects whose lessons stay in memory, some 10 MB each; all others keep what these add up to


class Learner:
    """Thread-safe. `start` before use."""

    def __init__(self, store: Store, photos: PhotoArchive, predictor: Predictor, settings: Settings) -> None:
        self._store = store
        self._photos = photos
        self._predictor = predictor
        self._lessons = LessonMaker(store, photos, predictor, settings)
        self._projects: dict[ProjectKey, ProjectLessons] = {}
        self._learned: dict[ProjectKey, tuple[str, ProjectAdaptation]] = {}
        self._worth = ConceptWorth(store)
        self._clicked: dict[ProjectKey, float] = {}  # when a project last was
        self._recent: list[ProjectKey] = []  # that learned last, whose lessons are in memory
        self._changed = threading.Condition()
        self._polls_asked = self._polls_done = 0
        self._stopping = False
        self._store_away = False
        self._outages = Outages(log)
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
        return self._worth.of(key, concepts)

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
            seen = {key: project.seen for key, project in self._projects.items() if project.seen is not None}
            self._worth.weigh(loaded.concepts.version, seen)

    def _waiting(self, loaded: Loaded, *, photos: bool = False) -> dict[ProjectKey, Look]:
        """Projects that are not caught up with. photos: those too for which a photo has come that was missing."""
        digest, found = loaded.described_by.digest, {}
        for key, look in looks(self._store).items():
            project = self._projects.get(key)
            if project is None or project.digest != digest:
                self._projects[key] = project = ProjectLessons(key, digest)
            if look != project.seen or (photos and self._come(project.missing_photos)):
                found[key] = look
        return found

    def _come(self, missing: set[str]) -> set[str]:
        """Those of the missing photos that are in the archive by now; none of them while that is away."""
        try:
            return {sha256 for sha256 in missing if self._photos.has(sha256)}
        except PhotosUnavailable:
            return set()

    def _last_clicked(self, key: ProjectKey) -> float:
        return self._clicked.get(key, 0.0)

    def _catch_up(self, key: ProjectKey, look: Look, loaded: Loaded) -> Literal["done", "cut off", "elsewhere"]:
        """Learn what a project has to teach.

        elsewhere: another backend makes its lessons, or the archive of photos is away; they are read or made soon.
        """
        began, project = time.perf_counter(), self._projects[key]
        config = config_or_empty(look.label_config)
        project.context = PromptContext(config.granularity)
        if not look.state.enabled:
            self._learned.pop(key, None)
            project.lessons.clear()
            project.missing_photos.clear()
            return "done"
        regions = training_regions(self._store, key)
        wanted, before, taught = project.needed(regions, config), project.held(), project.taught
        away = False
        with self._store.claim(f"lessons of {key}") as mine:
            new = project.read(self._store, regions, wanted)
            if not mine:
                project.missing_photos.clear()
            else:
                try:
                    if not self._make_lessons(key, wanted, new, project, loaded):
                        return "cut off"
                    self._outages.works(key, f"project {key}: learning from new photos again")
                except PhotosUnavailable as error:
                    self._outages.failed(key, f"project {key}: not learning from new photos: {error}; tried again")
                    away = True
        if new and not mine and before == project.held():
            return "elsewhere"
        self._publish(key, wanted, project)
        self._let_go(key)
        if away or (new and not mine):
            return "elsewhere"
        if wanted and project.taught is not taught:  # what came may lack its photo still
            seconds = time.perf_counter() - began
            log.info("project %s: learned from %d regions in %.0f ms", key, len(project.lessons), 1000 * seconds)
        return "done"

    def _make_lessons(
        self,
        key: ProjectKey,
        wanted: list[TrainingRegion],
        new: list[TrainingRegion],
        project: ProjectLessons,
        loaded: Loaded,
    ) -> bool:
        """Lessons of the new ones of the wanted regions.

        False when that ended early, see `_should_stop`, or because another project that waits was clicked after this.
        """
        from semsam_model.adaptation.lessons import Lesson

        published = time.monotonic()
        project.missing_photos &= {each.image_sha256 for each in new}
        project.missing_photos -= self._come(project.missing_photos)
        for each in reversed(new):  # the newest first: the annotator's next click is likely to be of its kind
            if self._should_stop(loaded):
                return False
            if each.image_sha256 in project.missing_photos:
                continue  # looked for already, and not come since
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

    def _publish(self, key: ProjectKey, wanted: list[TrainingRegion], project: ProjectLessons) -> None:
        """From now on clicks get what the lessons add up to."""
        from semsam_model.adaptation.lessons import adapt

        taught = [each for each in wanted if each.key in project.lessons]
        if taught and taught == project.taught and key in self._learned:
            return
        learned, project.taught = adapt([project.lessons[each.key][1] for each in taught]), taught
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
