"""A text instead of a click: what it asks for, and what that is held against, so that not every mask fits it."""

from __future__ import annotations

import numpy as np

from backend.inference.label_embeddings import Namer, telling
from backend.label_studio.label_config import Label, LabelConfig
from semsam_model.inference.naming import part_and_whole
from semsam_model.text_encoder import normalise_label
from semsam_model.types import Kind, LabelSet

#: What a mask may be besides the labels of the project.
ELSE = tuple(
    Label(word, word, "object")
    for word in ("person", "animal", "vehicle", "building", "furniture", "plant", "food", "sky", "ground", "water")
)
#: Words with a larger cosine mean nearly the text itself ("vehicle" beside "car") and are no other answer.
NEARLY = 0.45


def readings(text: str, config: LabelConfig) -> list[tuple[Label, Label | None]]:
    """What a text may ask for, to be tried in turn: "wheel of car" is a part with its whole, or else what it says."""
    label = asked_label(text, config)
    both = part_and_whole(text)
    if label in config.labels or both is None or not all(map(normalise_label, both)):
        return [(label, None)]
    part, whole = both
    return [(asked_label(part, config, "part"), asked_label(whole, config, "object")), (label, None)]


def asked_label(text: str, config: LabelConfig, kind: Kind | None = None) -> Label:
    """The project's label that the text spells, by name or alias, or else a label of its own of this kind."""
    words = normalise_label(text)
    same = (label for label in config.labels if words in (normalise_label(label.text), normalise_label(label.value)))
    return next(same, Label(text, text, kind))


def against(wanted: Label, config: LabelConfig, namer: Namer) -> LabelSet | None:
    """The wanted label first, then the project's other labels and a few general ones; None where nothing is embedded.

    The text has at least a word.
    """
    others = [label for label in telling(config.labels) if label != wanted]
    labels = namer.embed([wanted, *others, *ELSE])
    if labels is None:
        return None
    near = labels.vectors[1 + len(others) :] @ labels.vectors[0]
    kept = [*range(1 + len(others)), *(1 + len(others) + np.flatnonzero(near < NEARLY)).tolist()]
    return LabelSet(
        tuple(labels.values[i] for i in kept), tuple(labels.kinds[i] for i in kept), labels.vectors[np.array(kept)]
    )
