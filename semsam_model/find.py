"""Masks by name: a coarse grid of clicks, and of all that they select what a text fits best.

The simplest honest form: no detector. What lies between the clicks of the grid, or is smaller than its step, is missed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from semsam_model.candidates import Options, Proposal, tidy
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.names import LabelSet, label_scores
from semsam_model.predict import decode_clicks, offer_all
from semsam_model.transforms import LOGIT_STRIDE
from semsam_model.types import Candidate, Click, level_tokens

GRID = 8  #: clicks along each side of the photo
#: Two masks of a name that share more than this much of the smaller one are the same thing, or a piece of it.
SHARED = 0.5
OPTIONS = Options()


def find(model: SemanticSAM, embedding: ImageEmbedding, labels: LabelSet, threshold: float) -> list[Candidate]:
    """Masks for which the first of `labels` is the best of them and reaches the threshold, at most six, best first.

    The other labels are what the masks could be instead: with none, everything would fit. A candidate's score is the
    label's score times the predicted IoU. [] for a model without names. Raises ConfigError as `label_scores`.
    """
    height, width = embedding.frame.photo
    steps = (np.arange(GRID) + 0.5) / GRID
    clicks = [Click(float(x * width), float(y * height)) for y in steps for x in steps]
    wanted = labels.values[0]
    found = []
    for proposal in (p for answer in decode_clicks(model, embedding, clicks) for p in answer):
        if proposal.name_embedding is None:
            return []
        level = level_tokens(model.config.tokens).index(proposal.token) + 1
        best, score = label_scores(proposal.name_embedding, level, labels)[0]
        if best == wanted and score >= threshold:
            found.append(replace(proposal, score=score * float(np.clip(proposal.predicted_iou, 0, 1))))
    found.sort(key=lambda p: p.score or 0.0, reverse=True)
    min_cells = OPTIONS.min_region / LOGIT_STRIDE**2
    kept: list[Proposal] = []
    for cleaned in (tidy(p, min_cells) for p in found):
        if len(kept) < OPTIONS.most and cleaned.cells.any() and all(_apart(cleaned, k) for k in kept):
            kept.append(cleaned)
    return offer_all(kept, embedding.frame, model.config.tokens, OPTIONS)


def _apart(a: Proposal, b: Proposal) -> bool:
    both = np.count_nonzero(a.cells & b.cells)
    return both <= SHARED * min(np.count_nonzero(a.cells), np.count_nonzero(b.cells))
