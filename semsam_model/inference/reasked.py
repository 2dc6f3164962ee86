"""Masks that the describer found, drawn by the engine: each is asked for by its box and a click in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, CropPrediction, PromptCells, cleaned
from semsam_model.inference.engine import EngineEmbedding, Model, described
from semsam_model.inference.predict import draw_proposal
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import iou
from semsam_model.network.frame import LOGIT_STRIDE
from semsam_model.types import Box, Candidate, Click, Prompt

ALIKE = 0.5  #: an answer with a smaller IoU is of something else: the describer's mask stays


def redrawn(model: Model, embedding: EngineEmbedding, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the engine's masks, where it has ones like them; names, scores and ranks stay.

    Those of a model that is engine and describer come back as they are.
    """
    answering, options = described(model), CandidateOptions()
    seen = [candidate for candidate in candidates if candidate.area]
    if answering.alone or not seen:
        return list(candidates)
    frame, min_cells = embedding.frame, options.min_region / LOGIT_STRIDE**2
    prompts = [_prompt(candidate) for candidate in seen]
    found: dict[int, Candidate] = {}
    for candidate, prompt, answer in zip(seen, prompts, answering.propose(embedding, prompts), strict=True):
        crop = CropPrediction(frame, PromptCells.of(frame, prompt), tuple(cleaned(p, min_cells) for p in answer))
        wanted = frame.coverage(candidate.mask) >= 0.5
        best = max(crop.proposals, key=lambda p: iou(p.cells, wanted))
        mask, bbox = draw_proposal(crop, best, options)
        if iou(best.cells, wanted) >= ALIKE and mask.size:
            level = crop.level(best)
            found[id(candidate)] = replace(
                candidate, crop=mask, bbox=bbox, level=level, stability=best.stability, token=best.token
            )
    return [found.get(id(candidate), candidate) for candidate in candidates]


def _prompt(candidate: Candidate) -> Prompt:
    x0, y0, x1, y1 = candidate.bbox
    middle = innermost(np.asarray(candidate.crop))
    return Prompt((Click(middle.x + x0, middle.y + y0),), (Box(x0, y0, x1, y1),))
