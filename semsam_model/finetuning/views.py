"""Views of photos that fine-tuning learns from: scaled, cropped, flipped copies, encoded once and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from semsam_model.data.samples import Region, Sample
from semsam_model.data.vocabulary import Vocabulary
from semsam_model.errors import DataError
from semsam_model.finetuning.config import FineTuneConfig
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.augmentation import augment

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """One augmented copy of a photo; S x S pixels."""

    image: Tensor  #: uint8 (1, 3, S, S)
    features: Features | None  #: float16, of a batch of one; None where features learn
    masks: np.ndarray  #: bool (G, S, S), G >= 1
    regions: list[Region]  #: G
    rows: np.ndarray  #: long (G,) in the vocabulary


class Views:
    """Views by (photo, number), the last ones kept."""

    def __init__(
        self, model: SemanticSAM, samples: Sequence[Sample], config: FineTuneConfig, vocabulary: Vocabulary | None
    ) -> None:
        self.model, self.samples, self.config = model, samples, config
        self.vocabulary = vocabulary or Vocabulary((), ())
        self.size = config.size or -(-model.config.resize_pixels // 32) * 32
        self._kept: LRUCache[tuple[int, int], View | None] = LRUCache(config.cache_bytes, getsizeof=_nbytes)

    def view(self, photo: int, number: int) -> View | None:
        """None where nothing of the photo can be used."""
        key = (photo, number)
        if key in self._kept:
            return self._kept[key]
        made = self._make(photo, number)
        with suppress(ValueError):  # larger than the whole cache: not kept
            self._kept[key] = made
        return made

    def _make(self, photo: int, number: int) -> View | None:
        sample, model = self.samples[photo], self.model
        try:
            pixels, masks = sample.image(), sample.masks()
        except DataError as error:
            log.warning("not learned from: %s", error)
            return None
        rng = np.random.default_rng([self.config.seed, 1, photo, number])
        image, placed, _ = augment(pixels, masks, self.size, self.config.sampling, model.config.pixel_mean, rng)
        large = np.flatnonzero(placed.sum((1, 2)) >= self.config.sampling.min_area)
        if not len(large):
            return None
        regions = [sample.regions[i] for i in large]
        rows = [self.vocabulary.row(sample.source, r.granularity, r.name) for r in regions]
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        features = None
        if self.config.learn != "everything":
            with torch.no_grad():
                features = model.features(model.normalise(tensor.to(model.pixel_mean.device)))
            # finer maps are for object queries
            features = replace(features, maps=features.maps[-2:]).each(Tensor.half)
        return View(tensor, features, placed[large], regions, np.array(rows))


def _nbytes(view: View | None) -> int:
    if view is None:
        return 0
    return view.image.nbytes + view.masks.nbytes + (0 if view.features is None else view.features.nbytes)


def stack_features(features: Sequence[Features]) -> Features:
    """Features of one image each -> float32 of a batch."""
    return Features(
        torch.cat([f.mask_features for f in features]).float(),
        torch.cat([f.memory for f in features]).float(),
        features[0].shapes,
        tuple(torch.cat(maps).float() for maps in zip(*(f.maps for f in features), strict=True)),
    )
