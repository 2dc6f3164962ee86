"""Samples -> augmented training batches with prompts, each batch a function of the seed and its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semsam_model.data.mixture import Mixture
from semsam_model.data.vocabulary import Vocabulary
from semsam_model.errors import ConfigError, DataError
from semsam_model.training.augmentation import degraded, recoloured
from semsam_model.training.config import SamplingConfig, Stage
from semsam_model.training.losses.matching import NO_TARGET
from semsam_model.training.losses.object_queries import ObjectQueryTargets, at_logits
from semsam_model.training.prompts import DrawnPrompts, PromptBatch, draw_prompts, mask_boxes
from semsam_model.training.sampler import PhotoSampler
from semsam_model.training.scene_reader import SceneReader
from semsam_model.training.scenes import Scene, mosaic, pasted
from semsam_model.types import GRANULARITIES

#: Photos tried for one place of a batch before the data is called unusable.
_TRIES = 50
#: Photos tried for objects to paste; many sources annotate none.
_PASTE_TRIES = 4


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """One augmented photo of S x S pixels with its prompts."""

    name: str
    pixels: np.ndarray  #: uint8 RGB (S, S, 3)
    masks: np.ndarray  #: bool (G, S, S), those that a prompt may mean
    labels: np.ndarray  #: long (G,), rows of the vocabulary, or NO_LABEL
    supervised: np.ndarray  #: float32 (G, 3), 0..1: how much a mask counts in the losses of masks, boxes and IoU
    partial: bool  #: not everything visible is annotated
    prompts: DrawnPrompts
    object_queries: ObjectQueryTargets | None  #: of all annotated masks, where object queries are trained
    seed: int  #: for what is drawn for the image later on, whatever else is in its batch


@dataclass(frozen=True, eq=False)
class Batch:
    """B training images of S x S pixels with N prompts each."""

    images: Tensor  #: uint8 RGB (B, 3, S, S)
    prompts: PromptBatch
    object_queries: list[ObjectQueryTargets]  #: of the first images, where object queries are trained
    names: list[str]
    seeds: list[int]  #: one for each image, see `TrainingImage`
    skipped: list[str]  #: photos or masks that could not be read, and why
    number: int  #: of the batch; processes that share a batch give their shares of it the same

    @classmethod
    def of(
        cls, images: Sequence[TrainingImage], skipped: list[str], number: int, object_query_images: int | None
    ) -> Batch:
        """object_query_images: so many images, the first ones, are for object queries too; None: all."""
        prompts = PromptBatch.of(
            [image.prompts for image in images],
            [image.masks for image in images],
            [image.labels for image in images],
            [image.partial for image in images],
            [image.supervised for image in images],
        )
        object_queries = [image.object_queries for image in images if image.object_queries is not None]
        return cls(
            torch.stack([torch.from_numpy(image.pixels).permute(2, 0, 1) for image in images]),
            prompts,
            object_queries[:object_query_images],
            [image.name for image in images],
            [image.seed for image in images],
            skipped,
            number,
        )


def annotated_kinds(mixture: Mixture, photos: int = 100) -> dict[str, np.ndarray]:
    """Source -> bool (3,): which granularities annotators drew on its first photos."""
    found: dict[str, np.ndarray] = {}
    for source, dataset in mixture.datasets.items():
        kinds = found.setdefault(source, np.zeros(len(GRANULARITIES), bool))
        for index in range(min(photos, len(dataset.samples))):
            with suppress(DataError):  # reported when the photo is drawn for a batch
                for region in dataset.samples[index].regions:
                    kinds[GRANULARITIES.index(region.granularity)] |= not region.added
    return found


class TrainingBatches(Dataset[Batch]):
    """Batch number -> batch, the same for the same seed whatever was read before, by whichever worker.

    `PhotoSampler` says which photo comes when. Raises DataError when nothing usable is found.
    """

    def __init__(
        self,
        mixture: Mixture,
        stages: Sequence[Stage],
        config: SamplingConfig,
        *,
        click_box: float,
        fill: Sequence[float],
        seed: int,
        vocabulary: Vocabulary | None = None,
        object_queries: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """object_queries: with what object queries are held to. world_size: how many processes share each batch, taking
        `Stage.batch` photos in turn; this one is number `rank`.
        """
        self.rank, self.world_size, self.object_queries = rank, world_size, object_queries
        self.samples, self.stages, self.config = mixture.samples, stages, config
        self.click_box, self.seed = click_box, seed
        annotates = annotated_kinds(mixture, 100 if object_queries or config.paste else 0)
        words = vocabulary or Vocabulary((), ())
        self._reader = SceneReader(config, fill, words, annotates, mixture.turning, mixture.added_weight)
        counts = {source: len(dataset.samples) for source, dataset in mixture.datasets.items()}
        unknown = sorted(set(config.sources) - set(counts))
        if unknown:
            raise ConfigError(f"sampling: sources: {unknown[0]!r} is not in the data; there are {', '.join(counts)}")
        shares = [config.sources.get(source, mixture.shares[source]) for source in counts]
        if not sum(shares) > 0:
            raise ConfigError("sampling: sources: every share is zero")
        self._sampler = PhotoSampler(list(counts.values()), shares, seed)

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, steps = 0, index
        for stage in self.stages:
            if steps < stage.steps:
                break
            first, steps = first + stage.steps * stage.batch, steps - stage.steps
        first = (first + steps * stage.batch) * self.world_size + self.rank * stage.batch
        skipped: list[str] = []
        images = [self._image(place, stage.size, skipped) for place in range(first, first + stage.batch)]
        return Batch.of(images, skipped, index, self.config.generic_images)

    def _image(self, place: int, size: int, skipped: list[str]) -> TrainingImage:
        """The image at a place of the stream of photos."""
        rng = np.random.default_rng([self.seed, 2, place])
        seed = int(rng.integers(2**63))
        config, first = self.config, self._sampler(place)
        if config.mosaic and rng.random() < config.mosaic:
            cell = replace(config, scale_min=max(1.0, config.scale_min), scale_max=max(1.0, config.scale_max))
            photos = [first, *(self._sampler.at(share) for share in rng.random(3))]
            scene = mosaic([self._scene(photo, size // 2, cell, rng, skipped) for photo in photos])
        else:
            scene = self._scene(first, size, config, rng, skipped)
        if config.colour and rng.random() < config.colour:
            photo = scene.pixels[: scene.covered[0], : scene.covered[1]]
            photo[:] = recoloured(photo, rng)
        if config.paste and rng.random() < config.paste:
            scene = self._with_pasted(scene, rng, skipped)
        return self._with_prompts(replace(scene, pixels=degraded(scene.pixels, config, rng)), rng, seed)

    def _scene(
        self, chosen: int, size: int, config: SamplingConfig, rng: np.random.Generator, skipped: list[str]
    ) -> Scene:
        """Of a photo; where it cannot be used, another one is drawn."""
        for _ in range(_TRIES):
            sample = self.samples[chosen]
            scene = self._reader.scene(sample, size, config, rng, skipped)
            if scene is not None:
                return scene
            chosen = self._sampler.at(rng.random())
        raise DataError(f"{_TRIES} photos in turn gave no usable mask, the last {sample.path}; {skipped[-3:]}")

    def _with_pasted(self, scene: Scene, rng: np.random.Generator, skipped: list[str]) -> Scene:
        """With objects of another photo, each around some place of what is photo; as it was where none is left."""
        size = scene.pixels.shape[0]
        for _ in range(_PASTE_TRIES):
            sample = self.samples[self._sampler.at(rng.random())]
            found = []
            for cutout in self._reader.cutouts(sample, size, rng, skipped):
                spans = zip(scene.covered, cutout.alpha.shape, strict=True)
                row, column = (min(max(int(rng.integers(span)) - side // 2, 0), size - side) for span, side in spans)
                found.append((cutout, (row, column)))
            if found:
                with_pasted = pasted(scene, found, self.config.min_area)
                return with_pasted if len(with_pasted.regions.annotated) else scene
        return scene

    def _with_prompts(self, scene: Scene, rng: np.random.Generator, seed: int) -> TrainingImage:
        regions = scene.regions
        granularities = [GRANULARITIES[kind] for kind in regions.kinds]
        drawn = draw_prompts(regions.masks, granularities, self.config, self.click_box, rng, added=regions.added)
        used = np.unique(drawn.targets[drawn.targets != NO_TARGET])
        renumber = np.full(len(regions) + 1, NO_TARGET)  # its last entry is that of NO_TARGET
        renumber[used] = np.arange(len(used))
        return TrainingImage(
            " + ".join(scene.names),
            scene.pixels,
            regions.masks[used],
            regions.labels[used],
            regions.supervised[used],
            scene.partial,
            DrawnPrompts(drawn.boxes, drawn.kinds, renumber[drawn.targets]),
            _object_query_targets(scene) if self.object_queries else None,
            seed,
        )


def _object_query_targets(scene: Scene) -> ObjectQueryTargets:
    """Without the masks that a model added, as if they were not there."""
    regions = scene.regions.only(scene.regions.annotated)
    at_stride, boxes = at_logits(torch.from_numpy(regions.masks)), torch.from_numpy(mask_boxes(regions.masks))
    rest = (regions.kinds, regions.labels, scene.complete, regions.supervised > 0)
    return ObjectQueryTargets(at_stride, boxes, *map(torch.from_numpy, rest))
