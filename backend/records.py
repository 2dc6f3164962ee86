"""What the store keeps of annotators' work, as plain values: no SQL, no HTTP.

Frame of everything here: pixels of the EXIF-oriented photo. Times are UTC, with their zone. A mask is COCO RLE,
`{"size": [H, W], "counts": compressed text}`, as pycocotools reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from semsam_model.types import Granularity

#: accepted: as suggested. corrected: its suggested mask was edited. relabelled: the mask as suggested, another label.
#: drawn: by hand, or by another tool.
Outcome = Literal["accepted", "corrected", "relabelled", "drawn"]
OUTCOMES: tuple[Outcome, ...] = ("accepted", "corrected", "relabelled", "drawn")


@dataclass(frozen=True, order=True)
class ProjectKey:
    """A project of one Label Studio server."""

    origin: str  #: scheme://host:port of the server, as the backend reaches it
    project: int

    def __str__(self) -> str:
        return f"{self.project} of {self.origin}"


@dataclass(frozen=True, order=True)
class RegionKey:
    """One region, for ever: Label Studio gives no id twice. Orders as the store streams."""

    origin: str
    project: int
    task: int
    annotation: int
    region: str


@dataclass(frozen=True)
class StoredProject:
    """A project that the backend has heard of."""

    key: ProjectKey
    title: str
    label_config: str  #: XML, untrusted
    synced_at: datetime | None  #: last time that all its annotations were compared with Label Studio's
    deleted_at: datetime | None = None
    missed_at: datetime | None = None  #: when Label Studio last did not show it, and did not say that it was deleted

    @property
    def is_final(self) -> bool:
        """Whether Label Studio has said itself that it was deleted: it is not asked for any more."""
        return self.deleted_at is not None and self.missed_at is None


@dataclass(frozen=True)
class StoredRegion:
    """One region of a submitted annotation, as it stands now."""

    key: RegionKey
    image_sha256: str | None  #: of the photo file; None until the file could be fetched
    image_url: str | None  #: what the task's data names as its photo
    width: int
    height: int
    labels: tuple[str, ...]
    granularity: Granularity | None  #: what the label's `kind` says, else the level chosen; None: unknown
    parent: str | None  #: id of the region, of the same annotation, that contains it; it need not exist
    mask: Mapping[str, Any] = field(repr=False)
    outcome: Outcome
    updated_at: datetime  #: of the annotation, by Label Studio's clock
    annotator: int | None = None  #: Label Studio's user id
    ground_truth: bool = False
    # ---- of a region that was suggested; None for one drawn by hand
    prompt_id: str | None = None
    rank: int | None = None  #: 1 = was suggested as the best
    level: int | None = None  #: 1 whole .. 6 smallest part: of the candidate, or chosen by the annotator
    score: float | None = None
    model_version: str | None = None
    iou_with_offer: float | None = None  #: of the mask now and as it was suggested; None: the suggestion is lost
    click: tuple[float, float] | None = None  #: the newest positive click of the prompt, (x, y)
    seconds: float | None = None  #: from the answer until the next prompt on the task, or the submit: at most
    preannotated: bool = False  #: was there before any click: prompt_id, click and seconds say nothing of a prompt then

    @property
    def project_key(self) -> ProjectKey:
        return ProjectKey(self.key.origin, self.key.project)


@dataclass(frozen=True)
class BarePhoto:
    """The photo of a task that was submitted with nothing on it."""

    task: int
    image_sha256: str | None  #: as of a region
    image_url: str | None


@dataclass(frozen=True)
class SuggestedCandidate:
    """One mask as Label Studio was shown it."""

    region: str  #: the id that the region has if it is accepted
    rank: int  #: 1 = best
    level: int  #: 1 whole .. 6 smallest part
    score: float
    mask: Mapping[str, Any] = field(repr=False)
    label: str | None = None  #: the label it was shown with


@dataclass(frozen=True)
class Suggestion:
    """What one answer to a prompt suggested; after a while, as much of it as became regions."""

    prompt_id: str
    key: ProjectKey
    task: int
    image_sha256: str
    size: tuple[int, int]  #: (H, W)
    clicks: tuple[tuple[float, float, bool], ...]  #: (x, y, positive) in the order made
    boxes: tuple[tuple[float, float, float, float], ...]  #: half-open x0, y0, x1, y1
    text: str | None
    candidates: tuple[SuggestedCandidate, ...]
    model_version: str
    milliseconds: float  #: from the request to the answer
    created_at: datetime  #: of the answer, by our clock


@dataclass(frozen=True)
class SuggestionOutcome:
    """What became of a mask that an annotator took from the answer to a click."""

    updated_at: datetime  #: of the annotation, by Label Studio's clock
    outcome: Outcome
    rank: int  #: 1 = was suggested as the best
    seconds: float | None  #: as in StoredRegion


@dataclass(frozen=True)
class Preannotated:
    """What became of regions that were suggested without a click, in annotations that were begun from them."""

    annotations: int = 0  #: begun from such a prediction
    accepted: int = 0
    corrected: int = 0
    relabelled: int = 0
    deleted: int = 0
    unread: int = 0  #: further annotations whose prediction is not known (yet): nor is what was deleted of it

    @property
    def regions(self) -> int:
        """Number of regions suggested, as far as is known."""
        return sum(self.by_outcome.values())

    @property
    def by_outcome(self) -> Mapping[str, int]:
        """Number of regions by what became of them."""
        return {name: getattr(self, name) for name in ("accepted", "corrected", "relabelled", "deleted")}

    def __bool__(self) -> bool:
        """False where no annotation was begun from a prediction."""
        return self != Preannotated()


@dataclass(frozen=True)
class Counts:
    """Counts of a project. `by_outcome` has every outcome; `rejected` counts prompts, the rest regions."""

    regions: int
    images: int
    by_outcome: Mapping[str, int]
    rejected: int  #: prompts of which nothing was accepted, on tasks that were submitted after them
    malformed: int
    deleted: int
    preannotated: Preannotated = Preannotated()  #: of `regions`, and what was deleted before the submit
