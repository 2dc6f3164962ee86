"""Names and preferences from few examples, in milliseconds, by kernel ridge regression. NumPy, no torch.

The kernel is the dot product of region vectors (`region_features`). Both regressions correct what is known without
examples, and only near the examples: without examples they change nothing.

    names        log p(label) = log text(label) + WEIGHT * (f(label) - UNLIKE). f regresses "is this label" on the
                 examples. The text of a label gives way as its examples become more. A label without examples keeps its
                 text alone, so a region that is like no example has the names that it had before
    preference   the expected IoU of a proposal, plus a regression of the errors that this expectation had for the
                 proposals of earlier prompts. Where the annotator chose a label first, less CHOSEN times what the
                 proposal's f of that label lacks to the highest of the prompt, and the expectation that knows the
                 label gives way to the one that does not, as its examples become more

The result depends on the set of examples, not on their order. Nothing is fitted to all labels together: examples of one
label do not change the order of two others on a region that is unlike those examples. Solving for n examples takes
n^3 / 3 operations: callers limit n (`newest_of_each`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import softmax

from semsam_model.network.ranker import OF_PROPOSAL

RIDGE = 1.0  #: variance of the noise in a label, where the squared length of a region vector is about 6
LABEL_WEIGHT = 4.0  #: of all examples of a label together, in examples
WEIGHT = 12.0  #: of what the examples say
UNLIKE = 0.4  #: f of a region that speaks neither for nor against a label
FADING = 3.0  #: examples after the first with which the text of a label has half its weight
LEAST = 1e-4  #: smaller text scores count as this
CHOSEN_FADING = 4.0  #: examples of a chosen label with which its text has half its say in the expected IoU
CHOSEN = 0.8  #: expected IoU that a proposal loses where f of the chosen label is 1 lower than another's

PREFERENCE_RIDGE = 12.0  #: as RIDGE, of the error of an expected IoU
#: Weight of each feature of the ranker beside the region's vector; 0: the feature tells nothing about a project.
_WEIGHTS = {
    "predicted_iou": 3.0,
    "below_best": 3.0,
    "log_area": 1.0,
    "to_parent": 0.5,
    "to_child": 0.5,
} | dict.fromkeys(("obeys", "clicks", "negatives", "box_fit", "has_box", "name_score", "has_name_score"), 0.0)
_SCALES = np.array([2 * _WEIGHTS.get(name, 2.0) for name in OF_PROPOSAL], np.float32) / np.sqrt(len(OF_PROPOSAL))
_LARGEST = 8 / np.sqrt(len(OF_PROPOSAL))

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LearnedNames:
    """What `fit_names` learned from n examples of C labels."""

    vectors: np.ndarray  #: (n, F)
    coefficients: np.ndarray  #: (n, C)
    counts: np.ndarray  #: int (C,), examples of each label

    def scores(self, vectors: np.ndarray, text: np.ndarray) -> np.ndarray:
        """(m, F) and text scores (m, C) that add up to 1 -> (m, C), adding up to 1; `text` itself without examples."""
        if not len(self.vectors):
            return text
        of_text = 1 / (1 + np.maximum(self.counts - 1, 0) / FADING)
        by_text = of_text * np.log(np.maximum(text, LEAST)) - (1 - of_text) * np.log(text.shape[1])
        by_examples = WEIGHT * (self.likeness(vectors) - UNLIKE)
        return softmax(by_text + np.where(self.counts > 0, by_examples, 0), axis=1)

    def likeness(self, vectors: np.ndarray) -> np.ndarray:
        """(m, F) -> (m, C): f of each label, about 1 near its examples and 0 elsewhere; 0 without examples."""
        fitted: np.ndarray = vectors @ self.vectors.T @ self.coefficients
        return fitted


def fit_names(vectors: np.ndarray, labels: np.ndarray, classes: int) -> LearnedNames:
    """n examples: (n, F), and index of the label 0..classes - 1 (n,)."""
    labels = np.asarray(labels, int)
    counts = np.bincount(labels, minlength=classes)
    if not len(labels):
        return LearnedNames(vectors, np.zeros((0, classes)), counts)
    vectors = vectors.astype(np.float64)
    kernel = vectors @ vectors.T
    kernel[np.diag_indices_from(kernel)] += RIDGE * counts[labels] / LABEL_WEIGHT
    return LearnedNames(vectors, np.linalg.solve(kernel, np.eye(classes)[labels]), counts)


@dataclass(frozen=True, eq=False)
class Preference:
    """What `fit_preference` learned about the proposals that a project accepts."""

    direction: np.ndarray  #: (F + len(OF_PROPOSAL),)

    def scores(self, vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """`preference_vectors` (m, ...) and the ranker's scores (m,) -> scores (m,), 0..1."""
        scores: np.ndarray = np.clip(expected + vectors @ self.direction, 0, 1)
        return scores


def preference_vectors(regions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Region vectors (m, F) and `proposal_features` (m, len(OF_PROPOSAL)) -> float32 (m, F + len(OF_PROPOSAL))."""
    return np.concatenate([regions, np.clip(rows * _SCALES, -_LARGEST, _LARGEST)], 1).astype(np.float32)


def fit_preference(vectors: np.ndarray, expected: np.ndarray, worth: np.ndarray) -> Preference:
    """n proposals of earlier prompts: vectors (n, ...), what the ranker expected (n,), IoU with what was accepted."""
    vectors = vectors.astype(np.float64)
    kernel = vectors @ vectors.T
    kernel[np.diag_indices_from(kernel)] += PREFERENCE_RIDGE
    return Preference(vectors.T @ np.linalg.solve(kernel, np.asarray(worth - expected, np.float64)))


def newest_of_each(labels: Sequence[T], most: int, total: int) -> list[int]:
    """Which of the examples, oldest first, to learn from: of each label the newest `most`, at most `total` in all."""
    kept: list[int] = []
    seen: dict[T, int] = {}
    for i in range(len(labels) - 1, -1, -1):
        seen[labels[i]] = seen.get(labels[i], 0) + 1
        if seen[labels[i]] <= most and len(kept) < total:
            kept.append(i)
    return kept[::-1]
