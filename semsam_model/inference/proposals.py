"""A prompt on an embedded photo -> every mask that is proposed for it, cleaned; nothing is ranked or left out.

The network sees each click and box alone, then the whole prompt where its weights have learned corrections. Where
something small may be meant, all of that is done twice: on the whole photo and on a magnified crop, see
`inference.zoom`. A model with `regions` proposes nested masks of the whole photo's hierarchy too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from semsam_model.inference.candidates import (
    CandidateOptions,
    CropPrediction,
    PromptCells,
    Proposal,
    cleaned,
    combine,
    intersections,
    stability,
)
from semsam_model.inference.naming import evidence
from semsam_model.inference.ranking import proposal_features
from semsam_model.inference.region_proposals import obeying, region_proposals
from semsam_model.inference.zoom import CropEncoder, choose_crop, without_truncated
from semsam_model.masks.geometry import mask_rows
from semsam_model.network.frame import LOGIT_STRIDE, Frame, Window
from semsam_model.network.model import DecoderOutput, ImageEmbedding, SemanticSAM
from semsam_model.types import Box, Click, Kind, LabelSet, Prompt, level_tokens

BATCH = 8  #: clicks and boxes that are decoded in one run


@dataclass(frozen=True, eq=False)
class Proposals:
    """What the network proposes for one prompt. Proposals are counted through all crops in turn: 0, 1, ... n - 1."""

    embedding: ImageEmbedding  #: of the whole photo
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
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompt: Prompt,
    options: CandidateOptions | None = None,
    encode_crop: CropEncoder | None = None,
) -> Proposals:
    """Every level of every part of the prompt. Raises PromptError for a prompt outside the photo.

    encode_crop: encodes a magnified crop of the photo, for a model whose config has `zoom`.
    """
    return predict_proposals_batch(model, embedding, [prompt], options, encode_crop)[0]


def predict_proposals_batch(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompts: Sequence[Prompt],
    options: CandidateOptions | None = None,
    encode_crop: CropEncoder | None = None,
) -> list[Proposals]:
    """`predict_proposals` for several prompts that do not depend on each other; faster than one after the other."""
    options = options or CandidateOptions()
    crops = [[crop] for crop in _crop_predictions(model, embedding, prompts, options)]
    if encode_crop is not None:
        prompts_in: dict[Window, list[int]] = {}
        for i, prompt in enumerate(prompts):
            window = choose_crop(crops[i][0], prompt, model.config, options)
            if window is not None:
                prompts_in.setdefault(window, []).append(i)
        for window, chosen in prompts_in.items():
            magnified = _crop_predictions(model, encode_crop(window), [prompts[i] for i in chosen], options)
            for i, crop in zip(chosen, magnified, strict=True):
                crops[i].append(without_truncated(crop))
    return [Proposals(embedding, tuple(of)) for of in crops]


class _PromptParts(NamedTuple):
    """A prompt as the network takes it: clicks and boxes, each to be decoded alone."""

    shown: Prompt  #: the part of the prompt that lies in the frame
    positive: list[Click | Box]
    centres: list[Click]  #: of the boxes
    negative: list[Click]
    cells: PromptCells

    @classmethod
    def of(cls, frame: Frame, prompt: Prompt) -> _PromptParts:
        # `Frame.prompts` refuses a click outside the photo; one outside a crop says nothing about the crop
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


def _crop_predictions(
    model: SemanticSAM, embedding: ImageEmbedding, prompts: Sequence[Prompt], options: CandidateOptions
) -> Iterator[CropPrediction]:
    """What the network proposes for each prompt in one crop."""
    every = [_PromptParts.of(embedding.frame, prompt) for prompt in prompts]
    flat = [part for parts in every for part in (*parts.positive, *parts.centres, *parts.negative)]
    decoded = decode_prompts(model, embedding, flat)
    min_cells = options.min_region / LOGIT_STRIDE**2
    for parts in every:
        positive, centres, negative = (
            [next(decoded) for _ in of] for of in (parts.positive, parts.centres, parts.negative)
        )
        whole = _decode_whole_prompt(model, embedding, parts.shown)
        proposals = [p for answer in (*whole, *positive, *centres) for p in answer]
        cells = parts.cells
        if cells.clicks > 1 and all(cells.obeyed(p) < cells.clicks for p in proposals):
            proposals += combine(positive, negative, cells.positives, cells.negatives)
        proposals += _of_regions(model, embedding, parts, proposals)
        clean = [cleaned(p, min_cells) for p in proposals]
        if embedding.hierarchy is not None:
            strengths = embedding.hierarchy.strength_along([p.cells for p in clean])
            clean = [replace(p, border=strength) for p, strength in zip(clean, strengths.tolist(), strict=True)]
        yield CropPrediction(embedding.frame, cells, tuple(clean))


def _of_regions(
    model: SemanticSAM, embedding: ImageEmbedding, parts: _PromptParts, network: Sequence[Proposal]
) -> list[Proposal]:
    """What the photo's hierarchy of regions adds to the network's proposals: nested masks; where all of the network's
    disobey a click, the best of them changed so that it obeys.
    """
    hierarchy, cells = embedding.hierarchy, parts.cells
    if hierarchy is None:
        return []
    frame = embedding.frame
    regions = region_proposals(frame, hierarchy, parts.shown, model.config.regions)
    added = named_regions(model, embedding, regions, network)
    best = max(network, key=lambda p: (cells.obeyed(p), p.predicted_iou))
    if cells.clicks > 1 and cells.obeyed(best) < cells.clicks:
        added.append(obeying(frame, hierarchy, parts.shown, cells, best))
    return added


def named_regions(
    model: SemanticSAM, embedding: ImageEmbedding, regions: Sequence[Proposal], network: Sequence[Proposal]
) -> list[Proposal]:
    """Regions with class embeddings: the mean direction of what the name head pools in them and of the embedding of
    the network's proposal that is most like them.
    """
    if model.name_head is None or not regions:
        return list(regions)
    scales = model.name_scales().detach().float().cpu().numpy()[:, None]
    pooled = model.pooled_names(embedding, np.stack([p.logits for p in regions])).cpu().numpy()
    ours, theirs = mask_rows([p.cells for p in regions]), mask_rows([p.cells for p in network])
    both = ours @ theirs.T
    alike = both / np.maximum(ours.sum(1)[:, None] + theirs.sum(1) - both, 1)
    found = []
    for region, own, nearest in zip(regions, pooled, alike.argmax(1), strict=True):
        of_network = network[nearest].name_embedding
        assert of_network is not None
        total = own + of_network / scales
        unit = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
        found.append(replace(region, name_embedding=(unit * scales).astype(np.float32)))
    return found


def _decode_whole_prompt(model: SemanticSAM, embedding: ImageEmbedding, prompt: Prompt) -> list[list[Proposal]]:
    """The whole prompt in one query, by a model with `corrections`: it starts from the first box, the first and the
    last positive click, the other clicks beside it.
    """
    starts: list[Click | Box] = [*prompt.boxes[:1], *prompt.positives[:1], *prompt.positives[1:][-1:]]
    queries = [(start, [click for click in prompt.clicks if click is not start]) for start in starts]
    queries = [(start, others) for start, others in queries if others]
    if not queries or not model.config.corrections:
        return []
    return list(decode_prompts(model, embedding, [start for start, _ in queries], [others for _, others in queries]))


def decode_prompts(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    prompts: Sequence[Click | Box],
    further: Sequence[Sequence[Click]] | None = None,
    batch: int = BATCH,
) -> Iterator[list[Proposal]]:
    """For each prompt its proposals in token order, cropped to the unpadded frame; decoded lazily, `batch` at a time.

    further: for each prompt its other clicks, see `SemanticSAM.decode`.
    """
    h, w = embedding.frame.logits
    levels = {token: level for level, token in enumerate(level_tokens(model.config.tokens), 1)}
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        output = model.decode(embedding, prompts[part], further=None if further is None else further[part])
        logits = output.logits[..., :h, :w].cpu().numpy()
        ious = output.predicted_iou.cpu().numpy()
        names = _name_embeddings(model, output)
        for n in range(len(logits)):
            yield [
                Proposal(
                    logits[n, t],
                    t,
                    levels[t],
                    float(ious[n, t]),
                    stability(logits[n, t]),
                    name_embedding=None if names is None else names[n, t],
                )
                for t in range(logits.shape[1])
            ]


@torch.inference_mode()
def _name_embeddings(model: SemanticSAM, output: DecoderOutput) -> np.ndarray | None:
    """(N, T, 2, E) for objects and parts, each times its learned scale; None for a model without names."""
    if model.name_head is None:
        return None
    heads = torch.stack((output.object_embedding, output.part_embedding), 2)
    return (heads * model.name_scales().float()[:, None]).cpu().numpy()


def click_grid(frame: Frame, side: int) -> list[Click]:
    """Clicks at the centres of side x side equal cells of the photo, row by row."""
    height, width = frame.photo
    steps = (np.arange(side) + 0.5) / side
    return [Click(float(x * width), float(y * height)) for y in steps for x in steps]


def _centre(box: Box) -> Click:
    return Click((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
