"""What a project's labels, or a text, ask a concept model for."""

from __future__ import annotations

from backend.inference.label_embeddings import LabelEmbedder, specific_labels
from backend.label_studio.label_config import Label, LabelConfig
from semsam_model.errors import TextEncoderError
from semsam_model.text_encoder import normalise_label
from semsam_model.types import Concept, LabelSet


def asked_by_labels(config: LabelConfig) -> tuple[Concept, ...]:
    """The labels of a project that name something, in its order.

    A part is looked for in what its `of` names, a label of the project or not; without it, in every object.
    """
    labels = specific_labels(config.labels)
    objects = {label: Concept(label.value, label.words) for label in labels if label.kind != "part"}
    named = {normalise_label(name): each for label, each in objects.items() for name in (label.text, label.value)}

    def part(label: Label) -> Concept:
        if label.of is None:
            return Concept(label.value, label.words, "part", tuple(objects.values()))
        whole = named.get(normalise_label(label.of)) or Concept(label.of, (label.of,))
        return Concept(label.value, label.words, "part", (whole,))

    return tuple(objects.get(label) or part(label) for label in labels)


def asked_by_text(label: Label, whole: Label | None, config: LabelConfig) -> Concept:
    """One reading of a text; a label of the project is asked for as without a text."""
    if whole is not None:
        return Concept(label.value, label.words, "part", (Concept(whole.value, whole.words),))
    known = (concept for concept in asked_by_labels(config) if concept.value == label.value)
    return next(known, Concept(label.value, label.words))


def weighing_labels(embedder: LabelEmbedder, config: LabelConfig, wait_s: float | None) -> LabelSet | None:
    """The labels by which the describer weighs names against each other; None also where no text encoder can be used.

    Raises NotReady as `LabelEmbedder.wait_for_labels`.
    """
    try:
        return embedder.wait_for_labels(config, wait_s)
    except TextEncoderError:
        return None
