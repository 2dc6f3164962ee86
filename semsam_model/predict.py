"""A prompt on an embedded photo -> candidates in the photo's own pixels, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from semsam_model.candidates import (
    Options,
    PromptCells,
    Proposal,
    agreeing,
    clean_pixels,
    combine,
    distinct,
    obeyed,
    order,
    parents,
    stability,
    tidy,
)
from semsam_model.model import DecoderOutput, ImageEmbedding, SemanticSAM
from semsam_model.ranker import Ranker, features
from semsam_model.transforms import LOGIT_STRIDE, Frame
from semsam_model.types import Box, Candidate, Click, Prompt, Wanted, level_tokens


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network says to one prompt, before anything is ranked or left out."""

    proposals: tuple[Proposal, ...]  #: cleaned; six a prompt, those of the whole prompt, and the combined ones
    prompt: PromptCells
    frame: Frame
    tokens: int  #: level tokens of the model


def propose(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompt: Prompt,
    options: Options | None = None,
    wanted: Wanted | None = None,
) -> list[Candidate]:
    """At most `options.most` distinct, cleaned masks, best first, parents linked; [] only if every level is empty.

    wanted: what the project is known to want; only a model with a ranker can use it.
    Raises PromptError for a prompt outside the photo.
    """
    options = options or Options()
    return rank(ask(model, embedding, prompt, options), options, model.ranker, wanted)


def ask(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt, options: Options) -> Answers:
    """Decode a prompt; every level of every part of it, cleaned. Raises PromptError for a prompt outside the photo."""
    frame = embedding.frame
    cells = _in_cells(frame, prompt)
    positive: list[Click | Box] = [*prompt.positives, *prompt.boxes]
    centres = [_centre(frame.clip(box)) for box in prompt.boxes]
    negatives = prompt.negatives
    answers = decode_clicks(model, embedding, [*positive, *centres, *negatives])
    mine, centred = answers[: len(positive)], answers[len(positive) : len(positive) + len(centres)]
    proposals = [p for answer in [*_together(model, embedding, prompt), *mine, *centred] for p in answer]
    clicks = len(prompt.clicks)
    if clicks > 1 and all(obeyed(p.cells, cells.positives, cells.negatives) < clicks for p in proposals):
        against = answers[len(positive) + len(centres) :]
        proposals += combine(mine, against, cells.positives, cells.negatives)
    min_cells = options.min_region / LOGIT_STRIDE**2
    return Answers(tuple(tidy(p, min_cells) for p in proposals), cells, frame, model.config.tokens)


def _together(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[list[Proposal]]:
    """The whole prompt asked at once, where the model has learned that: from its first box and its first and last
    positive click, the other clicks beside it.
    """
    starts: list[Click | Box] = [*prompt.boxes[:1], *prompt.positives[:1], *prompt.positives[1:][-1:]]
    asked = [(start, [click for click in prompt.clicks if click is not start]) for start in starts]
    asked = [(start, others) for start, others in asked if others]
    if not asked or not model.config.corrections:
        return []
    return decode_clicks(model, embedding, [start for start, _ in asked], [others for _, others in asked])


def rank(
    answers: Answers, options: Options, ranker: Ranker | None = None, wanted: Wanted | None = None
) -> list[Candidate]:
    """Answers -> what is offered: at most `options.most` distinct masks, best first, parents linked.

    Without a ranker in the order of predicted IoU, whatever is wanted.
    """
    proposals: Sequence[Proposal] = answers.proposals
    if ranker is not None:
        scores = ranker.scores(features(proposals, answers.prompt, answers.tokens, wanted))
        proposals = [replace(p, score=float(score)) for p, score in zip(proposals, scores, strict=True)]
    ordered = order(proposals, answers.prompt)
    kept = agreeing(distinct(ordered, options), answers.prompt, options)
    return offer(kept, answers.frame, answers.tokens, options)


def offer(kept: Sequence[Proposal], frame: Frame, tokens: int, options: Options) -> list[Candidate]:
    """Proposals, best first -> candidates in photo pixels, ranked in this order, parents linked."""
    least = options.min_region * frame.photo_pixels
    drawn = [_Drawn(p, *clean_pixels(*frame.mask(p.logits), least)) for p in kept]
    # a mask may be so small that no photo pixel's centre lies in it
    return _offer([d for d in drawn if d.crop.size], frame, tokens, options)


def raw_levels(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[Candidate]:
    """Every level of every positive prompt, by predicted IoU: no clean-up, no duplicate removal."""
    answers = decode_clicks(model, embedding, [*prompt.positives, *prompt.boxes])
    ordered = sorted((p for answer in answers for p in answer), key=lambda p: p.predicted_iou, reverse=True)
    drawn = [_Drawn(p, *embedding.frame.mask(p.logits)) for p in ordered]
    return _offer(drawn, embedding.frame, model.config.tokens, Options())


def decode_clicks(
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

    proposal: Proposal
    crop: np.ndarray
    bbox: tuple[int, int, int, int]


def _offer(drawn: Sequence[_Drawn], frame: Frame, tokens: int, options: Options) -> list[Candidate]:
    level_of = {token: i + 1 for i, token in enumerate(level_tokens(tokens))}
    sizes = [int(np.count_nonzero(d.crop)) for d in drawn]
    holders = parents([d.proposal.cells for d in drawn], sizes, options)
    return [
        Candidate(
            rank=i + 1,
            token=p.token,
            level=level_of[p.token],
            score=float(np.clip(p.predicted_iou, 0, 1)) if p.score is None else p.score,
            predicted_iou=p.predicted_iou,
            stability=p.stability,
            size=frame.photo,
            bbox=bbox,
            crop=crop,
            parent=None if holder is None else holder + 1,
            name_embedding=p.name_embedding,
            names=p.names,
            label=p.label,
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
