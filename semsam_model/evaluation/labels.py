"""The label list that a source is evaluated against.

A label is a kind, a name and, for a part whose source says it, the whole: the head of a dog and the head of a mug are
two labels, and a head scores as the head of a dog when what holds it looks like a dog.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from semsam_model.data.samples import Dataset, Sample
from semsam_model.inference.naming import OF
from semsam_model.inference.object_queries import Embed, ObjectQueries, classify_parts
from semsam_model.inference.postprocess import ClassifiedQueries
from semsam_model.text_encoder import GENERIC, normalise_label
from semsam_model.types import Kind, Label, LabelSet


class LabelKey(NamedTuple):
    """A label as it is compared: words normalised, regions with a name ("sky") among the objects."""

    kind: Kind
    name: str
    whole: str | None = None

    @property
    def words(self) -> str:
        """ "head of dog" """
        return self.name if self.whole is None else f"{self.name}{OF}{self.whole}"


def key_of(label: Label | None) -> LabelKey | None:
    """None without a name, and for names that any mask could have."""
    if label is None or normalise_label(label.name) in GENERIC:
        return None
    kind: Kind = "part" if label.granularity == "part" else "object"
    whole = normalise_label(label.whole or "") if kind == "part" else ""
    return LabelKey(kind, normalise_label(label.name), whole or None)


def labels_of(samples: Sequence[Sample]) -> dict[str, frozenset[Label]]:
    """What the regions of samples are called, by source."""
    found: dict[str, set[Label]] = {}
    for sample in samples:
        found.setdefault(sample.source, set()).update(r.label for r in sample.regions if r.label is not None)
    return {source: frozenset(labels) for source, labels in found.items()}


def listed_labels(datasets: Sequence[Dataset]) -> dict[str, frozenset[Label]]:
    """Every label of each source, whether or not its photos are there or measured."""
    found: dict[str, frozenset[Label]] = {}
    for dataset in datasets:
        for source, labels in (dataset.labels or labels_of(dataset.samples)).items():
            found[source] = found.get(source, frozenset()) | labels
    return found


@dataclass(frozen=True, eq=False)
class LabelList:
    """The labels of one source. Indices run over `keys`."""

    keys: tuple[LabelKey, ...]
    vectors: np.ndarray  #: float32 (n, E), of the names
    wholes: LabelSet  #: that parts name
    stuff: frozenset[int]  #: labels that only regions have
    seen: frozenset[int] | None  #: labels that training had; None where that is not known
    index: dict[LabelKey, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {key: i for i, key in enumerate(self.keys)})

    @classmethod
    def of(cls, labels: Collection[Label], embed: Embed, seen: Collection[Label] | None = None) -> LabelList:
        """The distinct ones with a name of their own, in alphabetical order."""
        of_key = {label: key for label in labels if (key := key_of(label)) is not None}
        keys = sorted(set(of_key.values()), key=lambda k: (k.kind, k.name, k.whole or ""))
        things = {key for label, key in of_key.items() if label.granularity == "object"}
        wholes = tuple(sorted({key.whole for key in keys if key.whole is not None}))
        thing: Kind = "object"
        none = np.zeros((0, 1), np.float32)
        known = None if seen is None else {key_of(label) for label in seen}
        return cls(
            tuple(keys),
            embed([key.name for key in keys]) if keys else none,
            LabelSet(wholes, (thing,) * len(wholes), embed(wholes) if wholes else none),
            frozenset(i for i, key in enumerate(keys) if key.kind == "object" and key not in things),
            None if known is None else frozenset(i for i, key in enumerate(keys) if key in known),
        )

    def of_kind(self, kind: Kind) -> list[int]:
        return [i for i, key in enumerate(self.keys) if key.kind == kind]

    def index_of(self, label: Label | None) -> int | None:
        """Index of a region's label."""
        key = key_of(label)
        return None if key is None else self.index.get(key)

    def classify(self, queries: ObjectQueries, chosen: Sequence[int]) -> ClassifiedQueries:
        """How well queries fit some labels, in this order. Raises ConfigError as `ObjectQueries.classify`."""
        row_of: dict[tuple[Kind, str], int] = {}
        first: list[int] = []
        pairs: list[tuple[int, int | None]] = []
        for i in chosen:
            key = self.keys[i]
            if (key.kind, key.name) not in row_of:
                row_of[key.kind, key.name] = len(first)
                first.append(i)
            whole = None if key.whole is None else self.wholes.values.index(key.whole)
            pairs.append((row_of[key.kind, key.name], whole))
        names = LabelSet(
            tuple(self.keys[i].name for i in first), tuple(self.keys[i].kind for i in first), self.vectors[first]
        )
        return classify_parts(queries, names, self.wholes, pairs)
