"""What words name in a photo: a concept model finds it, the mask engine draws it, the describer compares and names it.

    concept_regions(model, embedding, ConceptSearch(concepts, look, asked), labels)

A concept model answers with masks, or with boxes that the engine turns into masks. Parts are looked for inside their
objects, in a window of the photo around each. Where several labels claim one mask, the describer says which of them
fits it less. From there on regions are suppressed, linked and offered as those of the describer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, CropPrediction, PromptCells, Proposal, cleaned
from semsam_model.inference.concept_model import ConceptModel, Found, Look, Query
from semsam_model.inference.engine import DescribedEngine, EngineEmbedding, Model, described
from semsam_model.inference.naming import label_probabilities
from semsam_model.inference.object_queries import INSIDE
from semsam_model.inference.postprocess import PostprocessOptions
from semsam_model.inference.preannotate import Region, RegionOptions, apart, linked
from semsam_model.inference.predict import promptless_candidates, rank_candidates
from semsam_model.inference.proposals import predict_proposals_batch
from semsam_model.masks.geometry import crops_iou, shared_pixels
from semsam_model.network.frame import LOGIT_STRIDE, Window
from semsam_model.network.query_calibration import Curve
from semsam_model.types import Box, Candidate, Concept, LabelSet, Prompt

AS_OFTEN_RIGHT = 0.5  #: calibrated score from which on a region is offered
SAME_BOX = 0.7  #: two boxes of one label with a larger IoU are one thing
WINDOWS = 8  #: objects of a photo, the largest, in which parts are looked for
MARGIN = 0.1  #: around an object, share of its sides
WHOLE = 0.8  #: an object whose sides are at least this share of the photo's is looked for parts in the photo itself


@dataclass(frozen=True, eq=False)
class ConceptSearch:
    """What is asked about one photo."""

    model: ConceptModel
    look: Callable[[Window | None], Look]  #: of the model at the photo, which is asked for twice, or at a window of it
    asked: Sequence[Concept]
    examples: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)  #: label -> boxes of it in this photo
    curve: Curve | None = None  #: what its scores are worth in this project, where that is known

    def least(self, options: RegionOptions) -> float:
        """The score, calibrated where there is a curve, below which nothing is offered."""
        if options.least is not None:
            return options.least
        return self.model.least if self.curve is None else AS_OFTEN_RIGHT

    def calibrated(self, score: float) -> float:
        return score if self.curve is None else float(self.curve(np.array(score)))


class _Claim(NamedTuple):
    """A mask that is said to be of a label."""

    concept: Concept
    score: float  #: as the model says it
    candidate: Candidate


def concept_regions(
    model: Model,
    embedding: EngineEmbedding,
    search: ConceptSearch,
    labels: LabelSet | None = None,
    options: RegionOptions | None = None,
) -> list[Region]:
    """The regions that the words of the search name in an embedded photo, best first, in photo pixels.

    labels: the project's, as vectors, by which the describer weighs labels that claim one mask; None: the surer one
    counts. Raises ConfigError when the label vectors are not of the describer's dimension, and what `look` raises.
    """
    options, answering = options or RegionOptions(), described(model)
    least = search.least(options)
    floor = least if search.curve is None else search.curve.inverse(least)
    anywhere = [concept for concept in search.asked if not concept.wholes]
    wholes = list(dict.fromkeys(whole for concept in search.asked for whole in concept.wholes))

    def claims_of(concepts: Sequence[Concept], window: Window | None) -> list[_Claim]:
        return list(_drawn(answering, embedding, _found(search, concepts, window, floor, options.most)))

    first = claims_of(list(dict.fromkeys([*anywhere, *wholes])), None)
    kept = [claim for claim in first if claim.concept in anywhere]
    objects = _groups([claim for claim in first if claim.concept in wholes])
    for window, inside, whole in _windows(objects, search.asked):
        kept += [part for part in claims_of(inside, window) if _share_inside(part.candidate, whole) >= INSIDE]
    found = [_region(group, search, labels) for group in _groups(kept)]
    offered = [r for r in found if r.candidate.score >= least and options.kind in (None, r.kind)]
    return linked(apart(offered, PostprocessOptions.visible)[: options.most])


def _found(
    search: ConceptSearch, concepts: Sequence[Concept], window: Window | None, floor: float, most: int
) -> list[tuple[Concept, Found]]:
    """The surest of what the words of the concepts name, each thing once a label."""
    pairs = [(c, Query(words, search.examples.get(c.value, ()))) for c in concepts for words in c.words]
    if not pairs:
        return []
    answers = search.model.find(search.look(window), [query for _, query in pairs], floor)
    found = [(concept, each) for (concept, _), answer in zip(pairs, answers, strict=True) for each in answer]
    found.sort(key=lambda pair: -pair[1].score)
    kept: list[tuple[Concept, Found]] = []
    for concept, each in found:
        same = [other.box for known, other in kept if known == concept]
        if len(kept) < most and not any(_box_iou(each.box, box) > SAME_BOX for box in same):
            kept.append((concept, each))
    return kept


def _drawn(
    answering: DescribedEngine, embedding: EngineEmbedding, found: Sequence[tuple[Concept, Found]]
) -> Iterator[_Claim]:
    """What was found as masks in photo pixels that the describer has described; without those that are empty."""
    options = CandidateOptions()
    boxes = [Prompt((), (each.box,)) for _, each in found if each.logits is None]
    by_engine = iter(predict_proposals_batch(answering, embedding, boxes, options) if boxes else ())
    for concept, each in found:
        if each.logits is None:
            candidates = rank_candidates(next(by_engine), options, answering.ranker)
        else:
            assert each.frame is not None
            prompt, frame = Prompt((), (each.box,)), each.frame
            own = cleaned(
                Proposal.of_mask(frame, each.logits, token=0, quality=each.score), options.min_region / LOGIT_STRIDE**2
            )
            crop = CropPrediction(frame, PromptCells.of(frame, prompt), (own,))
            (crop,) = answering.describe_foreign(embedding, prompt, [crop])
            candidates = promptless_candidates(crop.proposals, frame, options)
        if candidates and candidates[0].area:
            yield _Claim(concept, each.score, candidates[0])


def _groups(claims: Sequence[_Claim]) -> list[list[_Claim]]:
    """Claims to the same mask of one kind, the surest first."""
    groups: list[list[_Claim]] = []
    for claim in sorted(claims, key=lambda claim: -claim.score):
        for group in groups:
            if group[0].concept.kind == claim.concept.kind and _same(group[0].candidate, claim.candidate):
                group.append(claim)
                break
        else:
            groups.append([claim])
    return groups


def _same(a: Candidate, b: Candidate) -> bool:
    return crops_iou(a.crop, a.bbox, b.crop, b.bbox) > PostprocessOptions.same_iou


def _region(group: Sequence[_Claim], search: ConceptSearch, labels: LabelSet | None) -> Region:
    """The surest mask of a group, named by its labels."""
    mask, scores = group[0].candidate, {claim.concept: claim.score for claim in reversed(group)}
    weights = _weights(mask, [concept.value for concept in scores], labels)
    weighed = {concept: score * weight for (concept, score), weight in zip(scores.items(), weights, strict=True)}
    best_first = sorted(weighed, key=lambda concept: -weighed[concept])
    names = tuple((concept.value, search.calibrated(weighed[concept])) for concept in best_first)
    best = best_first[0]
    candidate = replace(
        mask, names=names, label=best.value, score=names[0][1], concept_score=weighed[best], parent=None
    )
    return Region(candidate, best.kind)


def _weights(mask: Candidate, values: Sequence[str], labels: LabelSet | None) -> list[float]:
    """How likely each label is to the describer, as a share of the likeliest of them."""
    known = [] if labels is None else [value for value in values if value in labels.values]
    if labels is None or mask.name_embedding is None or len(known) < len(values) or len(values) < 2:
        return [1.0] * len(values)
    every = label_probabilities(mask.name_embedding[None], [mask.level], labels)[0]
    likely = every[[labels.values.index(value) for value in values]]
    return [float(share) for share in likely / likely.max()]


def _windows(
    objects: Sequence[Sequence[_Claim]], asked: Sequence[Concept]
) -> Iterator[tuple[Window | None, list[Concept], Candidate]]:
    """Where parts are looked for, which, and the object that has to hold them; None: in the whole photo."""
    with_parts = []
    for group in objects:
        claimed = {claim.concept for claim in group}
        mine = [concept for concept in asked if claimed.intersection(concept.wholes)]
        with_parts.append((mine, group[0].candidate))
    for mine, whole in sorted(with_parts, key=lambda pair: -pair[1].area)[:WINDOWS]:
        (height, width), (x0, y0, x1, y1) = whole.size, whole.bbox
        if x1 - x0 >= WHOLE * width and y1 - y0 >= WHOLE * height:
            yield None, mine, whole
            continue
        dx, dy = round(MARGIN * (x1 - x0)), round(MARGIN * (y1 - y0))
        yield (max(0, x0 - dx), max(0, y0 - dy), min(width, x1 + dx), min(height, y1 + dy)), mine, whole


def _share_inside(part: Candidate, whole: Candidate) -> float:
    return shared_pixels(part.crop, part.bbox, whole.crop, whole.bbox) / part.area


def _box_iou(a: Box, b: Box) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - both)
