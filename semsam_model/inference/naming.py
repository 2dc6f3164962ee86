"""Names of masks: class embeddings compared with the labels of a project. NumPy, no torch.

The object head scores labels of kind "object", the part head those of kind "part"; a label without a kind gets the
better score of the two. Each head was trained alone, and neither knows when a mask is of the other kind; the level of
the mask says which one to trust more. Scores are a softmax over all labels, so they say which of *these* labels fits
best, not whether any does: a mask of something that is not in the list gets a name too, usually with a low score. Below
a threshold it gets no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.errors import ConfigError
from semsam_model.types import KINDS, Candidate, Kind, LabelSet

#: Odds that a mask is a part: even at level 4, and doubled (nearly: e to the 0.6) with each level towards the smallest.
#: A coarse fit to annotated photos, where the best level of an object is often 3 or 4, and of a part 5 or 6.
EVEN_LEVEL, LOG_ODDS_A_LEVEL = 4, 0.6
OF = " of "


def label_scores(name_embedding: np.ndarray, level: int, labels: LabelSet) -> list[tuple[str, float]]:
    """A mask of level 1..6 -> (label, 0..1) for every label, best first; the scores add up to 1.

    name_embedding (2, E): see Candidate. Raises ConfigError when the label vectors are not of the model's dimension.
    """
    return _best_first(labels, label_probabilities(name_embedding[None], [level], labels)[0])


def _best_first(labels: LabelSet, scores: np.ndarray) -> list[tuple[str, float]]:
    return [(labels.values[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def label_probabilities(name_embeddings: np.ndarray, levels: Sequence[int], labels: LabelSet) -> np.ndarray:
    """(n, 2, E) of n masks and their levels -> (n, labels); each row adds up to 1. Raises as `label_scores`."""
    from scipy.special import softmax  # a quarter of a second to import; the service starts without it

    return np.asarray(softmax(_logits(name_embeddings, levels, labels), axis=1))


def part_and_whole(text: str) -> tuple[str, str] | None:
    """ "wheel of car" -> "wheel", "car"; None for words that name no part of something."""
    part, _, whole = text.rpartition(OF)
    return (part.strip(), whole.strip()) if part.strip() and whole.strip() else None


def check_dimension(name_embeddings: np.ndarray, labels: LabelSet) -> None:
    """Raises ConfigError when the label vectors are not of the dimension of the embeddings (n, 2, E)."""
    if labels.vectors.shape[1] != name_embeddings.shape[2]:
        raise ConfigError(
            f"names: the model compares texts in {name_embeddings.shape[2]} dimensions, the text encoder gives "
            f"{labels.vectors.shape[1]}; use the encoder that the weights were trained with"
        )


def _logits(name_embeddings: np.ndarray, levels: Sequence[int], labels: LabelSet) -> np.ndarray:
    check_dimension(name_embeddings, labels)
    odds = LOG_ODDS_A_LEVEL * (np.array(levels) - EVEN_LEVEL)
    log_share = -np.logaddexp(0, np.stack((odds, -odds), 1))  # (n, 2), of each kind
    by_head = name_embeddings @ labels.vectors.T + log_share[..., None]  # (n, 2, labels)
    of_kind = [by_head.max(1) if k is None else by_head[:, KINDS.index(k)] for k in labels.kinds]
    return np.stack([logits[:, i] for i, logits in enumerate(of_kind)], 1)


def evidence(
    name_embeddings: np.ndarray,
    levels: Sequence[int],
    labels: LabelSet,
    kind: Kind | None = None,
    wanted: int | None = None,
) -> np.ndarray:
    """`ranker.EVIDENCE` of the n masks of one prompt, float32 (n, len(EVIDENCE)).

    name_embeddings (n, 2, E), levels 1..6. kind: only labels of this kind, or without one, can be the best. wanted:
    index of the label that is known to be meant. Raises as `label_scores`.
    """
    logits, probabilities = (
        _logits(name_embeddings, levels, labels),
        label_probabilities(name_embeddings, levels, labels),
    )
    fitting = [i for i, own in enumerate(labels.kinds) if kind in (None, own) or own is None]
    parts = [i for i, own in enumerate(labels.kinds) if own == "part"]
    both = {"object", "part"} <= set(labels.kinds)
    best = (logits[:, fitting] if fitting else logits).max(1)
    none = np.zeros(len(probabilities))
    columns = (
        probabilities[:, fitting].max(1, initial=0),
        np.ones(len(probabilities)),
        probabilities[:, parts].sum(1) if both else np.full(len(probabilities), 0.5),
        best / 10,
        (best.max() - best) / 10,
        *(
            (none, none, none, none)
            if wanted is None
            else (
                np.ones(len(probabilities)),
                probabilities[:, wanted],
                logits[:, wanted] / 10,
                (logits[:, wanted].max() - logits[:, wanted]) / 10,
            )
        ),
    )
    return np.stack(columns, 1).astype(np.float32)


def name_candidates(candidates: Sequence[Candidate], labels: LabelSet, threshold: float) -> list[Candidate]:
    """The candidates with `names`, and with `label` where the best name reaches the threshold.

    Candidates of a model without names come back as they are. Raises ConfigError as `label_scores`.
    """
    named = []
    for candidate in candidates:
        if candidate.name_embedding is not None:
            scores = label_probabilities(candidate.name_embedding[None], [candidate.level], labels)[0]
            candidate = with_names(candidate, labels, scores, threshold)
        named.append(candidate)
    return named


def with_names(candidate: Candidate, labels: LabelSet, scores: np.ndarray, threshold: float) -> Candidate:
    """The candidate with its `names`, from scores (labels,), and with `label` where the best reaches the threshold."""
    names = tuple(_best_first(labels, scores))
    return replace(candidate, names=names, label=names[0][0] if names[0][1] >= threshold else None)
