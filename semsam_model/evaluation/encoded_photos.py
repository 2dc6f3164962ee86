"""Annotated photos one after another, read and encoded: the loop that every evaluation runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_model.data.samples import MIN_AREA, Sample, clickable
from semsam_model.errors import DataError, ImageError
from semsam_model.inference.engine import EngineEmbedding, Model, description_of
from semsam_model.network.model import ImageEmbedding

#: A sample and those of its masks that were read -> the regions that are measured.
ChooseTargets = Callable[[Sample, Mapping[int, np.ndarray]], Sequence[int]]


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """One photo with its annotated masks and its embedding."""

    number: int  #: index among the samples given
    sample: Sample
    masks: Mapping[int, np.ndarray]  #: by region: bool (H, W)
    targets: Sequence[int]  #: the regions that are measured
    rgb: np.ndarray  #: uint8 (H, W, 3)
    embedding: EngineEmbedding

    @property
    def look(self) -> ImageEmbedding:
        """The describer's part of the embedding; of a network alone, all of it."""
        return description_of(self.embedding)


def clickable_targets(sample: Sample, masks: Mapping[int, np.ndarray], min_area: int = MIN_AREA) -> list[int]:
    """See `clickable`; every region's mask is there."""
    return clickable(sample.regions, list(masks.values()), min_area)


def drawn_targets(
    sample: Sample, masks: Mapping[int, np.ndarray], min_area: int = MIN_AREA, most: int | None = None
) -> list[int]:
    """At most `most` of the `clickable_targets`, drawn at random; the same ones of a photo in every run."""
    found = clickable_targets(sample, masks, min_area)
    if most is None or len(found) <= most:
        return found
    rng = np.random.default_rng(zlib.crc32(sample.name.encode()))
    return sorted(int(index) for index in rng.choice(found, most, replace=False))


def large_targets(sample: Sample, masks: Mapping[int, np.ndarray], min_area: int = MIN_AREA) -> list[int]:
    """The regions of at least `min_area` pixels, filled rectangles among them: enough where a name is measured."""
    return [index for index, mask in masks.items() if np.count_nonzero(mask) >= min_area]


def encode_photos(
    model: Model,
    samples: Iterable[Sample],
    skipped: list[str],
    *,
    regions: Callable[[int, Sample], Iterable[int]] = lambda _, sample: range(len(sample.regions)),
    targets: ChooseTargets = clickable_targets,
    without_targets: bool = False,
    on_photo: Callable[[], None] = lambda: None,
) -> Iterator[EncodedPhoto]:
    """Photos encoded when their turn comes; those that have no target only with `without_targets`.

    `on_photo` is called after each sample, whether it was encoded or not.

    regions: (number, sample) -> the regions whose masks are read. skipped: gets a line, with the reason, for each photo
    or mask that cannot be read.
    """
    for number, sample in enumerate(samples):
        try:
            masks = {index: sample.mask(index) for index in regions(number, sample)}
            chosen = targets(sample, masks)
            rgb = sample.image() if chosen or without_targets else None
            embedding = None if rgb is None else model.encode(rgb)
        except (DataError, ImageError) as error:
            skipped.append(str(error))
        else:
            if rgb is not None and embedding is not None:
                yield EncodedPhoto(number, sample, masks, chosen, rgb, embedding)
        on_photo()
