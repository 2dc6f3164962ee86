"""Clicks and boxes on a photo -> candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.inference.predictor import Loaded, PhotoSource, Predictor, Result
from semsam_model.types import Candidate, Prompt, PromptContext

if TYPE_CHECKING:  # torch
    from semsam_model.inference.candidates import CandidateOptions
    from semsam_model.inference.predict import Reranker
    from semsam_model.inference.zoom import CropEncoder
    from semsam_model.network.model import ImageEmbedding, SemanticSAM


def predict_prompt(
    predictor: Predictor,
    photo: PhotoSource,
    prompt: Prompt,
    context: PromptContext | None = None,
    *,
    reranker: Reranker | None = None,
    options: CandidateOptions | None = None,
    using: Loaded | None = None,
) -> Result[list[Candidate]]:
    """Candidates for a prompt, best first; see `Predictor.run` and `semsam_model.inference.predict`.

    reranker: what was learned for the model `using`. Raises PromptError, and what `run` raises.
    """

    def work(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> list[Candidate]:
        from semsam_model.inference.predict import predict_candidates

        return predict_candidates(
            model, embedding, prompt, options, context=context, encode_crop=encode_crop, reranker=reranker
        )

    return predictor.run(photo, work, using=using)
