"""Masks by name. Object queries first: they have scores of their own for what a mask is. Where none of them is sure, or
the model has none, a coarse grid of clicks, and of all that they select what a text fits best.

Either way the text has to fit a mask better than everything that it could be instead. What lies between the clicks of
the grid, or is smaller than its step, is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, Proposal, cleaned
from semsam_model.inference.naming import label_probabilities, name_candidates
from semsam_model.inference.object_queries import (
    INSIDE,
    ObjectQueries,
    candidates_of_label,
    containing_scores,
    predict_object_queries,
    single_label_scores,
)
from semsam_model.inference.postprocess import PostprocessOptions
from semsam_model.inference.predict import promptless_candidates
from semsam_model.inference.proposals import decode_prompts
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Candidate, Click, LabelSet, level_tokens

GRID = 8  #: clicks along each side of the photo
#: Two masks of a name that share more than this much of the smaller one are the same thing, or a piece of it.
SHARED = 0.5
OPTIONS = CandidateOptions()


def find(
    model: SemanticSAM, embedding: ImageEmbedding, labels: LabelSet, threshold: float, whole: LabelSet | None = None
) -> list[Candidate]:
    """Masks for which the first of `labels` is the best of them, at most six, best first, with their names.

    The other labels are what the masks could be instead: with none, everything would fit. whole: only masks inside one
    for which the first of these labels is the best ("wheel" of a "car").
    threshold: share of the list that a mask of a click needs; its score is that share times the predicted IoU. Those of
    object queries score as `object_queries.candidates_by_word` and need `PostprocessOptions.present`.
    [] for a model without names. Raises ConfigError as `label_scores`.
    """
    if model.name_head is None:
        return []
    if model.generic is not None:
        found = by_queries(predict_object_queries(model, embedding), embedding.frame, labels, whole)
        if found:
            return found
    return by_clicks(click_grid(model, embedding), embedding.frame, model.config.tokens, labels, threshold, whole)


def by_queries(
    queries: ObjectQueries, frame: Frame, labels: LabelSet, whole: LabelSet | None = None
) -> list[Candidate]:
    """`find` by object queries alone."""

    def wanted(of: LabelSet) -> np.ndarray:
        first = LabelSet(of.values[:1], of.kinds[:1], of.vectors[:1])
        return np.where(queries.classify(of).scores.argmax(1) == 0, single_label_scores(queries, first), 0)

    scores = wanted(labels)
    if whole is not None:
        scores = scores * containing_scores(queries, wanted(whole)[:, None])[:, 0]
    options = PostprocessOptions(most=OPTIONS.most, least=PostprocessOptions.present)
    return candidates_of_label(queries, frame, labels.values[0], scores, options)


def click_grid(model: SemanticSAM, embedding: ImageEmbedding) -> list[Proposal]:
    """What a click in the middle of each cell of the grid selects, all levels."""
    height, width = embedding.frame.photo
    steps = (np.arange(GRID) + 0.5) / GRID
    clicks = [Click(float(x * width), float(y * height)) for y in steps for x in steps]
    return [p for answer in decode_prompts(model, embedding, clicks, batch=len(clicks)) for p in answer]


def by_clicks(
    proposals: Sequence[Proposal],
    frame: Frame,
    tokens: int,
    labels: LabelSet,
    threshold: float,
    whole: LabelSet | None = None,
) -> list[Candidate]:
    """`find` by a grid of clicks alone; proposals of a model with names and so many level tokens."""
    min_cells = OPTIONS.min_region / LOGIT_STRIDE**2
    wholes = None if whole is None else _fitting(proposals, whole, threshold, tokens)
    kept: list[Proposal] = []
    for candidate in (cleaned(p, min_cells) for p in _fitting(proposals, labels, threshold, tokens)):
        if len(kept) == OPTIONS.most:
            break
        if candidate.cells.any() and all(_apart(candidate, k) for k in kept) and _within(candidate, wholes):
            kept.append(candidate)
    return name_candidates(promptless_candidates(kept, frame, tokens, OPTIONS), labels, threshold)


def _fitting(proposals: Sequence[Proposal], labels: LabelSet, threshold: float, tokens: int) -> list[Proposal]:
    """Those that the first label fits best and well enough, with their scores, best first."""
    named = np.stack([p.name_embedding for p in proposals if p.name_embedding is not None])
    levels = [level_tokens(tokens).index(p.token) + 1 for p in proposals]
    shares = label_probabilities(named, levels, labels)
    found = [
        replace(p, score=float(share[0]) * float(np.clip(p.predicted_iou, 0, 1)))
        for p, share in zip(proposals, shares, strict=True)
        if share.argmax() == 0 and share[0] >= threshold
    ]
    return sorted(found, key=lambda p: p.score or 0.0, reverse=True)


def _apart(a: Proposal, b: Proposal) -> bool:
    both = np.count_nonzero(a.cells & b.cells)
    return both <= SHARED * min(np.count_nonzero(a.cells), np.count_nonzero(b.cells))


def _within(part: Proposal, wholes: Sequence[Proposal] | None) -> bool:
    """Whether one of them, larger than the part, holds it; None holds everything."""
    if wholes is None:
        return True
    area = np.count_nonzero(part.cells)
    inside = (w for w in wholes if np.count_nonzero(part.cells & w.cells) >= INSIDE * area)
    return any(np.count_nonzero(w.cells) > area for w in inside)
