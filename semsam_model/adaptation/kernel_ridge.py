"""Learning from few examples, in milliseconds: names and preferences as kernel ridge regression. NumPy, no torch.

The kernel is the dot product of region vectors (`region_features`). Both learners start from what is known without
examples and add what the examples say where they are near, so that with none they change nothing.

    names        log p(label) = a * log text(label) + b * f(label). f regresses "is this label" on the examples, every
                 label weighing alike. a (how far the text is believed) and b (how sure examples make) are those that
                 name examples best whose whole photo was left out, held near their first values while there are few. Of
                 a label without examples nothing is known: its f is the mean of the others'
    preference   what a proposal is expected to be worth: the ranker's expectation, plus the regression of what it was
                 wrong by for the proposals of earlier prompts

The result depends on the set of examples, not on the order in which they come. Solving for n examples takes n^3 / 3
operations: callers bound n (`newest_of_each`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import softmax

from semsam_model.network.ranker import OF_PROPOSAL

RIDGE = 1.0  #: noise of an example's label, against a squared length of about 6 of its vector
FIRST_SURENESS = 16.0  #: b before examples could be left out
CAUTION = 4.0  #: how many left-out examples it takes to move a and b half-way
TEXT_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SURENESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LEAST = 1e-4  #: a text score of less counts as this

PREFERENCE_RIDGE = 3.0
#: How much each thing that the ranker looks at counts beside the region's vector; 0: says nothing about a project.
_COUNTS = {"predicted_iou": 3.0, "below_best": 3.0, "log_area": 1.0, "to_parent": 0.5, "to_child": 0.5} | dict.fromkeys(
    ("obeys", "clicks", "negatives", "box_fit", "has_box", "name_score", "has_name_score"), 0.0
)
_SCALES = np.array([2 * _COUNTS.get(name, 2.0) for name in OF_PROPOSAL], np.float32) / np.sqrt(len(OF_PROPOSAL))
_LARGEST = 8 / np.sqrt(len(OF_PROPOSAL))

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LearnedNames:
    """Examples of n regions under C labels. `fit_names` makes it."""

    vectors: np.ndarray  #: (n, F)
    coefficients: np.ndarray  #: (n, C)
    text_weight: float  #: a
    sureness: float  #: b

    def scores(self, vectors: np.ndarray, text: np.ndarray) -> np.ndarray:
        """(m, F) and text scores (m, C) that add up to 1 -> (m, C), adding up to 1; `text` itself without examples."""
        if not len(self.vectors):
            return text
        said = _completed(vectors @ self.vectors.T @ self.coefficients, np.asarray(self.coefficients.any(0)))
        return softmax(_mixed(text, said, self.text_weight, self.sureness), axis=1)


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
    """What each example would be told were its photo not among the examples (n, C), and for which examples another
    photo shows the same label, bool (n,).

    Leaving out the rows of a photo changes their prediction by inv(inverse[rows, rows]) @ coefficients[rows].
    """
    said, known = np.zeros_like(targets), np.zeros(len(targets), bool)
    rows_of: dict[Hashable, list[int]] = {}
    for row, photo in enumerate(photos):
        rows_of.setdefault(photo, []).append(row)
    total = targets.sum(0)
    for rows in rows_of.values():
        said[rows] = targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], coefficients[rows])
        elsewhere = total - targets[rows].sum(0)
        known[rows] = (targets[rows] @ elsewhere) > 0
    return said, known


def _completed(said: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(m, C) with the mean of the labels that have examples, bool (C,), for those that have none."""
    completed: np.ndarray = np.where(seen, said, said[:, seen].mean(1, keepdims=True))
    return completed


def _calibrated(text: np.ndarray, said: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """a and b that give the left-out examples' own labels the largest probability, near (1, FIRST_SURENESS)."""
    best = (np.inf, 1.0, FIRST_SURENESS)
    for a in TEXT_WEIGHTS:
        for b in SURENESS:
            p = softmax(_mixed(text, said, a, b), axis=1)[np.arange(len(labels)), labels]
            held = (1 - a) ** 2 + np.log2(b / FIRST_SURENESS) ** 2 / 8
            best = min(best, (float(-(weights * np.log(np.maximum(p, 1e-12))).sum()) + CAUTION * float(held), a, b))
    return best[1], best[2]


def _mixed(text: np.ndarray, said: np.ndarray, a: float, b: float) -> np.ndarray:
    mixed: np.ndarray = a * np.log(np.maximum(text, LEAST)) + b * said
    return mixed


@dataclass(frozen=True, eq=False)
class Preference:
    """What a project's accepted regions say about proposals. `fit_preference` makes it."""

    direction: np.ndarray  #: (F + len(OF_PROPOSAL),)

    def scores(self, vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """`preference_vectors` (m, ...) and the ranker's scores (m,) -> scores (m,), 0..1."""
        scores: np.ndarray = np.clip(expected + vectors @ self.direction, 0, 1)
        return scores


def preference_vectors(regions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Region vectors (m, F) and `ranker.proposal_features` (m, len(OF_PROPOSAL)) -> one vector each."""
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
