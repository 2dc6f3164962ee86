"""Models as the predictor has them, made for tests."""

from __future__ import annotations

from backend.inference.label_embeddings import LabelEmbedder, LabelVectors
from backend.inference.loaded import Loaded
from semsam_model.checkpoints.header import Version
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder


def loaded(model: SemanticSAM, version: Version | None = None) -> Loaded:
    """With a text encoder of its own, which is not loaded before it is asked."""
    embedder = LabelEmbedder(LabelVectors(TextEncoder()), model.config)
    return Loaded(model, version or Version("tiny", "a" * 64), embedder)
