"""A text prompt on an embedded photo -> the masks that the text names.

Object queries are tried first, because they have scores of their own for what a mask is. Where none of them is sure, or
the model has none, a coarse grid of clicks gives the masks, which misses what lies between its clicks or is smaller
than its step. Either way the text has to fit a mask better than all other labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, Proposal, cleaned
from semsam_model.inference.engine import EngineEmbedding, Model, described, description_of
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
from semsam_model.inference.proposals import click_grid
from semsam_model.inference.reasked import redrawn
from semsam_model.inference.semantic_sam import decode_prompts
from semsam_model.masks.geometry import greedy_nms, mask_rows
from semsam_model.network.frame import LOGIT_STRIDE, Frame
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import Candidate, LabelSet

GRID = 8  #: clicks along each side of the photo
SHARED = 0.5  #: of two masks of a label that share more than this much of the smaller one only the better is kept
OPTIONS = CandidateOptions()


def candidates_by_text(
    model: Model, embedding: EngineEmbedding, labels: LabelSet, threshold: float, whole: LabelSet | None = None
) -> list[Candidate]:
    """Masks for which the first of `labels` is the best of them, at most six, best first, with their names.

    The other labels are what a mask could be instead; without them, every mask would fit. whole: only masks inside one
    for which the first of these labels is the best ("wheel" of a "car").
    threshold: the probability among the labels that a mask of a click needs; its score is that probability times the
    predicted IoU. Masks of object queries score as in `candidates_by_word` and need `PostprocessOptions.present`.
    An engine in front draws what the describer finds. [] for a model without names. Raises ConfigError as
    `label_scores`.
    """
    answering = described(model)
    look, network = description_of(embedding), answering.describer
    if network.name_head is None:
        return []
    found = []
    if network.generic is not None:
        found = by_queries(predict_object_queries(network, look), look.frame, labels, whole)
    if not found:
        found = by_clicks(grid_proposals(network, look), look.frame, labels, threshold, whole)
    return redrawn(answering, embedding, found)


def by_queries(
    queries: ObjectQueries, frame: Frame, labels: LabelSet, whole: LabelSet | None = None
) -> list[Candidate]:
    """`candidates_by_text` by object queries alone."""

    def wanted(of: LabelSet) -> np.ndarray:
        first = LabelSet(of.values[:1], of.kinds[:1], of.vectors[:1])
        return np.where(queries.classify(of).scores.argmax(1) == 0, single_label_scores(queries, first), 0)

    scores = wanted(labels)
    if whole is not None:
        scores = scores * containing_scores(queries, wanted(whole)[:, None])[:, 0]
    options = PostprocessOptions(most=OPTIONS.most, least=PostprocessOptions.present)
    return candidates_of_label(queries, frame, labels.values[0], scores, options)


def grid_proposals(model: SemanticSAM, embedding: ImageEmbedding) -> list[Proposal]:
    """The proposals, all levels, of a click in the middle of each cell of the grid."""
    clicks = click_grid(embedding.frame, GRID)
    return [p for answer in decode_prompts(model, embedding, clicks, batch=len(clicks)) for p in answer]


def by_clicks(
    proposals: Sequence[Proposal], frame: Frame, labels: LabelSet, threshold: float, whole: LabelSet | None = None
) -> list[Candidate]:
    """`candidates_by_text` by the `grid_proposals` of a model with names."""
    min_cells = OPTIONS.min_region / LOGIT_STRIDE**2
    wholes = None if whole is None else _fitting(proposals, whole, threshold)
    fitting = [cleaned(p, min_cells) for p in _fitting(proposals, labels, threshold)]
    fitting = [p for p in fitting if p.cells.any() and _within(p, wholes)]
    if not fitting:
        return []
    masks = mask_rows([p.cells for p in fitting])
    shared, areas = masks @ masks.T, masks.sum(1)
    repeats = shared > SHARED * np.minimum(areas[:, None], areas)
    kept = greedy_nms(range(len(fitting)), len(fitting), repeats.__getitem__, OPTIONS.most)
    return name_candidates(promptless_candidates([fitting[i] for i in kept], frame, OPTIONS), labels, threshold)


def _fitting(proposals: Sequence[Proposal], labels: LabelSet, threshold: float) -> list[Proposal]:
    """The proposals that the first label fits best and well enough, with their scores, best first."""
    named = np.stack([p.name_embedding for p in proposals if p.name_embedding is not None])
    probabilities = label_probabilities(named, [p.level for p in proposals], labels)
    found = [
        replace(p, score=float(probability[0]) * float(np.clip(p.predicted_iou, 0, 1)))
        for p, probability in zip(proposals, probabilities, strict=True)
        if probability.argmax() == 0 and probability[0] >= threshold
    ]
    return sorted(found, key=lambda p: p.score or 0.0, reverse=True)


def _within(part: Proposal, wholes: Sequence[Proposal] | None) -> bool:
    """Whether one of the wholes, larger than the part, holds it; True without wholes."""
    if wholes is None:
        return True
    area = np.count_nonzero(part.cells)
    inside = (w for w in wholes if np.count_nonzero(part.cells & w.cells) >= INSIDE * area)
    return any(np.count_nonzero(w.cells) > area for w in inside)
