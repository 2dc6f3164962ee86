"""An engine or a concept model that is ready, and which one it is."""

from __future__ import annotations

from typing import NamedTuple

from semsam_model.checkpoints.header import Version
from semsam_model.inference.concept_model import ConceptModel
from semsam_model.inference.engine import MaskEngine


class OpenedEngine(NamedTuple):
    """What a family's `open_engine` gives."""

    engine: MaskEngine
    version: Version  #: equal digest: equal masks
    nbytes: int  #: memory of its weights


class OpenedConcepts(NamedTuple):
    """What a family's `open_concepts` gives."""

    model: ConceptModel
    version: Version  #: equal digest: the same is found
    nbytes: int  #: memory of its weights
