"""What each task of `photos` counts over the photos of one source: `update` for each photo, then `compute`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from semsam_model.evaluation.labels import LabelList
from semsam_model.evaluation.metrics.average_precision import (
    MAX_PREDICTIONS_FEDERATED,
    AnnotatedMask,
    EvaluatedLabels,
    MaskAp,
)
from semsam_model.evaluation.metrics.maps import UNLABELLED, MeanIou, PanopticQuality
from semsam_model.evaluation.metrics.masks import InstanceSets, TextIou
from semsam_model.evaluation.segmented_photo import SegmentedPhoto, large_first
from semsam_model.inference.naming import part_and_whole
from semsam_model.inference.object_queries import (
    Embed,
    ObjectQueries,
    candidates_of_label,
    classified_to_candidates,
    queries_to_candidates,
    word_scores,
)
from semsam_model.inference.postprocess import PostprocessOptions, to_panoptic, to_semantic
from semsam_model.types import Candidate, Kind

#: Least score of a predicted mask, where masks are counted as a set or belong to a word.
PRESENT = PostprocessOptions().present
#: For average precision, which ranks predictions, and maps, which are annotated nearly everywhere: no threshold.
KEEP_ALL = PostprocessOptions(least=0.001, present=0.02)
Figures = dict[str, Any]


class TaskMetric(Protocol):
    """What a task counts over the photos of one source."""

    def update(self, photo: SegmentedPhoto) -> None:
        """Count one photo."""

    def compute(self) -> Figures:
        """Figures in percent, and how much was counted; {} where nothing was there to count."""


class InstanceMetric:
    """instance and parts: mask AP among the labels of one kind."""

    def __init__(self, labels: LabelList, kind: Kind) -> None:
        self._kind = kind
        # stuff is no instance
        self._rows = {label: row for row, label in enumerate(i for i in labels.of_kind(kind) if i not in labels.stuff)}
        self._words = [labels.keys[i].words for i in self._rows]
        self._ap = MaskAp(self._words)
        self._annotated = 0

    def update(self, photo: SegmentedPhoto) -> None:
        if not self._rows:
            return
        annotated = [
            AnnotatedMask(mask, self._rows[label], region.crowd, region.area)
            for mask, label, region in photo.labelled((self._kind,))
            if label in self._rows
        ]
        self._annotated += sum(not mask.crowd for mask in annotated)
        evaluated = self._evaluated_labels(photo, {mask.label for mask in annotated})
        options = KEEP_ALL if evaluated is None else replace(KEEP_ALL, most=MAX_PREDICTIONS_FEDERATED)
        classified = photo.labels.classify(photo.queries, list(self._rows))
        row_of = {word: row for row, word in enumerate(self._words)}
        predicted = [
            (candidate.mask, row_of[word], score)
            for candidate in classified_to_candidates(
                photo.queries, photo.frame, classified, self._words, self._kind, options
            )
            for word, score in candidate.names
        ]
        self._ap.add(photo.size, annotated, predicted, evaluated)

    def _evaluated_labels(self, photo: SegmentedPhoto, annotated: set[int]) -> EvaluatedLabels | None:
        federated = photo.sample.annotation.federated
        if federated is None:
            return None
        negative, not_exhaustive = (
            {self._rows[i] for label in labels if (i := photo.labels.index_of(label)) in self._rows}
            for labels in (federated.negative, federated.not_exhaustive)
        )
        return EvaluatedLabels(frozenset(negative | annotated), frozenset(not_exhaustive))

    def compute(self) -> Figures:
        return self._ap.percent() | {"labels": len(self._rows)} if self._annotated else {}


class SemanticMetric:
    """semantic: mean IoU over objects and named regions."""

    def __init__(self, labels: LabelList) -> None:
        self._miou = MeanIou(len(labels.keys))
        self._wholes = labels.of_kind("object")
        self._photos = 0

    def update(self, photo: SegmentedPhoto) -> None:
        wanted = photo.label_map(("object", "region"))
        if (wanted == UNLABELLED).all():
            return
        predicted = _map_of(photo, self._wholes)
        self._miou.add(predicted, wanted)
        self._photos += 1

    def compute(self) -> Figures:
        annotated = int((self._miou.confusion.sum(1) > 0).sum())
        return self._miou.percent() | {"labels": annotated, "photos": self._photos} if self._photos else {}


def _map_of(photo: SegmentedPhoto, chosen: Sequence[int]) -> np.ndarray:
    """int (H, W): the predicted label of each pixel, among the chosen ones."""
    rows = to_semantic(photo.labels.classify(photo.queries, chosen), KEEP_ALL, enlarge=photo.frame.enlarge)
    return np.append(np.array(chosen, int), UNLABELLED)[rows]


class PanopticMetric:
    """panoptic: quality over objects as things and regions as stuff."""

    def __init__(self, labels: LabelList) -> None:
        self._quality, self._stuff = PanopticQuality(), labels.stuff
        self._wholes = labels.of_kind("object")
        self._photos = 0

    def update(self, photo: SegmentedPhoto) -> None:
        wanted, of_wanted, crowds = self._painted(photo)
        if not of_wanted:
            return
        chosen = self._wholes
        stuff = [row for row, label in enumerate(chosen) if label in self._stuff]
        predicted, segments = to_panoptic(
            photo.labels.classify(photo.queries, chosen), stuff, KEEP_ALL, enlarge=photo.frame.enlarge
        )
        self._quality.add(predicted, {s.id: chosen[s.label] for s in segments}, wanted, of_wanted, crowds)
        self._photos += 1

    def _painted(self, photo: SegmentedPhoto) -> tuple[np.ndarray, dict[int, int], set[int]]:
        """Segment ids from 1, small masks over large ones; label of each; crowds. The masks of one stuff are one."""
        ids, label_of = np.zeros(photo.size, np.int32), dict[int, int]()
        id_of_stuff: dict[int, int] = {}
        crowds: set[int] = set()
        for mask, label, region in sorted(photo.labelled(("object", "region")), key=large_first):
            number = id_of_stuff.get(label, len(label_of) + 1)
            if label in self._stuff:
                id_of_stuff[label] = number
            ids[mask], label_of[number] = number, label
            if region.crowd:
                crowds.add(number)
        visible = set(np.unique(ids).tolist())
        return ids, {number: label for number, label in label_of.items() if number in visible}, crowds & visible

    def compute(self) -> Figures:
        if not self._photos:
            return {}
        things = [i for i in self._wholes if i not in self._stuff]
        apart = {"pq_things": things, "pq_stuff": sorted(self._stuff)}
        return self._quality.percent() | {
            **{name: self._quality.percent(labels)["pq"] for name, labels in apart.items() if labels},
            "photos": self._photos,
        }


class OpenVocabularyMetric:
    """open-vocabulary: the masks of each word that is on the photo; the map of parts."""

    def __init__(self, labels: LabelList, embed: Embed) -> None:
        self._embed, self._labels = embed, labels
        self._words: dict[int, TextIou] = {}
        self._parts = labels.of_kind("part")
        self._map = MeanIou(len(labels.keys))

    def update(self, photo: SegmentedPhoto) -> None:
        wanted: dict[int, np.ndarray] = {}
        for mask, label, _ in photo.labelled(("object", "part", "region")):
            wanted[label] = wanted.get(label, np.zeros(photo.size, bool)) | mask
        for label, mask in wanted.items():
            _, name, whole = self._labels.keys[label]
            name, whole = (name, whole) if whole else part_and_whole(name) or (name, None)
            scores = word_scores(photo.queries, name, whole, self._embed)
            predicted = _union(candidates_of_label(photo.queries, photo.frame, name, scores), photo.size)
            self._words.setdefault(label, TextIou()).add(predicted, mask)
        painted = photo.label_map(("part",))
        if self._parts and (painted != UNLABELLED).any():
            self._map.add(_map_of(photo, self._parts), painted)

    def compute(self) -> Figures:
        if not self._words:
            return {}
        figures: Figures = dict(self._of(self._words))
        seen = self._labels.seen
        if seen is not None:
            for name, some in (("seen", seen), ("unseen", set(self._words) - seen)):
                apart = self._of([label for label in self._words if label in some])
                figures |= {f"{key}_{name}": value for key, value in apart.items()}
        if self._map.confusion.sum():
            figures |= {f"part_{key}": value for key, value in self._map.percent(seen).items()}
        return figures

    def _of(self, labels: Collection[int]) -> dict[str, float | int | None]:
        every = TextIou()
        for label in labels:
            every.intersections += self._words[label].intersections
            every.unions += self._words[label].unions
        return every.percent()


def _union(candidates: Sequence[Candidate], size: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size, bool)
    for candidate in candidates:
        if candidate.score >= PRESENT:
            x0, y0, x1, y1 = candidate.bbox
            found[y0:y1, x0:x1] |= candidate.crop
    return found


NO_QUERIES = ObjectQueries(
    np.zeros((0, 1, 1), np.float32),
    np.zeros((0, 3), np.float32),
    np.zeros((0, 2, 1), np.float32),
    np.zeros(2, np.float32),
    np.zeros(0, int),
    np.zeros(0, int),
    np.zeros(0, np.float32),
)


class EverythingMetric:
    """everything: recall of all annotated masks, objects as sets."""

    def __init__(self) -> None:
        self._recall, self._sets = MaskAp(("anything",)), InstanceSets()

    def update(self, photo: SegmentedPhoto) -> None:
        found = queries_to_candidates(photo.queries, photo.frame) if photo.grid is None else photo.grid
        regions = [pair for pair in zip(photo.sample.regions, photo.masks, strict=True) if pair[1].any()]
        wanted = [AnnotatedMask(mask, 0, region.crowd, region.area) for region, mask in regions]
        self._recall.add(photo.size, wanted, [(c.mask, 0, c.score) for c in found])
        objects = [mask for region, mask in regions if region.granularity == "object" and not region.crowd]
        if objects:
            if photo.grid is None:
                likely = [
                    c for c in queries_to_candidates(photo.queries, photo.frame, kind="object") if c.score >= PRESENT
                ]
            else:  # a grid does not know objects from parts: what lies in nothing larger counts as an object
                likely = [c for c in photo.grid if c.parent is None]
            self._sets.add([c.mask for c in likely], objects)

    def compute(self) -> Figures:
        recall = self._recall.percent()
        chosen = ("ar1", "ar10", "ar100", "ap", "ap50", "n")
        sets = self._sets.figures()
        return {name: recall[name] for name in chosen} | (sets if sets["photos"] else {}) if recall["n"] else {}


TASKS: dict[str, Callable[[LabelList, Embed], TaskMetric]] = {
    "instance": lambda labels, _: InstanceMetric(labels, "object"),
    "parts": lambda labels, _: InstanceMetric(labels, "part"),
    "semantic": lambda labels, _: SemanticMetric(labels),
    "panoptic": lambda labels, _: PanopticMetric(labels),
    "open-vocabulary": OpenVocabularyMetric,
    "everything": lambda *_: EverythingMetric(),
}
NEEDS = {
    "instance": "it needs objects with names",
    "parts": "it needs parts with names",
    "semantic": "it needs objects or regions with names",
    "panoptic": "it needs objects or regions with names",
    "open-vocabulary": "it needs objects, parts or regions with names",
    "everything": "it needs annotated masks",
}
