"""The label lists of training data, and their text vectors: what names are learned against.

Sources annotate different lists, so a mask is compared only with the labels of its own source and kind: a window in a
source that never annotates doors says nothing about doors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from semsam_model.data.samples import Region, Sample
from semsam_model.errors import ConfigError
from semsam_model.text_encoder import GENERIC, TextEncoder, normalise_label
from semsam_model.types import KINDS, LabelSet

NO_LABEL = -1
#: Head that learns a region's name, by granularity. Regions with a name ("sky") are wholes of their own.
HEAD_OF = {"object": 0, "region": 0, "part": 1}


@dataclass(frozen=True)
class Vocabulary:
    """One row for each label of each source and head, in a fixed order."""

    rows: tuple[tuple[str, int, str], ...]  #: source, head, normalised label
    counts: tuple[int, ...]  #: regions that have it

    @cached_property
    def index(self) -> dict[tuple[str, int, str], int]:
        """Row -> its number."""
        return {row: number for number, row in enumerate(self.rows)}

    @classmethod
    def of(cls, samples: Sequence[Sample], least: int = 2) -> Vocabulary:
        """Of the sources that feed names; others are not opened. Lists of fewer than `least` labels are left out."""
        counts = Counter(
            (sample.source, HEAD_OF[region.granularity], normalise_label(region.name))
            for sample in samples
            if sample.supervision.names
            for region in sample.regions
            if region.name is not None and sample.supervision.name_of(region.granularity)
        )
        named = {row: count for row, count in counts.items() if row[2] not in GENERIC}
        lists = Counter(row[:2] for row in named)
        rows = sorted(row for row in named if lists[row[:2]] >= least)
        return cls(tuple(rows), tuple(named[row] for row in rows))

    def row(self, source: str, granularity: str, name: str | None) -> int:
        """Row of a region's label, or NO_LABEL."""
        if name is None:
            return NO_LABEL
        return self.index.get((source, HEAD_OF[granularity], normalise_label(name)), NO_LABEL)

    def rows_of(self, source: str, heads: Collection[int] = (0, 1)) -> list[int]:
        """Rows of the labels of a source that these heads learn."""
        return [number for number, row in enumerate(self.rows) if row[0] == source and row[1] in heads]


@dataclass(frozen=True, eq=False)
class NameTable:
    """Text vectors of a vocabulary's V rows, with what the loss needs of a row."""

    vectors: Tensor  #: (V, E), unit length
    heads: Tensor  #: long (V,), 0 object, 1 part
    lists: Tensor  #: long (V,), rows of one source and head share a number
    weights: Tensor  #: (V,), rarer labels count more, by the square root

    @classmethod
    def of(cls, vocabulary: Vocabulary, vectors: Tensor) -> NameTable:
        lists = sorted({row[:2] for row in vocabulary.rows})
        numbers = torch.tensor([lists.index(row[:2]) for row in vocabulary.rows], dtype=torch.long)
        counts = torch.tensor(vocabulary.counts, dtype=torch.float32)
        weights = torch.ones_like(counts)
        for number in range(len(lists)):
            chosen = numbers == number
            rare = counts[chosen].rsqrt()
            weights[chosen] = rare * counts[chosen].sum() / (rare * counts[chosen]).sum()  # mean 1 over regions
        heads = torch.tensor([row[1] for row in vocabulary.rows], dtype=torch.long)
        return cls(vectors.float(), heads, numbers, weights.clamp(max=10))

    def to(self, device: torch.device | str) -> NameTable:
        return NameTable(self.vectors.to(device), self.heads.to(device), self.lists.to(device), self.weights.to(device))


def encode_vocabulary(vocabulary: Vocabulary, encoder: TextEncoder, text_dim: int) -> Tensor:
    """Text vectors (V, E). Raises ConfigError without labels or for another dimension, TextEncoderError."""
    if not vocabulary.rows:
        raise ConfigError("names: expected a source with at least two different labels; set loss.names to 0")
    vectors = encoder.embed([label for _, _, label in vocabulary.rows])
    if vectors.shape[1] != text_dim:
        raise ConfigError(f"names: the model's text_dim is {text_dim}, the text encoder gives {vectors.shape[1]}")
    return vectors


@dataclass(frozen=True, eq=False)
class SourceLabels:
    """A vocabulary with its text vectors: the label lists that names are chosen from."""

    vocabulary: Vocabulary
    vectors: np.ndarray  #: float32 (V, E)

    @classmethod
    def of(cls, samples: Sequence[Sample], encoder: TextEncoder, text_dim: int, least: int = 2) -> SourceLabels | None:
        """None where no source has `least` labels. Raises as `encode_vocabulary`."""
        vocabulary = Vocabulary.of(samples, least)
        return cls(vocabulary, encode_vocabulary(vocabulary, encoder, text_dim).numpy()) if vocabulary.rows else None

    def row(self, source: str, region: Region) -> int:
        """Row of a region's label, or NO_LABEL."""
        return self.vocabulary.row(source, region.granularity, region.name)

    def of_rows(self, rows: Sequence[int], *, with_kind: bool = False) -> LabelSet:
        """with_kind: values are "part wheel" rather than "wheel", so that labels of both heads differ."""
        heads = [self.vocabulary.rows[row][1] for row in rows]
        labels = tuple(self.vocabulary.rows[row][2] for row in rows)
        kinds = tuple(KINDS[head] for head in heads)
        values = tuple(f"{kind} {label}" for kind, label in zip(kinds, labels, strict=True)) if with_kind else labels
        return LabelSet(values, kinds, self.vectors[np.asarray(rows, np.int64)])

    def of_source(self, source: str, heads: Collection[int], *, with_kind: bool = False) -> LabelSet:
        """The labels of a source that these heads learn."""
        return self.of_rows(self.vocabulary.rows_of(source, heads), with_kind=with_kind)
