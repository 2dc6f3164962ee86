"""How good a click is: every annotated mask is clicked once, at the point farthest from its border.

    oracle   IoU of the best of the six levels with the wanted mask (as published)
    max      IoU of the level with the highest predicted IoU with the wanted mask (as published)
    first    IoU of the candidate ranked first with the best annotated mask that contains the click: on nested masks a
             click has several right answers, and only the annotator knows which one is meant
    told     IoU of the candidate ranked first when the wanted granularity, object or part, is known, with the wanted
             mask; a region is of neither, there nothing is told. Weights without a ranker are told by levels: objects
             are of levels 1 to 3, parts of 4 to 6, the best by predicted IoU of those
    matched  the six levels matched one to one with the annotated masks that contain the click, mean IoU of the pairs

All in the photo's own pixels, averaged over the masks of a source. The same run measures what a simple rule gives
(`evaluate_baselines`), and on a subsample how many clicks it takes (`evaluate_noc`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from scipy.optimize import linear_sum_assignment

from semsam_model.candidates import Options, crop_iou
from semsam_model.corrections import innermost
from semsam_model.data import Sample, evenly
from semsam_model.errors import DataError, ImageError
from semsam_model.evaluate_baselines import grabcut
from semsam_model.evaluate_noc import Corrected, correct
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.predict import ask, rank, raw_levels
from semsam_model.types import Candidate, Click, Prompt, Wanted

__all__ = ["MEASURES", "ClickReport", "ClickScore", "evaluate_clicks", "innermost", "wanted_by"]

LEVELS_OF = {"object": (1, 2, 3), "part": (4, 5, 6)}
MEASURES = ("oracle", "first", "told", "max", "matched")
MIN_AREA = 64


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


def wanted_by(granularity: str) -> Wanted:
    """What is told about a mask of this granularity."""
    return Wanted(cast(Literal["object", "part"], granularity)) if granularity in LEVELS_OF else Wanted()


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
            masks = [sample.mask(i) for i in range(len(sample.regions))]
            wanted = [
                i
                for i, mask in enumerate(masks)
                if np.count_nonzero(mask) >= min_area and not sample.regions[i].box_only
            ]
            rgb = sample.image() if wanted else None
            embedding = None if rgb is None else model.encode(rgb)
        except (DataError, ImageError) as error:
            report.skipped.append(str(error))
            rgb = embedding = None
        if rgb is not None and embedding is not None:
            report.images[sample.source] += 1
            report.clicks += [_score(model, embedding, sample, masks, number, i) for i in wanted]
            chosen = wanted[int(np.random.default_rng(number).integers(len(wanted)))]
            if id(sample) in to_correct:
                report.corrected.append(_correct(model, embedding, sample, masks[chosen]))
            if id(sample) in to_cut:
                report.grabcut.append(_grabcut(rgb, sample, masks, chosen))
        on_photo()
    return report


def _score(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    sample: Sample,
    masks: Sequence[np.ndarray],
    number: int,
    index: int,
) -> ClickScore:
    wanted, granularity = masks[index], sample.regions[index].granularity
    click = innermost(wanted)
    prompt, options = Prompt((click,)), Options()
    under = _under(masks, click)
    levels = raw_levels(model, embedding, prompt)  # by predicted IoU
    with_wanted = [_iou(c, wanted) for c in levels]
    largest = max(range(len(levels)), key=lambda i: levels[i].area)
    answers = ask(model, embedding, prompt, options)
    predicted = rank(answers, options)
    predicted_told = _by_level(predicted, granularity)
    if model.ranker is None:
        first, told = predicted, predicted_told
    else:
        first = rank(answers, options, model.ranker)
        told = rank(answers, options, model.ranker, wanted_by(granularity))
    with_any = [_best(c, under) for c in first]
    told_with_wanted = [_iou(c, wanted) for c in told]
    return ClickScore(
        sample=number,
        region=index,
        source=sample.source,
        granularity=granularity,
        oracle=max(with_wanted),
        first=with_any[0] if with_any else 0.0,
        told=told_with_wanted[0] if told else 0.0,
        max=with_wanted[0],
        matched=matched([[_iou(c, mask) for mask in under] for c in levels]),
        first_score=first[0].score if first else 0.0,
        told_score=told[0].score if told else 0.0,
        first_best=bool(first) and with_any[0] >= max(with_any),
        told_best=bool(told) and told_with_wanted[0] >= max(told_with_wanted),
        predicted_first=_best(predicted[0], under) if predicted else 0.0,
        predicted_told=_iou(predicted_told[0], wanted) if predicted else 0.0,
        predicted_score=predicted[0].score if predicted else 0.0,
        largest_first=_best(levels[largest], under),
        largest_max=with_wanted[largest],
    )


def matched(ious: Sequence[Sequence[float]]) -> float:
    """Rows predictions, columns annotated masks: mean IoU of the best one to one pairs."""
    table = np.array(ious)
    return float(table[linear_sum_assignment(table, maximize=True)].mean())


def _under(masks: Sequence[np.ndarray], click: Click) -> list[np.ndarray]:
    return [mask for mask in masks if mask[int(click.y), int(click.x)]]


def _iou(candidate: Candidate, mask: np.ndarray) -> float:
    return crop_iou(candidate.crop, candidate.bbox, mask)


def _best(candidate: Candidate, masks: Sequence[np.ndarray]) -> float:
    return max(_iou(candidate, mask) for mask in masks)


def _by_level(ranked: Sequence[Candidate], granularity: str) -> list[Candidate]:
    """Those of the granularity's levels first."""
    levels = LEVELS_OF.get(granularity, ())
    return sorted(ranked, key=lambda c: c.level not in levels)


def _correct(model: SemanticSAM, embedding: ImageEmbedding, sample: Sample, mask: np.ndarray) -> Corrected:
    def answer(prompt: Prompt) -> np.ndarray:
        options = Options()
        ranked = rank(ask(model, embedding, prompt, options), options, model.ranker)
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
