"""A prompt on an embedded photo -> candidates in the photo's own pixels, best first.

predict_candidates(model, embedding, prompt)      # all the steps

predict_proposals     every mask that the network proposes, see `inference.proposals`
rank_candidates       expected IoU of each; a reranker's scores, if there is one; then `to_candidates`
within_boxes          of a box: what reaches beyond it is cut off
to_candidates         the best that differ, in photo pixels, parents linked
_refined_first        with a refiner and further clicks: the first click's mask, corrected, before all others
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from semsam_model.inference.boxes import within_boxes
from semsam_model.inference.candidates import (
    CandidateOptions,
    CropPrediction,
    PromptCells,
    Proposal,
    intersections,
    parents,
)
from semsam_model.inference.engine import EngineEmbedding, Model, described, description_of
from semsam_model.inference.proposals import Proposals, predict_proposals
from semsam_model.inference.ranking import ranker_features
from semsam_model.inference.refinement import contradicts, first_and_further, refine
from semsam_model.inference.selection import select
from semsam_model.inference.semantic_sam import decode_prompts
from semsam_model.inference.zoom import CropEncoder
from semsam_model.masks.geometry import BBox, clean_pixels, crops_iou, shared_pixels
from semsam_model.network.frame import Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.ranker import Ranker
from semsam_model.network.refiner import Refiner
from semsam_model.types import Candidate, Click, Prompt, PromptContext


class Reranker(Protocol):
    """Scores proposals by what no ranker was trained with, such as the masks that a project has accepted before."""

    def rerank(
        self,
        proposals: Proposals,
        expected: np.ndarray,
        context: PromptContext | None = None,
        without_label: np.ndarray | None = None,
    ) -> tuple[Proposals, np.ndarray]:
        """expected (n,): `expected_iou` of the proposals in that context. without_label (n,): the same as if no label
        had been chosen, where one has. Returns the proposals with their `region`, and scores (n,), 0..1.
        """


def predict_candidates(
    model: Model,
    embedding: EngineEmbedding,
    prompt: Prompt,
    options: CandidateOptions | None = None,
    context: PromptContext | None = None,
    encode_crop: CropEncoder | None = None,
    reranker: Reranker | None = None,
) -> list[Candidate]:
    """At most `options.most` distinct, cleaned masks, best first, parents linked; [] only if every level is empty, or
    lies outside the prompt's boxes.

    context: what the project is known to want; only a model with a ranker can use it. encode_crop: encodes a magnified
    crop of the photo, for an engine that has `zoom`. reranker: with it, candidates have their `region`.
    Raises PromptError for a prompt outside the photo.
    """
    options, answering = options or CandidateOptions(), described(model)
    ranker, refiner, look = answering.ranker, answering.refiner, description_of(embedding)
    proposals = predict_proposals(answering, embedding, prompt, options, encode_crop)
    candidates = rank_candidates(proposals, options, ranker, context, reranker)
    first, further = first_and_further(prompt)
    if refiner is None or look.pixels is None or not further:
        return candidates

    def best_of(asked: Prompt) -> tuple[CropPrediction, Proposal] | None:
        found = predict_proposals(answering, embedding, asked, options, encode_crop)
        found, scores = _scored(found, options, ranker, context, reranker)
        ranked = rank_proposals(found, options, scores)
        if not ranked:
            return None
        crop, proposal = found.pairs[ranked[0]]
        return crop, proposal if scores is None else replace(proposal, score=float(scores[ranked[0]]))

    start = best_of(first)
    if start is not None and contradicts(_as_pixels(start, look.frame), look.frame.in_pixels(further[0])):
        start = best_of(Prompt((*first.clicks, further[0]), first.boxes)) or start
    if start is None:
        return candidates
    refined = _refined(refiner, look, start, first, further)
    return _refined_first(refined, candidates, options) if refined.crop.size else candidates


def _as_pixels(start: tuple[CropPrediction, Proposal], frame: Frame) -> np.ndarray:
    """float32 (h, w): the logits of a proposal in the pixels of the resized photo."""
    crop, proposal = start
    return crop.frame.onto(proposal.logits, frame, stride=1)


def _refined(
    refiner: Refiner,
    embedding: ImageEmbedding,
    start: tuple[CropPrediction, Proposal],
    first: Prompt,
    further: Sequence[Click],
) -> Candidate:
    """The candidate of one proposal, corrected by the further clicks in turn."""
    assert embedding.pixels is not None
    frame = embedding.frame
    logits = _as_pixels(start, frame)
    made = [frame.in_pixels(click) for click in first.clicks]
    for click in further:
        made.append(frame.in_pixels(click))
        logits = refine(refiner, embedding.pixels, logits, made)
    drawn = _Drawn(*start, *frame.mask(logits, stride=1))
    return _linked([drawn], np.zeros((1, 1), np.float32), CandidateOptions())[0]


def _refined_first(refined: Candidate, others: Sequence[Candidate], options: CandidateOptions) -> list[Candidate]:
    """The refined candidate, then the others that differ from it; it is expected to be as good as the best of them."""
    kept = [replace(refined, score=max([refined.score, *(c.score for c in others)]))]
    kept += [c for c in others if crops_iou(c.crop, c.bbox, refined.crop, refined.bbox) <= options.same_iou]
    kept = kept[: options.most]
    shared = np.array([[shared_pixels(a.crop, a.bbox, b.crop, b.bbox) for b in kept] for a in kept], np.float32)
    holders = parents(shared, [c.area for c in kept], options)
    return [
        replace(c, rank=i + 1, parent=None if holder is None else holder + 1)
        for i, (c, holder) in enumerate(zip(kept, holders, strict=True))
    ]


def rank_candidates(
    proposals: Proposals,
    options: CandidateOptions,
    ranker: Ranker | None = None,
    context: PromptContext | None = None,
    reranker: Reranker | None = None,
) -> list[Candidate]:
    """The candidates among the proposals, see `predict_candidates`.

    With neither ranker nor reranker in the order of predicted IoU, whatever the context.
    Raises ConfigError for labels embedded by another text encoder.
    """
    proposals, scores = _scored(proposals, options, ranker, context, reranker)
    return to_candidates(proposals, options, scores)


def _scored(
    proposals: Proposals,
    options: CandidateOptions,
    ranker: Ranker | None,
    context: PromptContext | None,
    reranker: Reranker | None,
) -> tuple[Proposals, np.ndarray | None]:
    """The proposals as a prompt with boxes leaves them, see `within_boxes`; with a reranker they have their `region`.

    Scores are None with neither ranker nor reranker nor box.
    """
    if ranker is None and reranker is None and not any(crop.prompt.boxes for crop in proposals.crops):
        return proposals, None
    scores = expected_iou(proposals, ranker, context)
    if reranker is not None:
        without_label = None
        if context is not None and context.wanted is not None:
            without_label = expected_iou(proposals, ranker, PromptContext(level_counts=context.level_counts))
        proposals, scores = reranker.rerank(proposals, scores, context, without_label)
    return within_boxes(proposals, scores, options)


def expected_iou(proposals: Proposals, ranker: Ranker | None, context: PromptContext | None = None) -> np.ndarray:
    """(n,) the IoU, 0..1, that each proposal is expected to have with the mask that the annotator means.

    By the ranker; without one, predicted IoU times the fit to the boxes. Raises ConfigError for labels embedded by
    another text encoder.
    """
    if ranker is not None:
        labels = None if context is None else context.labels
        names = None
        if context is not None and labels is not None:
            names = proposals.evidence(labels, context.granularity, context.wanted)
        return ranker.scores(ranker_features(proposals.features, proposals.levels, context, names))
    fits = [p.predicted_iou * (crop.prompt.fit(p) if crop.prompt.boxes else 1.0) for crop, p in proposals.pairs]
    clipped: np.ndarray = np.clip(fits, 0, 1)
    return clipped


def to_candidates(proposals: Proposals, options: CandidateOptions, scores: np.ndarray | None = None) -> list[Candidate]:
    """The best distinct proposals as candidates. scores (n,), 0..1; None: as `rank_proposals`."""
    kept = rank_proposals(proposals, options, scores)
    chosen = [proposals.pairs[i] for i in kept]
    if scores is not None:
        chosen = [(crop, replace(p, score=float(scores[i]))) for i, (crop, p) in zip(kept, chosen, strict=True)]
    return _drawn_candidates(chosen, proposals.intersections[np.ix_(kept, kept)], options)


def rank_proposals(proposals: Proposals, options: CandidateOptions, scores: np.ndarray | None = None) -> list[int]:
    """Indices of the proposals that become candidates, as `select` says. scores (n,), 0..1, or None."""
    return select(proposals.crops, proposals.intersections, options, scores)


def promptless_candidates(proposals: Sequence[Proposal], frame: Frame, options: CandidateOptions) -> list[Candidate]:
    """Proposals of one frame that answer no prompt, best first -> candidates in this order, parents linked."""
    crop = CropPrediction(frame, PromptCells((), (), ()), tuple(proposals))
    return _drawn_candidates([(crop, p) for p in proposals], intersections([crop]), options)


def draw_proposal(crop: CropPrediction, proposal: Proposal, options: CandidateOptions) -> tuple[np.ndarray, BBox]:
    """A proposal in photo pixels, cleaned of what its cells could not show: bool crop and its box, as `Frame.mask`."""
    return clean_pixels(*crop.frame.mask(proposal.logits), options.min_region * crop.frame.photo_pixels)


def raw_levels(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[Candidate]:
    """Every level of every positive prompt, by predicted IoU: no clean-up, no duplicate removal."""
    decoded = decode_prompts(model, embedding, [*prompt.positives, *prompt.boxes])
    ordered = sorted((p for answer in decoded for p in answer), key=lambda p: p.predicted_iou, reverse=True)
    crop = CropPrediction(embedding.frame, PromptCells((), (), ()), tuple(ordered))
    drawn = [_Drawn(crop, p, *embedding.frame.mask(p.logits)) for p in ordered]
    return _linked(drawn, intersections([crop]), CandidateOptions())


class _Drawn(NamedTuple):
    """A proposal and its mask in photo pixels."""

    of: CropPrediction
    proposal: Proposal
    crop: np.ndarray
    bbox: BBox


def _drawn_candidates(
    chosen: Sequence[tuple[CropPrediction, Proposal]], shared: np.ndarray, options: CandidateOptions
) -> list[Candidate]:
    """Proposals, best first -> candidates in this order. shared: their `intersections`."""
    drawn = [_Drawn(crop, p, *draw_proposal(crop, p, options)) for crop, p in chosen]
    # a mask may be so small that no photo pixel's centre lies in it
    seen = [i for i, d in enumerate(drawn) if d.crop.size]
    return _linked([drawn[i] for i in seen], shared[np.ix_(seen, seen)], options)


def _linked(drawn: Sequence[_Drawn], shared: np.ndarray, options: CandidateOptions) -> list[Candidate]:
    """Candidates with their ranks and parents. shared: the `intersections` of the proposals."""
    holders = parents(shared, [int(np.count_nonzero(d.crop)) for d in drawn], options)
    return [
        Candidate(
            rank=i + 1,
            token=p.token,
            level=of.level(p),
            score=float(np.clip(p.predicted_iou, 0, 1)) if p.score is None else p.score,
            predicted_iou=p.predicted_iou,
            stability=p.stability,
            size=of.frame.photo,
            bbox=bbox,
            crop=crop,
            parent=None if holder is None else holder + 1,
            name_embedding=p.name_embedding,
            names=p.names,
            label=p.label,
            region=p.region,
        )
        for i, ((of, p, crop, bbox), holder) in enumerate(zip(drawn, holders, strict=True))
    ]
