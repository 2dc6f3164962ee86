"""Values that all rooms share. Frozen; NumPy only, no torch.

Frame of everything here: pixels of the EXIF-oriented photo, continuous (x, y), pixel (column j, row i) covering
[j, j+1) x [i, i+1). Boxes are half-open x0, y0, x1, y1. Levels are 1..6 (1 = whole, 6 = smallest part), tokens 0..5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from semsam_model.errors import PromptError, Stopped

Item = TypeVar("Item")

#: Token of user-facing level 1..6. The order was read off trained tokens (Semantic-SAM demo), no code enforces it;
#: our own models start their tokens from sizes in this order.
LEVEL_TOKENS = (3, 2, 0, 4, 1, 5)
LEVELS = tuple(range(1, len(LEVEL_TOKENS) + 1))  #: what an annotator chooses from: 1 = whole ... 6 = smallest part
Granularity = Literal["object", "part", "region"]
#: What an annotated mask can be; the order of the scores that object queries give.
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
Kind = Literal["object", "part"]
KINDS: tuple[Kind, ...] = get_args(Kind)  #: order of a model's two heads for names

#: How a caller ends long work early: a function that goes over many photos or steps takes `should_stop: ShouldStop =
#: never_stop` and calls it between any two of them, so it must be cheap. After True the function finishes nothing more:
#: it raises `errors.Stopped` where half a result would be none, and returns its state where it can be continued.
#: Callbacks that report progress only report; they never raise to end the work.
ShouldStop = Callable[[], bool]


def never_stop() -> bool:
    """The `ShouldStop` of a caller that waits for the end."""
    return False


def until_stopped(items: Iterable[Item], should_stop: ShouldStop) -> Iterator[Item]:
    """The items; `should_stop` is asked before each. Raises Stopped."""
    for item in items:
        if should_stop():
            raise Stopped("the caller ended the work early")
        yield item


def level_tokens(tokens: int) -> tuple[int, ...]:
    """Token of each level, largest first. Three-token models were trained without an order: token i is level i + 1."""
    return LEVEL_TOKENS if tokens == len(LEVEL_TOKENS) else tuple(range(tokens))


@dataclass(frozen=True)
class Click:
    """One click at (x, y), photo pixels; a negative one says that the mask is not there."""

    x: float
    y: float
    positive: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise PromptError(f"click ({self.x}, {self.y}): expected two finite pixel coordinates")


@dataclass(frozen=True)
class Box:
    """A box prompt, photo pixels, half-open."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        sides = self.x0, self.y0, self.x1, self.y1
        if not all(map(math.isfinite, sides)):
            raise PromptError(f"box {sides}: expected four finite pixel coordinates")
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise PromptError(f"box {sides}: expected x0 < x1 and y0 < y1 (the order is left, top, right, bottom)")


@dataclass(frozen=True)
class Prompt:
    """The clicks, in the order made, and boxes that ask for one mask."""

    clicks: tuple[Click, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def positives(self) -> tuple[Click, ...]:
        return tuple(click for click in self.clicks if click.positive)

    @property
    def negatives(self) -> tuple[Click, ...]:
        return tuple(click for click in self.clicks if not click.positive)

    def __post_init__(self) -> None:
        if not self.positives and not self.boxes:
            raise PromptError("prompt: expected at least one positive click or one box, got none")


class Label(NamedTuple):
    """What an annotated mask is called, as its source spells it."""

    granularity: str  #: one of GRANULARITIES
    name: str
    whole: str | None = None  #: of a part, where its category says it: "dog" of "dog:head"


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The labels of a project with their text vectors."""

    values: tuple[str, ...]  #: what a result carries
    kinds: tuple[Kind | None, ...]
    vectors: np.ndarray  #: float32 (n, E), unit length


@dataclass(frozen=True)
class Concept:
    """What a label asks a concept model for."""

    value: str  #: the label, as results carry it
    words: tuple[str, ...]  #: any of which may name it; at least one
    kind: Kind = "object"
    wholes: tuple[Concept, ...] = ()  #: of a part: what it is looked for in; (): the whole photo


@dataclass(frozen=True)
class PromptContext:
    """What is known about the masks that a project wants, beside the prompt. By default nothing."""

    granularity: Kind | None = None
    level_counts: tuple[int, ...] = (0,) * len(LEVEL_TOKENS)  #: accepted candidates of level 1, 2, ... 6
    labels: LabelSet | None = None  #: of the project
    wanted: int | None = None  #: index into `labels` of the one that the annotator chose before the prompt

    def __post_init__(self) -> None:
        count = 0 if self.labels is None else len(self.labels.values)
        if self.wanted is not None and not 0 <= self.wanted < count:
            raise PromptError(f"wanted label {self.wanted}: expected the index of one of {count} labels")
        if self.granularity not in (None, *KINDS):
            raise PromptError(f"wanted granularity {self.granularity!r}: expected object, part or None")
        if len(self.level_counts) != len(LEVEL_TOKENS) or min(self.level_counts) < 0:
            raise PromptError(
                f"accepted levels {self.level_counts}: expected {len(LEVEL_TOKENS)} counts, none below zero"
            )


@dataclass(frozen=True, eq=False)
class Candidate:
    """One mask suggested for a prompt.

    The mask is stored as the crop inside `bbox`, so that a 12-megapixel photo with six candidates stays small.
    """

    rank: int  #: 1 = best
    token: int  #: query that produced it, 0..5
    level: int  #: 1..6
    score: float  #: 0..1, for display and ordering: expected IoU with the wanted mask
    predicted_iou: float  #: raw regression of the network, may leave 0..1
    stability: float  #: share of logit > -1 that is also > +1
    size: tuple[int, int]  #: (H, W) of the photo
    bbox: tuple[int, int, int, int]  #: tight, half-open x0, y0, x1, y1; all zero for an empty mask
    crop: np.ndarray  #: bool (y1 - y0, x1 - x0)
    parent: int | None = None  #: rank of the next larger candidate that contains it
    #: float32 (2, E), of the object and the part head, times their learned scales: the dot product with a label's unit
    #: vector is the label's logit. None for a model without names.
    name_embedding: np.ndarray | None = None
    region: np.ndarray | None = None  #: float32 (F,), see `region_features`; set where a reranker is given
    names: tuple[tuple[str, float], ...] = ()  #: labels with scores 0..1, best first
    label: str | None = None  #: the best of `names` if its score reaches a threshold
    concept_score: float | None = None  #: as a concept model says it, not calibrated; None: none was asked

    @cached_property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.crop))

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W), built anew at each call."""
        full = np.zeros(self.size, bool)
        x0, y0, x1, y1 = self.bbox
        full[y0:y1, x0:x1] = self.crop
        return full
