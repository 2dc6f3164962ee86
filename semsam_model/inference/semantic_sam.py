"""Semantic-SAM as a mask engine: every click and box alone, six levels each, then what joins them.

    SemanticSamEngine(model).propose(embedding, [prompt])

The network sees each click and box alone, then the whole prompt where its weights have learned corrections. Where no
answer obeys all clicks, they are combined. A model with `regions` proposes nested masks of the whole photo's hierarchy
too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from semsam_model.inference.candidates import PromptCells, Proposal, combine, stability
from semsam_model.inference.region_proposals import obeying, region_proposals
from semsam_model.masks.geometry import mask_rows
from semsam_model.network.frame import Frame, Window
from semsam_model.network.model import DecoderOutput, ImageEmbedding, SemanticSAM
from semsam_model.types import Box, Click, Prompt, level_tokens

BATCH = 8  #: clicks and boxes that are decoded in one run


@dataclass(frozen=True, eq=False)
class SemanticSamEngine:
    """A network of ours as `inference.engine.MaskEngine`."""

    model: SemanticSAM
    corrects = False  #: further clicks are proposals anew; a refiner corrects, where there is one

    @property
    def zoom(self) -> float:
        return self.model.config.zoom

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> ImageEmbedding:
        """See `SemanticSAM.encode`."""
        return self.model.encode(rgb, window)

    def propose(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> Iterator[list[Proposal]]:
        """Six proposals a click and box, those of the whole prompt, the combined ones, and regions."""
        every = [_PromptParts.of(embedding.frame, prompt) for prompt in prompts]
        flat = [part for parts in every for part in (*parts.positive, *parts.centres, *parts.negative)]
        decoded = decode_prompts(self.model, embedding, flat)
        for parts in every:
            positive, centres, negative = (
                [next(decoded) for _ in of] for of in (parts.positive, parts.centres, parts.negative)
            )
            whole = _decode_whole_prompt(self.model, embedding, parts.shown)
            proposals = [p for answer in (*whole, *positive, *centres) for p in answer]
            cells = parts.cells
            if cells.clicks > 1 and all(cells.obeyed(p) < cells.clicks for p in proposals):
                proposals += combine(positive, negative, cells.positives, cells.negatives)
            proposals += _of_regions(self.model, embedding, parts, proposals)
            yield proposals


class _PromptParts(NamedTuple):
    """A prompt as the network takes it: clicks and boxes, each to be decoded alone."""

    shown: Prompt
    positive: list[Click | Box]
    centres: list[Click]  #: of the boxes
    negative: list[Click]
    cells: PromptCells

    @classmethod
    def of(cls, frame: Frame, shown: Prompt) -> _PromptParts:
        positive: list[Click | Box] = [*shown.positives, *shown.boxes]
        centres = [_centre(frame.clip(box)) for box in shown.boxes]
        return cls(shown, positive, centres, list(shown.negatives), PromptCells.of(frame, shown))


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


def _centre(box: Box) -> Click:
    return Click((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
