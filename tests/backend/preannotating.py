"""The backend set up to annotate photos that nobody has clicked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.inference.label_embeddings import LabelVectors
from backend.metrics import Metrics
from backend.service.service import SemsamService, assemble
from backend.settings import Settings
from semsam_model.text_encoder import TextEncoder
from tests.backend.studio_http import TOKEN


def settings(url: str, weights: Path, folder: Path, **own: Any) -> Settings:
    """Of `region_weights`, whatever its regions score."""
    return Settings(
        label_studio_url=url,
        label_studio_api_key=TOKEN,
        model="tiny",
        weights=weights,
        data_dir=folder,
        preannotate_threshold=0.0,
        **own,
    )


@contextlib.contextmanager
def built(chosen: Settings) -> Iterator[SemsamService]:
    """The service, its text encoder loaded: a busy machine takes longer for that than a request waits."""
    vectors = LabelVectors(TextEncoder(chosen.text_encoder))
    vectors.start().exception(300)
    with contextlib.closing(assemble(chosen, Metrics(), label_vectors=vectors)) as made:
        made.predictor.start()
        yield made
