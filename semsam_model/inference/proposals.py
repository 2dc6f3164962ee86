"""A prompt on an embedded photo -> every mask that is proposed for it, cleaned and described; nothing is ranked.

Where something small may be meant, an engine with `zoom` proposes twice: on the whole photo and on a magnified crop,
see `inference.zoom`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semsam_model.inference.candidates import (
    CandidateOptions,
    CropPrediction,
    PromptCells,
    Proposal,
    cleaned,
    intersections,
    shown_in,
)
from semsam_model.inference.engine import DescribedEngine, EngineEmbedding, Model, described, description_of
from semsam_model.inference.naming import evidence
from semsam_model.inference.ranking import proposal_features
from semsam_model.inference.zoom import CropEncoder, choose_crop, without_truncated
from semsam_model.network.frame import LOGIT_STRIDE, Frame, Window
from semsam_model.network.model import ImageEmbedding
from semsam_model.types import Click, Kind, LabelSet, Prompt


@dataclass(frozen=True, eq=False)
class Proposals:
    """What is proposed for one prompt. Proposals are counted through all crops in turn: 0, 1, ... n - 1."""

    embedding: ImageEmbedding  #: of the whole photo, the describer's
    crops: tuple[CropPrediction, ...]  #: the whole photo; then a magnified crop, if there was one

    @cached_property
    def pairs(self) -> list[tuple[CropPrediction, Proposal]]:
        """Each proposal with the crop that it is in."""
        return [(crop, p) for crop in self.crops for p in crop.proposals]

    @cached_property
    def levels(self) -> list[int]:
        """Of each proposal, 1 = whole ... 6 = smallest part."""
        return [crop.level(p) for crop, p in self.pairs]

    @cached_property
    def intersections(self) -> np.ndarray:
        """float32 (n, n), see `candidates.intersections`."""
        return intersections(self.crops)

    @cached_property
    def features(self) -> np.ndarray:
        """float32 (n, len(OF_PROPOSAL)), see `proposal_features`."""
        return proposal_features(self.crops, self.intersections)

    def evidence(self, labels: LabelSet, kind: Kind | None = None, wanted: int | None = None) -> np.ndarray | None:
        """What the labels say about each proposal, see `naming.evidence`; None without names."""
        embeddings = [p.name_embedding for _, p in self.pairs if p.name_embedding is not None]
        return evidence(np.stack(embeddings), self.levels, labels, kind, wanted) if embeddings else None


def predict_proposals(
    model: Model,
    embedding: EngineEmbedding,
    prompt: Prompt,
    options: CandidateOptions | None = None,
    encode_crop: CropEncoder | None = None,
) -> Proposals:
    """Everything that is proposed for the prompt. Raises PromptError for a prompt outside the photo.

    encode_crop: encodes a magnified crop of the photo, for an engine that has `zoom`.
    """
    return predict_proposals_batch(model, embedding, [prompt], options, encode_crop)[0]


def predict_proposals_batch(
    model: Model,
    embedding: EngineEmbedding,
    prompts: Sequence[Prompt],
    options: CandidateOptions | None = None,
    encode_crop: CropEncoder | None = None,
) -> list[Proposals]:
    """`predict_proposals` for several prompts that do not depend on each other; faster than one after the other."""
    options, answering = options or CandidateOptions(), described(model)
    crops = [[crop] for crop in _crop_predictions(answering, embedding, prompts, options)]
    if encode_crop is not None:
        prompts_in: dict[Window, list[int]] = {}
        for i, prompt in enumerate(prompts):
            window = choose_crop(crops[i][0], prompt, answering.engine.zoom, options)
            if window is not None:
                prompts_in.setdefault(window, []).append(i)
        for window, chosen in prompts_in.items():
            magnified = _crop_predictions(answering, encode_crop(window), [prompts[i] for i in chosen], options)
            for i, crop in zip(chosen, magnified, strict=True):
                crops[i].append(without_truncated(crop))
    look = description_of(embedding)
    return [
        Proposals(look, answering.describe(embedding, prompt, of)) for prompt, of in zip(prompts, crops, strict=True)
    ]


def _crop_predictions(
    answering: DescribedEngine, embedding: EngineEmbedding, prompts: Sequence[Prompt], options: CandidateOptions
) -> list[CropPrediction]:
    """What the engine proposes for each prompt in one crop, cleaned."""
    frame, min_cells = embedding.frame, options.min_region / LOGIT_STRIDE**2
    proposed = answering.propose(embedding, [shown_in(frame, prompt) for prompt in prompts])
    return [
        CropPrediction(frame, PromptCells.of(frame, prompt), tuple(cleaned(p, min_cells) for p in proposals))
        for prompt, proposals in zip(prompts, proposed, strict=True)
    ]


def click_grid(frame: Frame, side: int) -> list[Click]:
    """Clicks at the centres of side x side equal cells of the photo, row by row."""
    height, width = frame.photo
    steps = (np.arange(side) + 0.5) / side
    return [Click(float(x * width), float(y * height)) for y in steps for x in steps]
