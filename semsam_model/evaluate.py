"""How good one click is: every annotated mask is clicked once, at the point farthest from its border.

    oracle  IoU of the best of the six levels with the wanted mask (as published)
    max     IoU of the level with the highest predicted IoU with the wanted mask (as published)
    first   IoU of the candidate ranked first with the best annotated mask that contains the click: on nested masks a
            click has several right answers, and only the annotator knows which one is meant
    told    IoU of the best-ranked candidate among the levels of the wanted granularity (objects 1-3, parts 4-6; a
            region is of neither, there it is `first` ranked against the wanted mask)

All in the photo's own pixels, averaged over the masks of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from semsam_model.candidates import iou
from semsam_model.data import Sample
from semsam_model.errors import DataError
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.predict import propose, raw_levels
from semsam_model.types import Candidate, Click, Prompt

LEVELS_OF = {"object": (1, 2, 3), "part": (4, 5, 6)}
MEASURES = ("oracle", "first", "told", "max")


@dataclass
class SourceScores:
    """IoU, 0..1, of every click of one source; one entry a mask in each list."""

    oracle: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)
    max: list[float] = field(default_factory=list)
    granularity: list[str] = field(default_factory=list)
    images: int = 0

    def percent(self) -> dict[str, float | int]:
        """Means in percent, with the number of masks and photos."""
        means = {name: round(100 * float(np.mean(getattr(self, name))), 2) for name in MEASURES}
        return means | {"n": len(self.oracle), "images": self.images}

    def percent_by_granularity(self) -> dict[str, dict[str, float | int]]:
        found = {}
        for granularity in sorted(set(self.granularity)):
            rows = [i for i, g in enumerate(self.granularity) if g == granularity]
            part = SourceScores()
            for measure in MEASURES:
                getattr(part, measure).extend(getattr(self, measure)[i] for i in rows)
            found[granularity] = {k: v for k, v in part.percent().items() if k != "images"}
        return found


@dataclass(frozen=True)
class ClickReport:
    by_source: dict[str, SourceScores]
    skipped: tuple[str, ...]  #: photos and masks that could not be read, and why

    def to_dict(self) -> dict[str, object]:
        """What report.json holds: percent by source, and the mean over sources."""
        by_source = {
            name: scores.percent() | {"by_granularity": scores.percent_by_granularity()}
            for name, scores in sorted(self.by_source.items())
        }
        rows = [scores.percent() for scores in self.by_source.values()]
        mean = {m: round(float(np.mean([row[m] for row in rows])), 2) for m in MEASURES} if rows else {}
        return {"by_source": by_source, "mean_over_sources": mean, "skipped": list(self.skipped)}


def innermost(mask: np.ndarray) -> Click:
    """The pixel of a bool (H, W) mask, not empty, that is farthest from outside it; outside the photo is outside."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    i, j = np.unravel_index(int(distance.argmax()), distance.shape)
    return Click(float(j) + 0.5, float(i) + 0.5)


def evaluate_clicks(
    model: SemanticSAM,
    samples: Sequence[Sample],
    *,
    min_area: int = 64,
    on_photo: Callable[[], None] = lambda: None,
) -> ClickReport:
    """Click every mask of at least `min_area` pixels. `on_photo` is called after each photo.

    A photo or mask that cannot be read is skipped and named.
    """
    by_source: dict[str, SourceScores] = {}
    skipped: list[str] = []
    for sample in samples:
        try:
            embedding = model.encode(sample.image())
            masks = [sample.mask(i) for i in range(len(sample.regions))]
        except DataError as error:
            skipped.append(str(error))
        else:
            wanted = [i for i, mask in enumerate(masks) if np.count_nonzero(mask) >= min_area]
            if wanted:
                scores = by_source.setdefault(sample.source, SourceScores())
                scores.images += 1
                for i in wanted:
                    _score(model, embedding, masks, i, sample.regions[i].granularity, scores)
        on_photo()
    return ClickReport(by_source, tuple(skipped))


def _score(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    masks: Sequence[np.ndarray],
    index: int,
    granularity: str,
    scores: SourceScores,
) -> None:
    click = innermost(masks[index])
    prompt = Prompt((click,))
    wanted = masks[index]
    levels = [iou(c.mask, wanted) for c in raw_levels(model, embedding, prompt)]  # by predicted IoU
    ranked = propose(model, embedding, prompt)
    at = int(click.y), int(click.x)
    scores.oracle.append(max(levels))
    scores.max.append(levels[0])
    first = ranked[0].mask if ranked else np.zeros_like(wanted)
    scores.first.append(max(iou(first, mask) for mask in masks if mask[at]))
    told = _told(ranked, granularity)
    scores.told.append(iou(told.mask, wanted) if told else 0.0)
    scores.granularity.append(granularity)


def _told(ranked: Sequence[Candidate], granularity: str) -> Candidate | None:
    levels = LEVELS_OF.get(granularity, ())
    return next((c for c in ranked if c.level in levels), ranked[0] if ranked else None)
