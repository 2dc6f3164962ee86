"""What the learner's thread holds of one project: its lessons, which of them are made use of, and what gave none."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from backend.adaptation.lessons import Look, TrainingRegion, drop_lessons, kept_lessons, lesson_keys
from backend.inference.label_embeddings import specific_labels
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from semsam_model.errors import DataError
from semsam_model.types import PromptContext

if TYPE_CHECKING:
    from semsam_model.adaptation.lessons import Lesson


@dataclass
class ProjectLessons:
    """Of the project `key`, for the model of `digest`."""

    key: ProjectKey
    digest: str
    context: PromptContext = field(default_factory=PromptContext)  #: as the project's prompts are asked
    seen: Look | None = None  #: when it was last caught up with
    lessons: dict[RegionKey, tuple[datetime, Lesson]] = field(default_factory=dict)  #: with the region's updated_at
    failed: dict[RegionKey, datetime] = field(default_factory=dict)  #: updated_at of regions that gave no lesson
    missing_photos: set[str] = field(default_factory=set)  #: digests of photos that were not in the archive then
    taught: list[TrainingRegion] = field(default_factory=list)  #: regions that what is published was learned from

    def held(self) -> dict[RegionKey, datetime]:
        """`updated_at` of the regions whose lessons are in memory."""
        return {key: updated_at for key, (updated_at, _) in self.lessons.items()}

    def needed(self, regions: list[TrainingRegion], config: LabelConfig) -> list[TrainingRegion]:
        """The regions whose lessons are made use of, oldest first."""
        from semsam_model.adaptation.lessons import needed

        left = [each for each in regions if self.failed.get(each.key) != each.updated_at]
        known = {label.value for label in specific_labels(config.labels)}
        return [left[i] for i in needed([each.label for each in left], known)]

    def read(self, store: Store, regions: list[TrainingRegion], wanted: list[TrainingRegion]) -> list[TrainingRegion]:
        """Take over the lessons that the store keeps, and drop those of regions that are gone.

        Returns the wanted regions that still need a lesson. Raises StoreError.
        """
        from semsam_model.adaptation.lessons import Lesson

        current, wanted_at = {each.key for each in regions}, {each.key: each.updated_at for each in wanted}
        for key, updated_at in self.held().items():
            if wanted_at.get(key) != updated_at:
                del self.lessons[key]
        drop_lessons(store, [key for key in lesson_keys(store, self.key, self.digest) if key not in current])
        missing = [each for each in wanted if each.key not in self.lessons]
        kept = kept_lessons(store, [each.key for each in missing], self.digest)
        new = []
        for each in missing:
            found = kept.get(each.key)
            try:
                if found is None or found.updated_at != each.updated_at:
                    raise DataError("none is kept")
                self.lessons[each.key] = each.updated_at, Lesson.from_bytes(found.data, label=each.label)
            except DataError:
                new.append(each)
        return new
