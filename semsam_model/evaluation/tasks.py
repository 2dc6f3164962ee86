"""What each task counts over the photos of one source; `evaluate_photos` says what the tasks are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from semsam_model.data.samples import Region, Sample
from semsam_model.evaluation.labels import Labels
from semsam_model.evaluation.metrics.average_precision import MOST_FEDERATED, Asked, MaskAp, Truth
from semsam_model.evaluation.metrics.maps import UNLABELLED, MeanIou, PanopticQuality
from semsam_model.evaluation.metrics.masks import InstanceSets, TextIou
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
from semsam_model.network.frame import Frame
from semsam_model.types import LEVEL_TOKENS, Candidate, Kind

#: Answers below this score are no part of a set or of an answer to a word.
PRESENT = PostprocessOptions().present
#: Average precision ranks answers, and maps are annotated nearly everywhere: a cut would only leave out right answers.
EVERY_ANSWER = PostprocessOptions(least=0.001, present=0.02)
Figures = dict[str, Any]


class Named(NamedTuple):
    """An annotated mask that has a label."""

    mask: np.ndarray  #: bool (H, W)
    label: int
    region: Region


@dataclass(frozen=True, eq=False)
class Looked:
    """One photo with what was found on it."""

    sample: Sample
    masks: Sequence[np.ndarray]  #: bool (H, W), of every region
    frame: Frame
    queries: ObjectQueries
    labels: Labels
    grid: Sequence[Candidate] | None = None  #: everything by a grid of clicks, where that is what is measured

    @property
    def size(self) -> tuple[int, int]:
        return self.sample.height, self.sample.width

    def named(self, granularities: Collection[str]) -> list[Named]:
        """Annotated masks of these granularities that have a label."""
        found = []
        for region, mask in zip(self.sample.regions, self.masks, strict=True):
            label = self.labels.number(region.label)
            if region.granularity in granularities and label is not None and mask.any():
                found.append(Named(mask, label, region))
        return found

    def painted(self, granularities: Collection[str]) -> np.ndarray:
        """int (H, W) of label indices, small masks over large ones, UNLABELLED elsewhere."""
        labels = np.full(self.size, UNLABELLED)
        for mask, label, _ in sorted(self.named(granularities), key=_size):
            labels[mask] = label
        return labels


def _size(named: Named) -> int:
    """Sort key, large masks first."""
    return -np.count_nonzero(named.mask)


class Measure(Protocol):
    """What a task counts over the photos of one source."""

    def add(self, photo: Looked) -> None:
        """Count one photo."""

    def figures(self) -> Figures:
        """In percent, and numbers of what was counted."""


class _Instances:
    """instance and parts: mask AP among the labels of one kind."""

    def __init__(self, labels: Labels, kind: Kind) -> None:
        self._kind = kind
        # stuff is no instance
        self._rows = {label: row for row, label in enumerate(i for i in labels.of_kind(kind) if i not in labels.stuff)}
        self._words = [labels.keys[i].words for i in self._rows]
        self._ap = MaskAp(self._words)
        self._any = 0

    def add(self, photo: Looked) -> None:
        if not self._rows:
            return
        wanted = [
            Truth(mask, self._rows[label], region.crowd, region.area)
            for mask, label, region in photo.named((self._kind,))
            if label in self._rows
        ]
        self._any += sum(not truth.crowd for truth in wanted)
        asked = self._asked(photo, {truth.label for truth in wanted})
        options = EVERY_ANSWER if asked is None else replace(EVERY_ANSWER, most=MOST_FEDERATED)
        found = photo.labels.classify(photo.queries, list(self._rows))
        row_of = {word: row for row, word in enumerate(self._words)}
        predicted = [
            (candidate.mask, row_of[word], score)
            for candidate in classified_to_candidates(
                photo.queries, photo.frame, found, self._words, self._kind, options
            )
            for word, score in candidate.names
        ]
        self._ap.add(photo.size, wanted, predicted, asked)

    def _asked(self, photo: Looked, annotated: set[int]) -> Asked | None:
        federated = photo.sample.annotation.federated
        if federated is None:
            return None
        absent, incomplete = (
            {self._rows[i] for label in labels if (i := photo.labels.number(label)) in self._rows}
            for labels in (federated.negative, federated.not_exhaustive)
        )
        return Asked(frozenset(absent | annotated), frozenset(incomplete))

    def figures(self) -> Figures:
        return self._ap.percent() | {"labels": len(self._rows)} if self._any else {}


class _Semantic:
    """semantic: mean IoU over objects and named regions."""

    def __init__(self, labels: Labels) -> None:
        self._miou = MeanIou(len(labels.keys))
        self._wholes = labels.of_kind("object")
        self._photos = 0

    def add(self, photo: Looked) -> None:
        wanted = photo.painted(("object", "region"))
        if (wanted == UNLABELLED).all():
            return
        said = _map_of(photo, self._wholes)
        self._miou.add(said, wanted)
        self._photos += 1

    def figures(self) -> Figures:
        annotated = int((self._miou.confusion.sum(1) > 0).sum())
        return self._miou.percent() | {"labels": annotated, "photos": self._photos} if self._photos else {}


def _map_of(photo: Looked, chosen: Sequence[int]) -> np.ndarray:
    """int (H, W): what is said of each pixel, among some labels."""
    rows = to_semantic(photo.labels.classify(photo.queries, chosen), EVERY_ANSWER, enlarge=photo.frame.enlarge)
    return np.append(np.array(chosen, int), UNLABELLED)[rows]


class _Panoptic:
    """panoptic: quality over objects as things and regions as stuff."""

    def __init__(self, labels: Labels) -> None:
        self._quality, self._stuff = PanopticQuality(), labels.stuff
        self._wholes = labels.of_kind("object")
        self._photos = 0

    def add(self, photo: Looked) -> None:
        wanted, of_wanted, crowds = self._painted(photo)
        if not of_wanted:
            return
        chosen = self._wholes
        stuff = [row for row, label in enumerate(chosen) if label in self._stuff]
        said, segments = to_panoptic(
            photo.labels.classify(photo.queries, chosen), stuff, EVERY_ANSWER, enlarge=photo.frame.enlarge
        )
        self._quality.add(said, {s.id: chosen[s.label] for s in segments}, wanted, of_wanted, crowds)
        self._photos += 1

    def _painted(self, photo: Looked) -> tuple[np.ndarray, dict[int, int], set[int]]:
        """Segment ids from 1, small masks over large ones; label of each; crowds. The masks of one stuff are one."""
        ids, label_of = np.zeros(photo.size, np.int32), dict[int, int]()
        id_of_stuff: dict[int, int] = {}
        crowds: set[int] = set()
        for mask, label, region in sorted(photo.named(("object", "region")), key=_size):
            number = id_of_stuff.get(label, len(label_of) + 1)
            if label in self._stuff:
                id_of_stuff[label] = number
            ids[mask], label_of[number] = number, label
            if region.crowd:
                crowds.add(number)
        visible = set(np.unique(ids).tolist())
        return ids, {number: label for number, label in label_of.items() if number in visible}, crowds & visible

    def figures(self) -> Figures:
        if not self._photos:
            return {}
        things = [i for i in self._wholes if i not in self._stuff]
        apart = {"pq_things": things, "pq_stuff": sorted(self._stuff)}
        return self._quality.percent() | {
            **{name: self._quality.percent(labels)["pq"] for name, labels in apart.items() if labels},
            "photos": self._photos,
        }


class _OpenVocabulary:
    """open-vocabulary: the masks of each word that is on the photo; the map of parts."""

    def __init__(self, labels: Labels, embed: Embed) -> None:
        self._embed, self._labels = embed, labels
        self._words: dict[int, TextIou] = {}
        self._parts = labels.of_kind("part")
        self._map = MeanIou(len(labels.keys))

    def add(self, photo: Looked) -> None:
        wanted: dict[int, np.ndarray] = {}
        for mask, label, _ in photo.named(("object", "part", "region")):
            wanted[label] = wanted.get(label, np.zeros(photo.size, bool)) | mask
        for label, mask in wanted.items():
            _, name, whole = self._labels.keys[label]
            name, whole = (name, whole) if whole else part_and_whole(name) or (name, None)
            scores = word_scores(photo.queries, name, whole, self._embed)
            answer = _union(candidates_of_label(photo.queries, photo.frame, name, scores), photo.size)
            self._words.setdefault(label, TextIou()).add(answer, mask)
        painted = photo.painted(("part",))
        if self._parts and (painted != UNLABELLED).any():
            self._map.add(_map_of(photo, self._parts), painted)

    def figures(self) -> Figures:
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
    np.zeros(0, np.float32),
    len(LEVEL_TOKENS),
)


class _Everything:
    """everything: recall of all annotated masks, objects as sets."""

    def __init__(self) -> None:
        self._recall, self._sets = MaskAp(("anything",)), InstanceSets()

    def add(self, photo: Looked) -> None:
        found = queries_to_candidates(photo.queries, photo.frame) if photo.grid is None else photo.grid
        regions = [pair for pair in zip(photo.sample.regions, photo.masks, strict=True) if pair[1].any()]
        wanted = [Truth(mask, 0, region.crowd, region.area) for region, mask in regions]
        self._recall.add(photo.size, wanted, [(c.mask, 0, c.score) for c in found])
        objects = [mask for region, mask in regions if region.granularity == "object" and not region.crowd]
        if objects:
            if photo.grid is None:
                likely = [
                    c for c in queries_to_candidates(photo.queries, photo.frame, kind="object") if c.score >= PRESENT
                ]
            else:  # a grid does not tell objects from parts: what lies in nothing larger is a whole
                likely = [c for c in photo.grid if c.parent is None]
            self._sets.add([c.mask for c in likely], objects)

    def figures(self) -> Figures:
        recall = self._recall.percent()
        chosen = ("ar1", "ar10", "ar100", "ap", "ap50", "n")
        sets = self._sets.figures()
        return {name: recall[name] for name in chosen} | (sets if sets["photos"] else {}) if recall["n"] else {}


TASKS: dict[str, Callable[[Labels, Embed], Measure]] = {
    "instance": lambda labels, _: _Instances(labels, "object"),
    "parts": lambda labels, _: _Instances(labels, "part"),
    "semantic": lambda labels, _: _Semantic(labels),
    "panoptic": lambda labels, _: _Panoptic(labels),
    "open-vocabulary": _OpenVocabulary,
    "everything": lambda *_: _Everything(),
}
NEEDS = {
    "instance": "it needs objects with names",
    "parts": "it needs parts with names",
    "semantic": "it needs objects or regions with names",
    "panoptic": "it needs objects or regions with names",
    "open-vocabulary": "it needs objects, parts or regions with names",
    "everything": "it needs annotated masks",
}
