"""What a candidate is called: its class embeddings against the labels of a project. NumPy, no torch.

A label of kind "object" is asked of the object head, one of kind "part" of the part head; for a label without a kind
the head that likes it better answers. Each head was taught on its own, and neither knows when a mask is none of its
business; the level of the mask says which one to trust more. The scores are a softmax over all labels, so they say
which of *these* labels fits best, not whether any does: a mask of something that is not in the list gets a name too,
usually a weak one. Below a threshold nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from semsam_model.errors import ConfigError
from semsam_model.types import Candidate

Kind = Literal["object", "part"]
KINDS: tuple[Kind, ...] = ("object", "part")  #: rows of Candidate.name_embedding
#: Odds that a mask is a part: even at level 4, and doubled (nearly: e to the 0.6) with each level towards the smallest.
#: A coarse fit to annotated photos, where the best level of an object is often 3 or 4, and of a part 5 or 6.
EVEN_LEVEL, LOG_ODDS_A_LEVEL = 4, 0.6


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The labels of a project with their text vectors."""

    values: tuple[str, ...]  #: what a result carries
    kinds: tuple[Kind | None, ...]
    vectors: np.ndarray  #: float32 (n, E), unit length


def label_scores(name_embedding: np.ndarray, level: int, labels: LabelSet) -> list[tuple[str, float]]:
    """Of a mask of level 1..6 -> (label, 0..1) for every label, best first; the scores add up to 1.

    name_embedding (2, E): see Candidate. Raises ConfigError when the text vectors are not of the model's dimension.
    """
    if labels.vectors.shape[1] != name_embedding.shape[1]:
        raise ConfigError(
            f"names: the model compares texts in {name_embedding.shape[1]} dimensions, the text encoder gives "
            f"{labels.vectors.shape[1]}; use the encoder that the weights were trained with"
        )
    odds = LOG_ODDS_A_LEVEL * (level - EVEN_LEVEL)
    by_head = labels.vectors @ name_embedding.T - np.logaddexp(
        0, [odds, -odds]
    )  # (n, 2), plus log of each kind's share
    logits = np.array(
        [row.max() if kind is None else row[KINDS.index(kind)] for row, kind in zip(by_head, labels.kinds, strict=True)]
    )
    weights = np.exp(logits - logits.max())
    scores = weights / weights.sum()
    best_first = np.argsort(-scores, kind="stable")
    return [(labels.values[i], float(scores[i])) for i in best_first]


def name_candidates(candidates: Sequence[Candidate], labels: LabelSet, threshold: float) -> list[Candidate]:
    """The candidates with `names`, and with `label` where the best name reaches the threshold.

    Candidates of a model without names come back as they are. Raises ConfigError as `label_scores`.
    """
    named = []
    for candidate in candidates:
        if candidate.name_embedding is not None:
            names = tuple(label_scores(candidate.name_embedding, candidate.level, labels))
            candidate = replace(candidate, names=names, label=names[0][0] if names[0][1] >= threshold else None)
        named.append(candidate)
    return named
