"""Names and preferences from few examples, in milliseconds, by kernel ridge regression. NumPy, no torch.

The kernel is the dot product of region vectors (`region_features`). Both regressions correct what is known without
examples, and only near the examples: without examples they change nothing.

    names        log p(label) = a * log text(label) + b * f(label). f regresses "is this label" on the examples, all
                 labels with the same total weight; for a label without examples f is the mean of the other labels'.
                 a and b weigh the text and the examples. They are chosen to name each example best from the examples of
                 other photos, and stay near their first values while there are few examples
    preference   the expected IoU of a proposal, plus a regression of the errors that this expectation had for the
                 proposals of earlier prompts

The result depends on the set of examples, not on their order. Solving for n examples takes n^3 / 3 operations: callers
limit n (`newest_of_each`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import softmax

from semsam_model.network.ranker import OF_PROPOSAL

RIDGE = 1.0  #: variance of the noise in a label, where the squared length of a region vector is about 6
FIRST_EXAMPLE_WEIGHT = 16.0  #: b without examples of other photos
PRIOR = 4.0  #: weight of the first values of a and b, in examples
TEXT_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
EXAMPLE_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LEAST = 1e-4  #: smaller text scores count as this

PREFERENCE_RIDGE = 3.0
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
    text_weight: float  #: a
    example_weight: float  #: b

    def scores(self, vectors: np.ndarray, text: np.ndarray) -> np.ndarray:
        """(m, F) and text scores (m, C) that add up to 1 -> (m, C), adding up to 1; `text` itself without examples."""
        if not len(self.vectors):
            return text
        fitted = _completed(vectors @ self.vectors.T @ self.coefficients, np.asarray(self.coefficients.any(0)))
        return softmax(_mixed(text, fitted, self.text_weight, self.example_weight), axis=1)


def fit_names(vectors: np.ndarray, labels: np.ndarray, photos: Sequence[Hashable], text: np.ndarray) -> LearnedNames:
    """n examples: (n, F), index of the label 0..C-1 (n,), the photo of each, text scores (n, C)."""
    count, classes = text.shape
    if not count:
        return LearnedNames(vectors, np.zeros((0, classes)), 1.0, 0.0)
    vectors, labels = vectors.astype(np.float64), np.asarray(labels, int)
    weights = 1 / np.bincount(labels, minlength=classes)[labels]
    weights /= weights.mean()
    targets = np.eye(classes)[labels]
    inverse = np.linalg.inv(vectors @ vectors.T + RIDGE * np.diag(1 / weights))
    coefficients = inverse @ targets
    left_out, known = _left_out(inverse, coefficients, targets, photos)
    left_out = _completed(left_out, np.asarray(targets.any(0)))
    a, b = _calibrated(text[known], left_out[known], labels[known], weights[known])
    return LearnedNames(vectors, coefficients, a, b)


def _left_out(
    inverse: np.ndarray, coefficients: np.ndarray, targets: np.ndarray, photos: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """f of each example without the examples of its photo (n, C), and whether another photo has its label, bool (n,).

    Leaving out the rows of a photo changes their prediction by inv(inverse[rows, rows]) @ coefficients[rows].
    """
    fitted, known = np.zeros_like(targets), np.zeros(len(targets), bool)
    rows_of: dict[Hashable, list[int]] = {}
    for row, photo in enumerate(photos):
        rows_of.setdefault(photo, []).append(row)
    total = targets.sum(0)
    for rows in rows_of.values():
        fitted[rows] = targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], coefficients[rows])
        elsewhere = total - targets[rows].sum(0)
        known[rows] = (targets[rows] @ elsewhere) > 0
    return fitted, known


def _completed(fitted: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(m, C), where labels without examples get the mean of those with examples (seen, bool (C,))."""
    completed: np.ndarray = np.where(seen, fitted, fitted[:, seen].mean(1, keepdims=True))
    return completed


def _calibrated(text: np.ndarray, fitted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The a and b, near (1, FIRST_EXAMPLE_WEIGHT), that give the left-out examples' labels the largest probability."""
    best = (np.inf, 1.0, FIRST_EXAMPLE_WEIGHT)
    for a in TEXT_WEIGHTS:
        for b in EXAMPLE_WEIGHTS:
            p = softmax(_mixed(text, fitted, a, b), axis=1)[np.arange(len(labels)), labels]
            distance = (1 - a) ** 2 + np.log2(b / FIRST_EXAMPLE_WEIGHT) ** 2 / 8
            best = min(best, (float(-(weights * np.log(np.maximum(p, 1e-12))).sum()) + PRIOR * float(distance), a, b))
    return best[1], best[2]


def _mixed(text: np.ndarray, fitted: np.ndarray, a: float, b: float) -> np.ndarray:
    mixed: np.ndarray = a * np.log(np.maximum(text, LEAST)) + b * fitted
    return mixed


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
