"""Synthetic scenes as samples: objects of parts of subparts, with names. For tests, and to mix into training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from semsam_model.data.folder import write_samples
from semsam_model.data.lazy_samples import LazySamples
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Region, Sample, Supervision
from semsam_model.data.scenes import draw_scene
from semsam_model.data.segmentations import CocoMask
from semsam_model.masks.geometry import Size


def synthetic_samples(
    count: int,
    *,
    seed: int = 0,
    size: Size = (256, 256),
    source: str = "synthetic",
    supervision: Supervision = FULL_SUPERVISION,
) -> LazySamples:
    """`count` scenes as samples, drawn when asked for. Wholes are objects, what they consist of is parts."""
    return LazySamples(count, partial(_sample, seed, size, source, supervision))


def write_scenes(
    directory: Path, count: int, *, seed: int = 0, size: Size = (256, 256), source: str = "synthetic"
) -> Path:
    """Write `count` scenes as DIR/SOURCE.json and photos; returns the JSON file. `read_samples(DIR)` reads them."""
    return write_samples(synthetic_samples(count, seed=seed, size=size, source=source), directory, source)


@dataclass(frozen=True)
class ScenePhoto:
    """Pixels of a synthetic scene."""

    seed: int
    index: int
    size: Size

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def name(self) -> str:
        return f"scene_{self.seed}_{self.index}.png"

    def pixels(self) -> np.ndarray:
        return draw_scene(self.seed, self.index, self.size).image


def _sample(seed: int, size: Size, source: str, supervision: Supervision, index: int) -> Sample:
    return Sample(ScenePhoto(seed, index, size), source, partial(_annotation, seed, index, size), supervision)


def _annotation(seed: int, index: int, size: Size) -> Annotation:
    scene = draw_scene(seed, index, size)
    regions = tuple(
        Region(CocoMask.of(mask), "object" if parent is None else "part", name, parent)
        for mask, name, parent in zip(scene.masks, scene.names, scene.parents, strict=True)
    )
    return Annotation(size[1], size[0], regions)
