"""A text instead of a click: what it may mean, and what else a mask could be, so that not every mask fits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.inference.concepts import asked_by_text
from backend.inference.label_embeddings import LabelEmbedder, specific_labels
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor, Result
from backend.label_studio.label_config import Label, LabelConfig
from semsam_model.inference.naming import part_and_whole
from semsam_model.text_encoder import normalise_label
from semsam_model.types import Candidate, Concept, Kind, LabelSet

if TYPE_CHECKING:  # torch
    from semsam_model.inference.concepts import ConceptSearch
    from semsam_model.inference.engine import EngineEmbedding, Model
    from semsam_model.inference.zoom import CropEncoder

#: Asks the concept model of the model that answers, about one photo.
Search = Callable[[Sequence[Concept]], "ConceptSearch"]
#: What a mask may be besides the labels of the project.
GENERAL_LABELS = tuple(
    Label(word, word, "object")
    for word in ("person", "animal", "vehicle", "building", "furniture", "plant", "food", "sky", "ground", "water")
)
#: Words with a larger cosine mean nearly the text itself ("vehicle" beside "car") and are no other answer.
NEARLY_THE_SAME = 0.45


def find_by_text(
    predictor: Predictor,
    photo: PhotoSource,
    text: str,
    config: LabelConfig,
    threshold: float,
    using: Loaded,
    search: Search | None = None,
) -> Result[list[Candidate]] | None:
    """Masks of what a text of at least a word names; see `Predictor.run` and `semsam_model.inference.text_prompt`.

    The first of its readings that finds any counts. search: asks the concept model, which the model `using` then has.
    None where the text encoder is not ready or not installed. Raises ConfigError when it is not the one of the model,
    and what `run` raises.
    """
    result = None
    for label, whole in readings(text, config):
        if search is not None:
            result = _find_concept(predictor, photo, search([asked_by_text(label, whole, config)]), using)
            if result.value:
                break
            continue
        labels = competing_labels(label, config, using.label_embedder)
        wholes = None if whole is None else competing_labels(whole, config, using.label_embedder)
        if labels is None or (wholes is None) != (whole is None):
            return None
        result = _find(predictor, photo, labels, wholes, threshold, using)
        if result.value:
            break
    return result


def _find(
    predictor: Predictor,
    photo: PhotoSource,
    labels: LabelSet,
    wholes: LabelSet | None,
    threshold: float,
    using: Loaded,
) -> Result[list[Candidate]]:
    from semsam_model.inference.text_prompt import candidates_by_text

    return predictor.run(
        photo, lambda model, embedding, _: candidates_by_text(model, embedding, labels, threshold, wholes), using=using
    )


def _find_concept(
    predictor: Predictor, photo: PhotoSource, search: ConceptSearch, using: Loaded
) -> Result[list[Candidate]]:
    from semsam_model.inference.concepts import concept_regions
    from semsam_model.inference.preannotate import RegionOptions
    from semsam_model.inference.text_prompt import OPTIONS

    options = RegionOptions(most=OPTIONS.most)

    def work(model: Model, embedding: EngineEmbedding, _: CropEncoder) -> list[Candidate]:
        return [region.candidate for region in concept_regions(model, embedding, search, options=options)]

    return predictor.run(photo, work, using=using)


def readings(text: str, config: LabelConfig) -> list[tuple[Label, Label | None]]:
    """What a text may ask for, to be tried in turn: "wheel of car" is a part with its whole, or else what it says."""
    label = label_of_text(text, config)
    both = part_and_whole(text)
    if label in config.labels or both is None or not all(map(normalise_label, both)):
        return [(label, None)]
    part, whole = both
    return [(label_of_text(part, config, "part"), label_of_text(whole, config, "object")), (label, None)]


def label_of_text(text: str, config: LabelConfig, kind: Kind | None = None) -> Label:
    """The project's label that the text spells, by name or alias, or else a label of its own of this kind."""
    words = normalise_label(text)
    same = (label for label in config.labels if words in (normalise_label(label.text), normalise_label(label.value)))
    return next(same, Label(text, text, kind))


def competing_labels(wanted: Label, config: LabelConfig, embedder: LabelEmbedder) -> LabelSet | None:
    """The wanted label first, then what a mask may be instead: the project's other labels and a few general ones.

    The label has at least a word. None where nothing is embedded (yet).
    """
    others = [label for label in specific_labels(config.labels) if label != wanted]
    labels = embedder.embed([wanted, *others, *GENERAL_LABELS])
    if labels is None:
        return None
    near = labels.vectors[1 + len(others) :] @ labels.vectors[0]
    kept = [*range(1 + len(others)), *(1 + len(others) + np.flatnonzero(near < NEARLY_THE_SAME)).tolist()]
    return LabelSet(
        tuple(labels.values[i] for i in kept), tuple(labels.kinds[i] for i in kept), labels.vectors[np.array(kept)]
    )
