"""A prompt on an embedded photo -> candidates in the photo's own pixels, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from semsam_model.adaptation.kernel_ridge import Preference, preference_vectors
from semsam_model.adaptation.region_features import region_features
from semsam_model.inference.candidates import (
    CandidateOptions,
    CropPrediction,
    PromptCells,
    Proposal,
    agreeing,
    cleaned,
    combine,
    distinct,
    order,
    overlaps,
    parents,
    stability,
)
from semsam_model.inference.naming import evidence
from semsam_model.inference.ranking import features, proposal_features
from semsam_model.inference.zoom import CropEncoder, choose_crop, without_truncated
from semsam_model.masks.geometry import clean_pixels
from semsam_model.network.frame import LOGIT_STRIDE, Frame, Window
from semsam_model.network.model import DecoderOutput, ImageEmbedding, SemanticSAM
from semsam_model.network.ranker import Ranker
from semsam_model.types import Box, Candidate, Click, Kind, LabelSet, Prompt, PromptContext

TOGETHER = 8  #: clicks and boxes that are decoded in one run


@dataclass(frozen=True, eq=False)
class Proposals:
    """What the network says to one prompt, before anything is ranked or left out.

    Proposals are counted through all views in turn: 0, 1, ...
    """

    views: tuple[CropPrediction, ...]  #: the whole photo; then a closer look, if there was one
    tokens: int  #: level tokens of the model

    @cached_property
    def proposals(self) -> list[tuple[CropPrediction, Proposal]]:
        return [(view, p) for view in self.views for p in view.proposals]

    @cached_property
    def levels(self) -> list[int]:
        """Of each proposal, 1 = whole ... 6 = smallest part."""
        return [view.level(p, self.tokens) for view, p in self.proposals]

    @cached_property
    def shared(self) -> np.ndarray:
        """See `overlaps`."""
        return overlaps(self.views)

    @cached_property
    def rows(self) -> np.ndarray:
        """See `proposal_features`."""
        return proposal_features(self.views, self.tokens, self.shared)

    def names(self, labels: LabelSet, wanted: Kind | None = None) -> np.ndarray | None:
        """What the labels say about each proposal, see `evidence`; None for a model without names."""
        embeddings = [p.name_embedding for _, p in self.proposals]
        known = [e for e in embeddings if e is not None]
        return evidence(np.stack(known), self.levels, labels, wanted) if known else None

    def scores(self, ranker: Ranker, context: PromptContext | None = None) -> np.ndarray:
        """Of each proposal, 0..1. Raises ConfigError for labels embedded by another text encoder."""
        labels = context.labels if context else None
        named = None if labels is None or context is None else self.names(labels, context.granularity)
        return ranker.scores(features(self.rows, self.levels, context, named))


def predict_candidates(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompt: Prompt,
    options: CandidateOptions | None = None,
    context: PromptContext | None = None,
    encode_crop: CropEncoder | None = None,
    preference: Preference | None = None,
) -> list[Candidate]:
    """At most `options.most` distinct, cleaned masks, best first, parents linked; [] only if every level is empty.

    context: what the project is known to want; only a model with a ranker can use it. look: how to look closer at the
    photo, for a model whose config wants that; see `inference.zoom`. preference: what was learned from regions that
    were accepted; with it, candidates have their `region`. Raises PromptError for a prompt outside the photo.
    """
    options = options or CandidateOptions()
    answers = predict_proposals(model, embedding, prompt, options, encode_crop)
    if preference is None:
        return rank_candidates(answers, options, model.ranker, context)
    answers = with_region_features(embedding, answers)
    return to_candidates(
        answers, options, preference.scores(rerank_features(answers), expected_iou(answers, model.ranker, context))
    )


def predict_proposals(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompt: Prompt,
    options: CandidateOptions,
    encode_crop: CropEncoder | None = None,
) -> Proposals:
    """Decode a prompt; every level of every part of it, cleaned. Raises PromptError for a prompt outside the photo."""
    return predict_proposals_batch(model, embedding, [prompt], options, encode_crop)[0]


def predict_proposals_batch(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompts: Sequence[Prompt],
    options: CandidateOptions,
    encode_crop: CropEncoder | None = None,
) -> list[Proposals]:
    """`predict_proposals` for prompts that know nothing of each other. Decoded together, they take less time."""
    views = [[view] for view in _views(model, embedding, prompts, options)]
    places_of: dict[Window, list[int]] = {}
    if encode_crop is not None:
        for place, prompt in enumerate(prompts):
            window = choose_crop(views[place][0], prompt, model.config)
            if window is not None:
                places_of.setdefault(window, []).append(place)
        for window, places in places_of.items():
            closer = _views(model, encode_crop(window), [prompts[place] for place in places], options)
            for place, view in zip(places, closer, strict=True):
                views[place].append(without_truncated(view))
    return [Proposals(tuple(of), model.config.tokens) for of in views]


class _Parts(NamedTuple):
    """A prompt as the network knows it: clicks and boxes, each to be decoded alone."""

    shown: Prompt  #: what of it the frame shows
    positive: list[Click | Box]
    centres: list[Click]  #: of the boxes
    negative: list[Click]
    cells: PromptCells

    @classmethod
    def of(cls, frame: Frame, prompt: Prompt) -> _Parts:
        # a click beyond the photo is refused further on; beyond a window it says nothing
        shown = tuple(c for c in prompt.clicks if c.positive or frame.whole or frame.holds(c.x, c.y))
        negative = [click for click in shown if not click.positive]
        boxes = [frame.clip(box) for box in prompt.boxes]
        cells = PromptCells(
            tuple(frame.cell_of(c.x, c.y) for c in prompt.positives),
            tuple(frame.cell_of(c.x, c.y) for c in negative),
            tuple((*frame.in_cells(b.x0, b.y0), *frame.in_cells(b.x1, b.y1)) for b in boxes),
            beyond=len(prompt.negatives) - len(negative),
        )
        positive: list[Click | Box] = [*prompt.positives, *prompt.boxes]
        return cls(Prompt(shown, prompt.boxes), positive, [_centre(box) for box in boxes], negative, cells)


def _views(
    model: SemanticSAM, embedding: ImageEmbedding, prompts: Sequence[Prompt], options: CandidateOptions
) -> Iterator[CropPrediction]:
    """What one look says to each prompt."""
    every = [_Parts.of(embedding.frame, prompt) for prompt in prompts]
    flat = [part for parts in every for part in (*parts.positive, *parts.centres, *parts.negative)]
    answers = (
        answer
        for start in range(0, len(flat), TOGETHER)
        for answer in decode_prompts(model, embedding, flat[start : start + TOGETHER])
    )
    min_cells = options.min_region / LOGIT_STRIDE**2
    for parts in every:
        mine, centred, against = ([next(answers) for _ in of] for of in (parts.positive, parts.centres, parts.negative))
        together = _together(model, embedding, parts.shown)
        proposals = [p for answer in (*together, *mine, *centred) for p in answer]
        cells = parts.cells
        if cells.clicks > 1 and all(cells.obeyed(p) < cells.clicks for p in proposals):
            proposals += combine(mine, against, cells.positives, cells.negatives)
        yield CropPrediction(embedding.frame, cells, tuple(cleaned(p, min_cells) for p in proposals))


def _together(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[list[Proposal]]:
    """The whole prompt asked at once, where the model has learned that: from its first box and its first and last
    positive click, the other clicks beside it.
    """
    starts: list[Click | Box] = [*prompt.boxes[:1], *prompt.positives[:1], *prompt.positives[1:][-1:]]
    asked = [(start, [click for click in prompt.clicks if click is not start]) for start in starts]
    asked = [(start, others) for start, others in asked if others]
    if not asked or not model.config.corrections:
        return []
    return decode_prompts(model, embedding, [start for start, _ in asked], [others for _, others in asked])


def rank_candidates(
    answers: Proposals, options: CandidateOptions, ranker: Ranker | None = None, context: PromptContext | None = None
) -> list[Candidate]:
    """Answers -> what is offered: at most `options.most` distinct masks, best first, parents linked.

    Without a ranker in the order of predicted IoU, whatever is wanted.
    """
    return to_candidates(answers, options, None if ranker is None else expected_iou(answers, ranker, context))


def to_candidates(answers: Proposals, options: CandidateOptions, scores: np.ndarray | None = None) -> list[Candidate]:
    """As `rank_candidates`, by scores that were made elsewhere: 0..1, one for each proposal."""
    kept = rank_proposals(answers, options, scores)
    chosen = [answers.proposals[at] for at in kept]
    if scores is not None:
        chosen = [(view, replace(p, score=float(scores[at]))) for at, (view, p) in zip(kept, chosen, strict=True)]
    return drawn_candidates(chosen, answers.shared[np.ix_(kept, kept)], answers.tokens, options)


def expected_iou(answers: Proposals, ranker: Ranker | None, context: PromptContext | None = None) -> np.ndarray:
    """(n,) what each proposal is worth, 0..1: the ranker's score, else predicted IoU times the fit to the boxes."""
    if ranker is not None:
        return answers.scores(ranker, context)
    worth = [p.predicted_iou * (view.prompt.fit(p) if view.prompt.boxes else 1.0) for view, p in answers.proposals]
    clipped: np.ndarray = np.clip(worth, 0, 1)
    return clipped


def with_region_features(embedding: ImageEmbedding, answers: Proposals) -> Proposals:
    """The answers with the `region` of every proposal. embedding: of the whole photo."""
    cells = context_masks(embedding, answers)
    vectors = iter(region_features(embedding, np.array(cells), cells))
    views = (replace(v, proposals=tuple(replace(p, region=next(vectors)) for p in v.proposals)) for v in answers.views)
    return Proposals(tuple(views), answers.tokens)


def context_masks(embedding: ImageEmbedding, answers: Proposals) -> list[np.ndarray]:
    """Every proposal as bool (h, w) cells of the whole photo's frame."""
    frame = embedding.frame
    return [p.cells if v.frame == frame else v.frame.onto(p.logits, frame) > 0 for v, p in answers.proposals]


def rerank_features(answers: Proposals) -> np.ndarray:
    """Described answers -> a row for each proposal, see `few_shot.preference_vectors`."""
    return preference_vectors(np.array([p.region for _, p in answers.proposals]), answers.rows)


def rank_proposals(answers: Proposals, options: CandidateOptions, scores: np.ndarray | None = None) -> list[int]:
    """Which proposals are offered, best first. scores: of the ranker, one for each proposal."""
    ordered = order(answers.views, scores)
    return agreeing(distinct(ordered, answers.shared, options), answers.views, options)


def drawn_candidates(
    chosen: Sequence[tuple[CropPrediction, Proposal]], shared: np.ndarray, tokens: int, options: CandidateOptions
) -> list[Candidate]:
    """Proposals, best first -> candidates in photo pixels, ranked in this order, parents linked.

    shared: their `overlaps`.
    """
    drawn = [_Drawn(view, p, *draw_proposal(view, p, options)) for view, p in chosen]
    # a mask may be so small that no photo pixel's centre lies in it
    seen = [i for i, d in enumerate(drawn) if d.crop.size]
    return _linked_candidates([drawn[i] for i in seen], shared[np.ix_(seen, seen)], tokens, options)


def promptless_candidates(
    proposals: Sequence[Proposal], frame: Frame, tokens: int, options: CandidateOptions
) -> list[Candidate]:
    """`drawn_candidates` for proposals that come from no prompt, all of one frame."""
    view = CropPrediction(frame, PromptCells((), (), ()), tuple(proposals))
    return drawn_candidates([(view, p) for p in proposals], overlaps([view]), tokens, options)


def draw_proposal(
    view: CropPrediction, proposal: Proposal, options: CandidateOptions
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A proposal in photo pixels, cleaned of what its cells could not show: bool crop and its box, as `Frame.mask`."""
    return clean_pixels(*view.frame.mask(proposal.logits), options.min_region * view.frame.photo_pixels)


def raw_levels(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[Candidate]:
    """Every level of every positive prompt, by predicted IoU: no clean-up, no duplicate removal."""
    answers = decode_prompts(model, embedding, [*prompt.positives, *prompt.boxes])
    ordered = sorted((p for answer in answers for p in answer), key=lambda p: p.predicted_iou, reverse=True)
    view = CropPrediction(embedding.frame, PromptCells((), (), ()), tuple(ordered))
    drawn = [_Drawn(view, p, *embedding.frame.mask(p.logits)) for p in ordered]
    return _linked_candidates(drawn, overlaps([view]), model.config.tokens, CandidateOptions())


def decode_prompts(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompts: Sequence[Click | Box],
    further: Sequence[Sequence[Click]] | None = None,
) -> list[list[Proposal]]:
    """For each prompt its proposals in token order, cropped to the unpadded frame. further: see `decode`."""
    output = model.decode(embedding, prompts, further=further)
    h, w = embedding.frame.logits
    logits = output.logits[..., :h, :w].cpu().numpy()
    ious = output.predicted_iou.cpu().numpy()
    names = _name_embeddings(model, output)
    return [
        [
            Proposal(
                logits[n, t],
                t,
                float(ious[n, t]),
                stability(logits[n, t]),
                name_embedding=None if names is None else names[n, t],
            )
            for t in range(logits.shape[1])
        ]
        for n in range(len(prompts))
    ]


@torch.inference_mode()
def _name_embeddings(model: SemanticSAM, output: DecoderOutput) -> np.ndarray | None:
    """(N, T, 2, E) for objects and parts, each times its learned scale; None for a model without names."""
    if model.name_head is None:
        return None
    heads = torch.stack((output.object_embedding, output.part_embedding), 2)
    return (heads * model.name_scales().float()[:, None]).cpu().numpy()


class _Drawn(NamedTuple):
    """A proposal and its mask in photo pixels."""

    view: CropPrediction
    proposal: Proposal
    crop: np.ndarray
    bbox: tuple[int, int, int, int]


def _linked_candidates(
    drawn: Sequence[_Drawn], shared: np.ndarray, tokens: int, options: CandidateOptions
) -> list[Candidate]:
    holders = parents(shared, [int(np.count_nonzero(d.crop)) for d in drawn], options)
    return [
        Candidate(
            rank=i + 1,
            token=p.token,
            level=view.level(p, tokens),
            score=float(np.clip(p.predicted_iou, 0, 1)) if p.score is None else p.score,
            predicted_iou=p.predicted_iou,
            stability=p.stability,
            size=view.frame.photo,
            bbox=bbox,
            crop=crop,
            parent=None if holder is None else holder + 1,
            name_embedding=p.name_embedding,
            names=p.names,
            label=p.label,
            region=p.region,
        )
        for i, ((view, p, crop, bbox), holder) in enumerate(zip(drawn, holders, strict=True))
    ]


def _centre(box: Box) -> Click:
    return Click((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
