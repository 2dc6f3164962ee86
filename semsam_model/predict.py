"""A prompt on an embedded photo -> candidates in the photo's own pixels, best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semsam_model.candidates import (
    Options,
    PromptCells,
    Proposal,
    agreeing,
    combine,
    distinct,
    obeyed,
    order,
    parents,
    stability,
    tidy,
)
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.transforms import LOGIT_STRIDE, Frame
from semsam_model.types import Box, Candidate, Click, Prompt, level_tokens


def propose(
    model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt, options: Options | None = None
) -> list[Candidate]:
    """At most `options.most` distinct, cleaned masks, best first, parents linked; [] only if every level is empty.

    Raises PromptError for a prompt outside the photo.
    """
    options = options or Options()
    frame = embedding.frame
    cells = _in_cells(frame, prompt)
    positive: list[Click | Box] = [*prompt.positives, *prompt.boxes]
    centres = [_centre(frame.clip(box)) for box in prompt.boxes]
    negatives = prompt.negatives
    answers = _decode(model, embedding, [*positive, *centres, *negatives])
    mine, centred = answers[: len(positive)], answers[len(positive) : len(positive) + len(centres)]
    proposals = [p for answer in mine + centred for p in answer]
    clicks = len(prompt.clicks)
    if clicks > 1 and all(obeyed(p.cells, cells.positives, cells.negatives) < clicks for p in proposals):
        against = answers[len(positive) + len(centres) :]
        proposals += combine(mine, against, cells.positives, cells.negatives)
    min_cells = options.min_region / LOGIT_STRIDE**2
    ordered = order([tidy(p, min_cells) for p in proposals], cells)
    kept = agreeing(distinct(ordered, options), cells, options)
    drawn = [_Drawn(p, *frame.mask(p.logits)) for p in kept]
    # a mask may be so small that no photo pixel's centre lies in it
    return _offer([d for d in drawn if d.crop.size], frame, model.config.tokens, options)


def raw_levels(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[Candidate]:
    """Every level of every positive prompt, by predicted IoU: no clean-up, no duplicate removal."""
    answers = _decode(model, embedding, [*prompt.positives, *prompt.boxes])
    ordered = sorted((p for answer in answers for p in answer), key=lambda p: p.predicted_iou, reverse=True)
    drawn = [_Drawn(p, *embedding.frame.mask(p.logits)) for p in ordered]
    return _offer(drawn, embedding.frame, model.config.tokens, Options())


def _decode(model: SemanticSAM, embedding: ImageEmbedding, prompts: Sequence[Click | Box]) -> list[list[Proposal]]:
    """For each prompt its proposals in token order, cropped to the unpadded frame."""
    output = model.decode(embedding, prompts)
    h, w = embedding.frame.logits
    logits = output.logits[..., :h, :w].cpu().numpy()
    ious = output.predicted_iou.cpu().numpy()
    return [
        [Proposal(logits[n, t], t, float(ious[n, t]), stability(logits[n, t])) for t in range(logits.shape[1])]
        for n in range(len(prompts))
    ]


class _Drawn(NamedTuple):
    """A proposal and its mask in photo pixels."""

    proposal: Proposal
    crop: np.ndarray
    bbox: tuple[int, int, int, int]


def _offer(drawn: Sequence[_Drawn], frame: Frame, tokens: int, options: Options) -> list[Candidate]:
    level_of = {token: i + 1 for i, token in enumerate(level_tokens(tokens))}
    holders = parents([d.proposal.cells for d in drawn], options)
    return [
        Candidate(
            rank=i + 1,
            token=p.token,
            level=level_of[p.token],
            score=float(np.clip(p.predicted_iou, 0, 1)),
            predicted_iou=p.predicted_iou,
            stability=p.stability,
            size=frame.photo,
            bbox=bbox,
            crop=crop,
            parent=None if holder is None else holder + 1,
        )
        for i, ((p, crop, bbox), holder) in enumerate(zip(drawn, holders, strict=True))
    ]


def _in_cells(frame: Frame, prompt: Prompt) -> PromptCells:
    boxes = [frame.clip(box) for box in prompt.boxes]
    return PromptCells(
        tuple(frame.cell_of(c.x, c.y) for c in prompt.positives),
        tuple(frame.cell_of(c.x, c.y) for c in prompt.negatives),
        tuple((*frame.in_cells(b.x0, b.y0), *frame.in_cells(b.x1, b.y1)) for b in boxes),
    )


def _centre(box: Box) -> Click:
    return Click((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
