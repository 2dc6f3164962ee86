"""How good a click is: every annotated mask is clicked once, at the point farthest from its border.

    oracle   IoU of the best of the six levels with the wanted mask (as published); where the photo was looked at twice,
             of the best of the at most six candidates that are offered
    max      IoU of the answer with the highest predicted IoU with the wanted mask (as published)
    first    IoU of the candidate ranked first with the best annotated mask that contains the click: on nested masks a
             click has several right answers, and only the annotator knows which one is meant
    told     IoU of the candidate ranked first when the wanted granularity, object or part, is known, with the wanted
             mask; a region is of neither, there nothing is told. Weights without a ranker are told by levels: objects
             are of levels 1 to 3, parts of 4 to 6, the best by predicted IoU of those
    matched  those that `oracle` chooses from matched one to one with the annotated masks that contain the click, mean
             IoU of the pairs

All in the photo's own pixels, averaged over the masks of a source. The same run measures what a simple rule gives
(`evaluate_baselines`), and on a subsample how many clicks it takes (`evaluate_noc`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from scipy.optimize import linear_sum_assignment

from semsam_model.data.folder import evenly
from semsam_model.data.samples import MIN_AREA, Sample, clickable
from semsam_model.errors import DataError, ImageError
from semsam_model.evaluation.grabcut import grabcut
from semsam_model.evaluation.number_of_clicks import Corrected, correct
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.predict import (
    Proposals,
    draw_proposal,
    predict_proposals,
    predict_proposals_batch,
    rank_candidates,
    rank_proposals,
)
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Click, Prompt, PromptContext

__all__ = ["MEASURES", "ClickReport", "ClickScore", "evaluate_clicks", "innermost", "wanted_by"]

LEVELS_OF = {"object": (1, 2, 3), "part": (4, 5, 6)}
MEASURES = ("oracle", "first", "told", "max", "matched")
OPTIONS = CandidateOptions()


@dataclass(frozen=True)
class ClickScore:
    """One click on one mask. IoU and scores are 0..1."""

    sample: int  #: index among the samples given
    region: int  #: index among the sample's regions
    source: str
    granularity: str
    oracle: float
    first: float
    told: float
    max: float
    matched: float
    first_score: float  #: what the candidate ranked first was said to be worth
    told_score: float
    first_best: bool  #: no other candidate would have had a larger `first`
    told_best: bool  #: no other candidate would have had a larger `told`
    predicted_first: float  #: `first` and `told` when predicted IoU alone ranks
    predicted_told: float
    predicted_score: float
    largest_first: float  #: `first` and `max` of the largest of the six levels
    largest_max: float


@dataclass(frozen=True)
class GrabCutScore:
    """GrabCut from the same click."""

    source: str
    first: float
    max: float  #: IoU with the wanted mask


@dataclass
class ClickReport:
    clicks: list[ClickScore] = field(default_factory=list)
    corrected: list[Corrected] = field(default_factory=list)
    grabcut: list[GrabCutScore] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)  #: photos clicked, by source
    skipped: list[str] = field(default_factory=list)  #: photos and masks that could not be read, and why


def wanted_by(granularity: str) -> PromptContext:
    """What is told about a mask of this granularity."""
    return PromptContext(cast(Literal["object", "part"], granularity)) if granularity in LEVELS_OF else PromptContext()


def evaluate_clicks(
    model: SemanticSAM,
    samples: Sequence[Sample],
    *,
    min_area: int = MIN_AREA,
    corrected: int = 0,
    grabcut: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> ClickReport:
    """Click every mask of at least `min_area` pixels. `on_photo` is called after each photo.

    corrected, grabcut: photos of each source, evenly spaced, on which one mask is also corrected until it is right, and
    also given to GrabCut. A photo or mask that cannot be read is skipped and named; filled rectangles are passed over.
    """
    report, samples = ClickReport(), list(samples)
    to_correct, to_cut = ({id(s) for s in evenly(samples, n)} if n else set() for n in (corrected, grabcut))
    for number, sample in enumerate(samples):
        try:
            masks = sample.masks()
            wanted = clickable(sample.regions, masks, min_area)
            rgb = sample.image() if wanted else None
            embedding = None if rgb is None else model.encode(rgb)
        except (DataError, ImageError) as error:
            report.skipped.append(str(error))
            rgb = embedding = None
        if rgb is not None and embedding is not None:
            report.images[sample.source] += 1
            encode_crop = crop_encoder(model, rgb)
            report.clicks += _scores(model, embedding, encode_crop, sample, masks, number, wanted)
            chosen = wanted[int(np.random.default_rng(number).integers(len(wanted)))]
            if id(sample) in to_correct:
                report.corrected.append(_correct(model, embedding, encode_crop, sample, masks[chosen]))
            if id(sample) in to_cut:
                report.grabcut.append(_grabcut(rgb, sample, masks, chosen))
        on_photo()
    return report


def _scores(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    encode_crop: CropEncoder,
    sample: Sample,
    masks: Sequence[np.ndarray],
    number: int,
    wanted: Sequence[int],
) -> Iterator[ClickScore]:
    clicks = [innermost(masks[i]) for i in wanted]
    every = predict_proposals_batch(model, embedding, [Prompt((click,)) for click in clicks], OPTIONS, encode_crop)
    for index, click, answers in zip(wanted, clicks, every, strict=True):
        yield _score(model, answers, _under(masks, click), masks[index], sample, number, index)


def _score(
    model: SemanticSAM,
    answers: Proposals,
    under: Sequence[np.ndarray],
    wanted: np.ndarray,
    sample: Sample,
    number: int,
    index: int,
) -> ClickScore:
    granularity = sample.regions[index].granularity
    seen = Seen(answers, wanted, under)
    by_iou = np.array([p.predicted_iou for _, p in answers.proposals])
    predicted = seen.offered(None)
    predicted_told = sorted(predicted, key=lambda at: answers.levels[at] not in LEVELS_OF.get(granularity, ()))
    if model.ranker is None:
        first, told = predicted, predicted_told
        first_scores = told_scores = np.clip(by_iou, 0, 1)
    else:
        first_scores = answers.scores(model.ranker)
        told_scores = answers.scores(model.ranker, wanted_by(granularity))
        first, told = seen.offered(first_scores), seen.offered(told_scores)
    looked_once = len(answers.views) == 1
    levels = range(len(answers.proposals)) if looked_once else first
    surest, largest = int(by_iou.argmax()), max(levels, key=seen.area, default=0)
    return ClickScore(
        sample=number,
        region=index,
        source=sample.source,
        granularity=granularity,
        oracle=max(map(seen.wanted, levels), default=0.0),
        first=seen.any(first[0]) if first else 0.0,
        told=seen.wanted(told[0]) if told else 0.0,
        max=seen.wanted(surest),
        matched=matched([seen.ious(at) for at in levels]) if levels else 0.0,
        first_score=float(first_scores[first[0]]) if first else 0.0,
        told_score=float(told_scores[told[0]]) if told else 0.0,
        first_best=bool(first) and seen.any(first[0]) >= max(map(seen.any, first)),
        told_best=bool(told) and seen.wanted(told[0]) >= max(map(seen.wanted, told)),
        predicted_first=seen.any(predicted[0]) if predicted else 0.0,
        predicted_told=seen.wanted(predicted_told[0]) if predicted else 0.0,
        predicted_score=float(np.clip(by_iou[predicted[0]], 0, 1)) if predicted else 0.0,
        largest_first=seen.any(largest),
        largest_max=seen.wanted(largest),
    )


class Seen:
    """The answers to one click beside the annotated masks under it; each proposal is drawn once, if at all."""

    def __init__(self, answers: Proposals, wanted: np.ndarray, under: Sequence[np.ndarray]) -> None:
        self._answers, self._wanted, self._under = answers, wanted, under
        self._drawn: dict[int, tuple[int, float, list[float]]] = {}

    def _at(self, at: int) -> tuple[int, float, list[float]]:
        """Area, IoU with the wanted mask, IoU with each mask under the click."""
        if at not in self._drawn:
            crop, bbox = draw_proposal(*self._answers.proposals[at], OPTIONS)
            ious = [crop_iou(crop, bbox, mask) for mask in self._under]
            self._drawn[at] = int(np.count_nonzero(crop)), crop_iou(crop, bbox, self._wanted), ious
        return self._drawn[at]

    def area(self, at: int) -> int:
        return self._at(at)[0]

    def wanted(self, at: int) -> float:
        return self._at(at)[1]

    def ious(self, at: int) -> list[float]:
        return self._at(at)[2]

    def any(self, at: int) -> float:
        return max(self.ious(at))

    def offered(self, scores: np.ndarray | None) -> list[int]:
        """As `rank_candidates` would, best first."""
        return [at for at in rank_proposals(self._answers, OPTIONS, scores) if self.area(at)]


def matched(ious: Sequence[Sequence[float]]) -> float:
    """Rows predictions, columns annotated masks: mean IoU of the best one to one pairs."""
    table = np.array(ious)
    return float(table[linear_sum_assignment(table, maximize=True)].mean())


def _under(masks: Sequence[np.ndarray], click: Click) -> list[np.ndarray]:
    return [mask for mask in masks if mask[int(click.y), int(click.x)]]


def _correct(
    model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder, sample: Sample, mask: np.ndarray
) -> Corrected:
    def answer(prompt: Prompt) -> np.ndarray:
        ranked = rank_candidates(
            predict_proposals(model, embedding, prompt, OPTIONS, encode_crop), OPTIONS, model.ranker
        )
        return ranked[0].mask if ranked else np.zeros_like(mask)

    return Corrected(sample.source, tuple(correct(answer, mask)))


def _grabcut(rgb: np.ndarray, sample: Sample, masks: Sequence[np.ndarray], index: int) -> GrabCutScore:
    click = innermost(masks[index])
    cut = grabcut(rgb, click)
    height, width = cut.shape
    whole = (0, 0, width, height)
    under = _under(masks, click)
    return GrabCutScore(
        sample.source, max(crop_iou(cut, whole, mask) for mask in under), crop_iou(cut, whole, masks[index])
    )
