"""Views of photos that fine-tuning learns from: scaled, cropped, flipped copies, encoded once and kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semsam_model.data.samples import Sample
from semsam_model.data.vocabulary import NO_LABEL, Vocabulary
from semsam_model.errors import DataError
from semsam_model.finetuning.config import FineTuneConfig
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.batches import augment

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """One augmented copy of a photo; S x S pixels."""

    image: Tensor  #: uint8 (1, 3, S, S)
    features: Features | None  #: float16, of a batch of one; None where features learn
    masks: np.ndarray  #: bool (G, S, S), G >= 1
    granularity: list[str]
    weights: list[float]
    rows: np.ndarray  #: long (G,) in the vocabulary


class Views:
    """Views by (photo, number), the last ones kept."""

    def __init__(
        self, model: SemanticSAM, samples: Sequence[Sample], config: FineTuneConfig, vocabulary: Vocabulary | None
    ) -> None:
        self.model, self.samples, self.config, self.vocabulary = model, samples, config, vocabulary
        self.size = config.size or -(-model.config.resize_pixels // 32) * 32
        self._kept: OrderedDict[tuple[int, int], View | None] = OrderedDict()
        self._bytes = 0

    def view(self, photo: int, number: int) -> View | None:
        """None where nothing of the photo can be used."""
        key = (photo, number)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = self._make(photo, number)
        self._bytes += _size(made)
        while self._bytes > self.config.cache_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return made

    def _make(self, photo: int, number: int) -> View | None:
        sample, model = self.samples[photo], self.model
        masks: list[np.ndarray] = []
        regions = []
        try:
            pixels = sample.image()
            for index, region in enumerate(sample.regions):
                masks.append(sample.mask(index))
                regions.append(region)
        except DataError as error:
            log.warning("not learned from: %s", error)
            return None
        rng = np.random.default_rng([self.config.seed, 1, photo, number])
        image, placed = augment(pixels, masks, self.size, self.config.sampling, model.config.pixel_mean, rng)
        large = np.flatnonzero(placed.sum((1, 2)) >= self.config.sampling.min_area)
        if not len(large):
            return None
        chosen = [regions[i] for i in large]
        rows = [NO_LABEL] * len(chosen)
        if self.vocabulary is not None:
            rows = [self.vocabulary.row(sample.source, r.granularity, r.name) for r in chosen]
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        features = None
        if self.config.learn != "everything":
            with torch.no_grad():
                features = _cast(model.features(model.normalise(tensor.to(model.pixel_mean.device))), torch.float16)
        return View(
            tensor, features, placed[large], [r.granularity for r in chosen], [r.weight for r in chosen], np.array(rows)
        )


def _size(view: View | None) -> int:
    if view is None:
        return 0
    tensors = [view.image] + ([] if view.features is None else _tensors(view.features))
    return view.masks.nbytes + sum(t.nbytes for t in tensors)


def _tensors(features: Features) -> list[Tensor]:
    return [features.mask_features, features.memory, *features.maps]


def _cast(features: Features, dtype: torch.dtype) -> Features:
    maps = tuple(m.to(dtype) for m in features.maps[-2:])  # finer ones are for object queries
    return Features(features.mask_features.to(dtype), features.memory.to(dtype), features.shapes, maps)


def stack_features(features: Sequence[Features]) -> Features:
    """Features of one image each -> float32 of a batch."""
    return Features(
        torch.cat([f.mask_features for f in features]).float(),
        torch.cat([f.memory for f in features]).float(),
        features[0].shapes,
        tuple(torch.cat(maps).float() for maps in zip(*(f.maps for f in features), strict=True)),
    )
