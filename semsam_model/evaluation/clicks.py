"""How good a click is: every annotated mask is clicked once, at the point farthest from its border.

    oracle, first, max   see `one_click`
    top1_given_kind      IoU of the candidate ranked first, when the wanted kind (object or part) is known, with the
                         clicked mask; a region is of neither kind, there nothing is known. Without a ranker, objects
                         are the levels 1 to 3 and parts the levels 4 to 6, the best by predicted IoU of those
    named                IoU of the candidate ranked first with the clicked mask, when the source's labels are known and
                         the mask's own was chosen before the click; a mask without such a label: as top1_given_kind
    matched              the proposals that `oracle` chooses from, matched one to one with the annotated masks that
                         contain the click: mean IoU of the pairs

All in the photo's own pixels, averaged over the masks of a source. The same run measures what simple rules give
(ranking by predicted IoU, the largest level, GrabCut), and on a subsample how many clicks a mask takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
from scipy.optimize import linear_sum_assignment

from semsam_model.data.folder import evenly
from semsam_model.data.samples import MIN_AREA, Region, Sample
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels
from semsam_model.evaluation.encoded_photos import EncodedPhoto, drawn_targets, encode_photos
from semsam_model.evaluation.grabcut import grabcut as cut_out
from semsam_model.evaluation.number_of_clicks import CorrectedMask, iou_after_clicks
from semsam_model.evaluation.one_click import OPTIONS, ProposalIous, click_targets, masks_under
from semsam_model.inference.engine import Model, described
from semsam_model.inference.predict import expected_iou, predict_candidates
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou
from semsam_model.types import Kind, Prompt, PromptContext

LEVELS_OF = {"object": (1, 2, 3), "part": (4, 5, 6)}
MEASURES = ("oracle", "first", "top1_given_kind", "named", "max", "matched")


@dataclass(frozen=True)
class ClickScore:
    """One click on one mask. IoU and scores are 0..1."""

    sample: int  #: index among the samples given
    region: int  #: index among the sample's regions
    source: str
    granularity: str
    oracle: float
    first: float
    top1_given_kind: float
    named: float
    max: float
    matched: float
    first_score: float  #: the expected IoU of the candidate ranked first
    given_kind_score: float
    first_is_best: bool  #: no other candidate has a larger `first`
    given_kind_is_best: bool  #: no other candidate has a larger `top1_given_kind`
    first_by_iou: float  #: `first` and `top1_given_kind` when predicted IoU alone ranks
    given_kind_by_iou: float
    by_iou_score: float
    largest_first: float  #: `first` and `max` of the largest of the proposals that `oracle` chooses from
    largest_max: float


@dataclass(frozen=True)
class GrabCutScore:
    """GrabCut from the same click."""

    source: str
    first: float
    max: float  #: IoU with the clicked mask


@dataclass
class ClickReport:
    """Everything that `evaluate_clicks` measured; `clicks_summary` averages it."""

    clicks: list[ClickScore] = field(default_factory=list)
    corrected: list[CorrectedMask] = field(default_factory=list)
    one_object: list[CorrectedMask] = field(default_factory=list)  #: the only objects of their photos
    grabcut: list[GrabCutScore] = field(default_factory=list)
    photos: Counter[str] = field(default_factory=Counter)  #: photos clicked, by source
    skipped: list[str] = field(default_factory=list)  #: photos and masks that could not be read, and why


def known_kind(granularity: str) -> PromptContext:
    """What `top1_given_kind` knows about a mask of this granularity."""
    if granularity not in LEVELS_OF:
        return PromptContext()
    return PromptContext(cast(Kind, granularity))


def chosen_label(labels: SourceLabels | None, source: str, region: Region) -> PromptContext:
    """What `named` knows about a mask. labels: those of every source; None as for a model without names."""
    row = NO_LABEL if labels is None else labels.vocabulary.row(source, region.granularity, region.name)
    if labels is None or row == NO_LABEL:
        return known_kind(region.granularity)
    rows = labels.vocabulary.rows_of(source)
    listed, wanted = labels.of_rows(rows), rows.index(row)
    return PromptContext(listed.kinds[wanted], labels=listed, wanted=wanted)


def evaluate_clicks(
    model: Model,
    samples: Sequence[Sample],
    *,
    min_area: int = MIN_AREA,
    labels: SourceLabels | None = None,
    masks: int | None = None,
    corrected: int = 0,
    one_object: int = 0,
    grabcut: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> ClickReport:
    """Click every mask of at least `min_area` pixels. `on_photo` is called after each photo.

    labels: of all sources, for `named`. masks: at most so many of a photo, see `drawn_targets`.
    corrected, grabcut: photos of each source, evenly spaced, on which one mask is also corrected until it is right, and
    also given to GrabCut. one_object: photos of each source with one object, evenly spaced, on which that is corrected,
    the published protocol (Xu et al. 2016; RITM, section 4). A photo or mask that cannot be read is skipped and named;
    filled rectangles are left out.
    """
    report, samples = ClickReport(), list(samples)
    to_correct, to_cut = ({id(s) for s in evenly(samples, n)} if n else set() for n in (corrected, grabcut))
    alone = (
        {id(s) for s in evenly([s for s in samples if only_object(s) is not None], one_object)} if one_object else ()
    )
    targets = partial(drawn_targets, min_area=min_area, most=masks)
    for photo in encode_photos(model, samples, report.skipped, targets=targets, on_photo=on_photo):
        sample, encode_crop = photo.sample, crop_encoder(model, photo.rgb)
        report.photos[sample.source] += 1
        for index, ious in click_targets(model, photo, encode_crop):
            report.clicks.append(_score(model, ious, photo, index, labels))
        chosen = photo.targets[int(np.random.default_rng(photo.number).integers(len(photo.targets)))]
        if id(sample) in to_correct:
            report.corrected.append(_correct(model, photo, encode_crop, chosen))
        only = only_object(sample)
        if id(sample) in alone and only is not None:
            report.one_object.append(_correct(model, photo, encode_crop, only))
        if id(sample) in to_cut:
            report.grabcut.append(_grabcut(photo, chosen))
    return report


def only_object(sample: Sample) -> int | None:
    """The region that is the only annotated object of a photo; None where there are more, or none."""
    objects = [i for i, region in enumerate(sample.regions) if region.granularity == "object"]
    return objects[0] if len(objects) == 1 else None


def _score(
    model: Model, ious: ProposalIous, photo: EncodedPhoto, region: int, labels: SourceLabels | None
) -> ClickScore:
    source, annotated = photo.sample.source, photo.sample.regions[region]
    granularity = annotated.granularity
    by_iou = ious.rank(None)
    levels = LEVELS_OF.get(granularity, ())
    given_kind_by_iou = sorted(by_iou, key=lambda index: ious.proposals.levels[index] not in levels)
    predicted = np.clip(ious.predicted, 0, 1)
    ranker = described(model).ranker
    if ranker is None:
        scores = given_kind_scores = predicted
        click, given_kind = ious.measure(None), given_kind_by_iou
        named = given_kind
    else:
        scores = expected_iou(ious.proposals, ranker)
        given_kind_scores = expected_iou(ious.proposals, ranker, known_kind(granularity))
        click, given_kind = ious.measure(scores), ious.rank(given_kind_scores)
        named = ious.rank(expected_iou(ious.proposals, ranker, chosen_label(labels, source, annotated)))
    ranked = click.ranked
    largest = max(click.pool, key=ious.area, default=0)
    return ClickScore(
        sample=photo.number,
        region=region,
        source=source,
        granularity=granularity,
        oracle=click.oracle,
        first=click.first,
        top1_given_kind=ious.with_clicked(given_kind[0]) if given_kind else 0.0,
        named=ious.with_clicked(named[0]) if named else 0.0,
        max=click.max,
        matched=matched([ious.with_containing(index) for index in click.pool]) if click.pool else 0.0,
        first_score=float(scores[ranked[0]]) if ranked else 0.0,
        given_kind_score=float(given_kind_scores[given_kind[0]]) if given_kind else 0.0,
        first_is_best=bool(ranked) and click.first >= max(map(ious.with_best, ranked)),
        given_kind_is_best=bool(given_kind)
        and ious.with_clicked(given_kind[0]) >= max(map(ious.with_clicked, given_kind)),
        first_by_iou=ious.with_best(by_iou[0]) if by_iou else 0.0,
        given_kind_by_iou=ious.with_clicked(given_kind_by_iou[0]) if by_iou else 0.0,
        by_iou_score=float(predicted[by_iou[0]]) if by_iou else 0.0,
        largest_first=ious.with_best(largest),
        largest_max=ious.with_clicked(largest),
    )


def matched(ious: Sequence[Sequence[float]]) -> float:
    """Rows predictions, columns annotated masks: mean IoU of the best one to one pairs."""
    table = np.array(ious)
    return float(table[linear_sum_assignment(table, maximize=True)].mean())


def _correct(model: Model, photo: EncodedPhoto, encode_crop: CropEncoder, region: int) -> CorrectedMask:
    mask = photo.masks[region]

    def predict(prompt: Prompt) -> np.ndarray:
        ranked = predict_candidates(model, photo.embedding, prompt, OPTIONS, encode_crop=encode_crop)
        return ranked[0].mask if ranked else np.zeros_like(mask)

    return CorrectedMask(photo.sample.source, tuple(iou_after_clicks(predict, mask)))


def _grabcut(photo: EncodedPhoto, region: int) -> GrabCutScore:
    click = innermost(photo.masks[region])
    cut = cut_out(photo.rgb, click)
    height, width = cut.shape
    whole = (0, 0, width, height)
    first = max(crop_iou(cut, whole, mask) for mask in masks_under(photo.masks.values(), click))
    return GrabCutScore(photo.sample.source, first, crop_iou(cut, whole, photo.masks[region]))
