"""Classified object queries -> instances, parts, a semantic map or a panoptic map. NumPy, no torch.

A query's score for a label is calibrated: the expected IoU with an annotated mask of the label's kind, times the share
of the label among the list and "none of these". So a word that fits nothing gets low scores from every query.

Everything here is a pure function of `ClassifiedQueries`, on their own grid (cells of the unpadded model frame) or
enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

from semsam_model.inference.naming import check_dimension
from semsam_model.masks.geometry import greedy_nms, mask_rows
from semsam_model.network.ranker import logistic
from semsam_model.types import KINDS, Kind, LabelSet

#: Columns of `ClassifiedQueries.kinds` for labels of a kind: named regions ("sky") count as objects.
COLUMNS: dict[Kind, tuple[int, ...]] = {"object": (0, 2), "part": (1,)}
NO_LABEL = -1  #: entry of a semantic map where no label is sure enough

Enlarge = Callable[[np.ndarray], np.ndarray]  #: one query's logits (h, w) -> (H, W), the size of a map


def _unchanged(logits: np.ndarray) -> np.ndarray:
    return logits


@dataclass(frozen=True)
class PostprocessOptions:
    """Which scores are enough, and which masks are the same."""

    most: int = 100  #: instances of one photo
    same_iou: float = 0.5  #: of two masks with a larger IoU only the one with the higher score is kept
    least: float = 0.02  #: least score of an instance
    present: float = 0.15  #: least score of a segment, and of a label at a pixel of the semantic map
    visible: float = 0.6  #: a segment that keeps less than this share of its mask beside better ones is left out


@dataclass(frozen=True, eq=False)
class ClassifiedQueries:
    """The object queries of one photo, Q of them, classified by a list of L labels."""

    logits: np.ndarray  #: float32 (Q, h, w)
    kinds: np.ndarray  #: float32 (Q, 3), expected IoU with an annotated object, part, region, 0..1
    names: np.ndarray  #: float32 (Q, 2, L), probability of each label by each head; 0 for labels of the other kind
    label_kinds: tuple[Kind | None, ...]

    @property
    def scores(self) -> np.ndarray:
        """(Q, L), 0..1: how well each label fits each query's mask."""
        of_head = [
            self.kinds[:, COLUMNS[kind]].max(1)[:, None] * self.names[:, head] for head, kind in enumerate(KINDS)
        ]
        return np.maximum(*of_head)


@dataclass(frozen=True)
class QueryLabel:
    """One label for one mask."""

    query: int
    label: int  #: index in the label list
    score: float


@dataclass(frozen=True)
class PanopticSegment:
    """One piece of a panoptic map."""

    id: int  #: its number in the map, from 1
    label: int
    score: float
    queries: tuple[int, ...]  #: whose masks it is made of; several only where pieces of one stuff were joined


def query_label_probabilities(embeddings: np.ndarray, none: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Class embeddings (Q, 2, E), scaled, and logits of "none of these" (2,) -> (Q, 2, L), `ClassifiedQueries.names`.

    One softmax for each head, over "none" and the labels of its kind; a label without a kind is in both.
    Raises ConfigError when the label vectors are not of the model's dimension.
    """
    check_dimension(embeddings, labels)
    probabilities = np.zeros((len(embeddings), len(KINDS), len(labels.values)), np.float32)
    for head, kind in enumerate(KINDS):
        mine = [i for i, other in enumerate(labels.kinds) if other in (None, kind)]
        if mine and len(embeddings):
            logits = embeddings[:, head] @ labels.vectors[mine].T
            logits = np.concatenate((logits, np.full((len(logits), 1), none[head])), 1)
            probabilities[:, head, mine] = softmax(logits, axis=1)[:, :-1]
    return probabilities


def to_instances(
    queries: ClassifiedQueries, kind: Kind | None = None, options: PostprocessOptions | None = None
) -> list[QueryLabel]:
    """Distinct masks, each with every label that fits well enough; best first.

    kind: only labels of this kind or without one ("part": part instances); None: all, objects and parts in one list,
    in which an object and a part may share a mask. As COCO evaluates: a mask may have several labels.
    """
    options = options or PostprocessOptions()
    scores, masks = queries.scores, queries.logits > 0
    answers = []
    for group in KINDS if kind is None else (kind,):
        mine = np.array([other in (None, group) for other in queries.label_kinds])
        if not mine.any():
            continue
        best = queries.kinds[:, COLUMNS[group]].max(1)
        for query in distinct(masks, best, options.same_iou):
            answers += [
                QueryLabel(query, int(label), float(scores[query, label]))
                for label in np.flatnonzero(mine & (scores[query] >= options.least))
            ]
    unique = {(a.query, a.label): a for a in answers}
    return sorted(unique.values(), key=lambda a: -a.score)[: options.most]


def distinct(masks: np.ndarray, scores: np.ndarray, same_iou: float) -> list[int]:
    """Rows of bool (Q, h, w), best first, without the empty ones and those alike to a better one."""
    flat = mask_rows(masks)
    both = flat @ flat.T
    area = flat.sum(1)
    same = both > same_iou * (area[:, None] + area - both)
    best_first = np.argsort(-scores, kind="stable")
    return greedy_nms(best_first[area[best_first] > 0], len(flat), same.__getitem__)


def to_semantic(
    queries: ClassifiedQueries, options: PostprocessOptions | None = None, enlarge: Enlarge = _unchanged
) -> np.ndarray:
    """int (H, W): index of the label that fits each pixel best, NO_LABEL where none reaches `options.present`.

    A pixel's score for a label is that of the best query: label score times mask probability.
    """
    options = options or PostprocessOptions()
    label_of, best = queries.scores.argmax(1), queries.scores.max(1)
    size = enlarge(np.zeros(queries.logits.shape[1:], np.float32)).shape
    value, labels = np.full(size, options.present, np.float32), np.full(size, NO_LABEL)
    for query in np.flatnonzero(best > options.present):
        claim = best[query] * logistic(enlarge(queries.logits[query]))
        better = claim > value
        value[better], labels[better] = claim[better], label_of[query]
    return labels


def to_panoptic(
    queries: ClassifiedQueries,
    stuff: Collection[int] = (),
    options: PostprocessOptions | None = None,
    enlarge: Enlarge = _unchanged,
) -> tuple[np.ndarray, list[PanopticSegment]]:
    """int (H, W) of segment ids, 0 for none, and the segments, best first; they do not overlap.

    Each query bears its best label. A pixel belongs to the query with the highest score times mask probability among
    those whose mask covers it; a query that keeps less than `options.visible` of its mask is left out. Queries with
    the same label of `stuff` (indices into the label list) are one segment.
    """
    options = options or PostprocessOptions()
    label_of, best = queries.scores.argmax(1), queries.scores.max(1)
    chosen = [q for q in distinct(queries.logits > 0, best, options.same_iou) if best[q] >= options.present]
    size = enlarge(np.zeros(queries.logits.shape[1:], np.float32)).shape
    value, owner = np.zeros(size, np.float32), np.full(size, NO_LABEL)
    whole = {}
    for query in chosen:
        logits = enlarge(queries.logits[query])
        whole[query] = np.count_nonzero(logits > 0)
        claim = np.where(logits > 0, best[query] * logistic(logits), 0)
        better = claim > value
        value[better], owner[better] = claim[better], query
    ids = np.zeros(size, np.int32)
    segments: list[PanopticSegment] = []
    joined: dict[int, int] = {}
    for query in chosen:
        mine = owner == query
        kept, label = np.count_nonzero(mine), int(label_of[query])
        if not kept or kept < options.visible * whole[query]:
            continue
        if label in stuff and label in joined:
            before = segments[joined[label]]
            segments[joined[label]] = replace(before, queries=(*before.queries, query))
            ids[mine] = before.id
            continue
        joined[label] = len(segments)
        segments.append(PanopticSegment(len(segments) + 1, label, float(best[query]), (query,)))
        ids[mine] = len(segments)
    return ids, segments
