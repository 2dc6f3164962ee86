"""Two jobs: a mask engine proposes masks for prompts, a describer says what is in them.

    encode(photo or window) -> embedding            a value; the engine keeps no photo
    propose(embedding, prompts) -> proposals        logits in the embedding's frame, quality, level

The describer is a network of ours with names: it gives every proposal its class embedding and the strength of borders,
regions their vectors for learning, photos their object queries, and orders candidates. A network that describes its own
masks is both (`described`). Zoom, cleaning, suppression, ranking, naming and learning do not know which engine it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from semsam_model.inference.candidates import CropPrediction, Proposal
from semsam_model.inference.semantic_sam import SemanticSamEngine, decode_prompts, named_regions
from semsam_model.network.frame import Frame, Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.ranker import Ranker
from semsam_model.network.refiner import Refiner
from semsam_model.types import Box, Click, Prompt


class EngineEmbedding(Protocol):
    """What an engine needs of one photo, or of a window of it, to answer prompts."""

    @property
    def frame(self) -> Frame:
        """Of its mask logits: one for each 4 x 4 pixels of `frame.resized`, whatever size the engine looks at."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes in a cache."""


class MaskEngine(Protocol):
    """Proposes masks. Embeddings are its own kind of `EngineEmbedding`."""

    @property
    def zoom(self) -> float:
        """Where proposals are small, a window of 1/zoom of the photo's sides is proposed too; 0: never."""

    @property
    def corrects(self) -> bool:
        """Whether further clicks correct its own mask; where not, the describer's refiner does, if it has one."""

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> Any:
        """uint8 RGB (H, W, 3), the whole photo -> embedding of it, or of a window alone. Raises ImageError."""

    def propose(self, embedding: Any, prompts: Sequence[Prompt]) -> Iterable[Sequence[Proposal]]:
        """For each prompt, which do not depend on each other, at least one proposal, float32 logits of the size
        `embedding.frame.logits`.

        All clicks lie in the frame; boxes may reach beyond it. Nothing is cleaned or left out. An engine that has no
        levels makes its proposals by `Proposal.of_mask`.
        """


@dataclass(frozen=True, eq=False)
class DescribedEmbedding:
    """A photo as the engine and as the describer see it, each having looked once."""

    masks: EngineEmbedding
    described: ImageEmbedding

    @property
    def frame(self) -> Frame:
        return self.masks.frame

    @property
    def nbytes(self) -> int:
        return self.masks.nbytes + self.described.nbytes


def description_of(embedding: EngineEmbedding) -> ImageEmbedding:
    """The describer's look at a whole photo, in what `DescribedEngine.encode` gave."""
    look = embedding.described if isinstance(embedding, DescribedEmbedding) else embedding
    assert isinstance(look, ImageEmbedding)
    return look


@dataclass(frozen=True, eq=False)
class DescribedEngine:
    """A mask engine and the network that describes its masks; `described` makes one of a network alone."""

    engine: MaskEngine
    describer: SemanticSAM
    own_ranker: Ranker | None = None  #: fitted to proposals of this engine; None: the describer's

    @property
    def alone(self) -> bool:
        """Whether the engine is the describer: one look at a photo does for both."""
        return isinstance(self.engine, SemanticSamEngine) and self.engine.model is self.describer

    @property
    def ranker(self) -> Ranker | None:
        return self.own_ranker or self.describer.ranker

    @property
    def refiner(self) -> Refiner | None:
        return None if self.engine.corrects else self.describer.refiner

    def encode(self, rgb: np.ndarray, window: Window | None = None) -> EngineEmbedding:
        """The whole photo as both see it, or a window as the engine sees it. Raises ImageError."""
        masks: EngineEmbedding = self.engine.encode(rgb, window)
        return masks if self.alone or window is not None else DescribedEmbedding(masks, self.describer.encode(rgb))

    def propose(self, embedding: EngineEmbedding, prompts: Sequence[Prompt]) -> Iterable[Sequence[Proposal]]:
        """`MaskEngine.propose` on what `encode` gave."""
        return self.engine.propose(embedding.masks if isinstance(embedding, DescribedEmbedding) else embedding, prompts)

    def describe(
        self, embedding: EngineEmbedding, prompt: Prompt, crops: Sequence[CropPrediction]
    ) -> tuple[CropPrediction, ...]:
        """The proposals of one prompt, cleaned, with what the describer says of them."""
        if not self.alone:
            return self.describe_foreign(embedding, prompt, crops)
        look = description_of(embedding)
        return tuple(_with_borders(look, crop) if crop.frame == look.frame else crop for crop in crops)

    def describe_foreign(
        self, embedding: EngineEmbedding, prompt: Prompt, crops: Sequence[CropPrediction]
    ) -> tuple[CropPrediction, ...]:
        """`describe` for masks that the describer did not propose: as it names and bounds those places in its frame."""
        look = description_of(embedding)
        pairs = [(crop, p) for crop in crops for p in crop.proposals]
        seen = [replace(p, logits=crop.frame.onto(p.logits, look.frame)) for crop, p in pairs]
        if not seen:
            return tuple(crops)
        start: Click | Box = prompt.positives[0] if prompt.positives else prompt.boxes[0]
        own = [p for answer in decode_prompts(self.describer, look, [start]) for p in answer]
        named = named_regions(self.describer, look, seen, own)
        strengths = [0.0] * len(seen)
        if look.hierarchy is not None:
            strengths = look.hierarchy.strength_along([p.cells for p in seen]).tolist()
        said = iter(zip(named, strengths, strict=True))
        described = []
        for crop in crops:
            proposals = []
            for p in crop.proposals:
                name, strength = next(said)
                proposals.append(replace(p, name_embedding=name.name_embedding, border=strength))
            described.append(replace(crop, proposals=tuple(proposals)))
        return tuple(described)


#: What answers prompts: a network of ours, or any engine with a describer.
Model = SemanticSAM | DescribedEngine


def described(model: Model) -> DescribedEngine:
    """A network alone proposes and describes."""
    return model if isinstance(model, DescribedEngine) else DescribedEngine(SemanticSamEngine(model), model)


def _with_borders(look: ImageEmbedding, crop: CropPrediction) -> CropPrediction:
    if look.hierarchy is None:
        return crop
    strengths = look.hierarchy.strength_along([p.cells for p in crop.proposals]).tolist()
    proposals = (replace(p, border=strength) for p, strength in zip(crop.proposals, strengths, strict=True))
    return replace(crop, proposals=tuple(proposals))
