"""Samples -> augmented training batches with prompts, each batch a function of the seed and its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Region, Sample
from semsam_model.data.vocabulary import Vocabulary
from semsam_model.errors import ConfigError, DataError
from semsam_model.training.config import SamplingConfig, Stage
from semsam_model.training.losses.matching import NO_TARGET
from semsam_model.training.losses.object_queries import ObjectQueryTargets, at_logits
from semsam_model.training.prompts import DrawnPrompts, PromptBatch, draw_prompts, mask_boxes
from semsam_model.training.sampler import PhotoSampler
from semsam_model.types import GRANULARITIES

#: Photos tried for one place of a batch before the data is called unusable.
_TRIES = 50


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """One augmented photo of S x S pixels with its prompts."""

    name: str
    pixels: np.ndarray  #: uint8 RGB (S, S, 3)
    masks: np.ndarray  #: bool (G, S, S), those that a prompt may mean
    labels: np.ndarray  #: long (G,), rows of the vocabulary, or NO_LABEL
    supervised: np.ndarray  #: bool (G, 3): whether a mask counts in the losses of masks, boxes and IoU
    partial: bool  #: not everything visible is annotated
    prompts: DrawnPrompts
    object_queries: ObjectQueryTargets | None  #: of all masks, where object queries are trained
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


def augment(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    size: int,
    config: SamplingConfig,
    fill: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, crop, flip and colours: uint8 RGB (H, W, 3) and bool (H, W) masks -> (S, S, 3) and (G, S, S).

    Photo and masks stay aligned. What the photo does not cover, on the right and bottom as at inference, is `fill`
    (RGB, 0..255). All masks are returned, also those the crop emptied.
    """
    height, width = image.shape[:2]
    scale = np.exp(rng.uniform(np.log(config.scale_min), np.log(config.scale_max))) * size / max(height, width)
    rows, columns = min(height, max(1, int(size / scale))), min(width, max(1, int(size / scale)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    new = (min(size, max(1, round(rows * scale))), min(size, max(1, round(columns * scale))))
    flip = config.flip and rng.random() < 0.5

    def place(pixels: np.ndarray, interpolation: int) -> np.ndarray:
        part = cv2.resize(pixels, (new[1], new[0]), interpolation=interpolation)
        return part[:, ::-1] if flip else part

    photo = np.empty((size, size, 3), np.uint8)
    photo[:] = np.round(np.asarray(fill))
    window = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    photo[: new[0], : new[1]] = place(_jitter(window, config.jitter, rng), shrink)
    placed = np.zeros((len(masks), size, size), bool)
    for index, mask in enumerate(masks):
        part = mask[top : top + rows, left : left + columns]
        if part.any():
            # A mask of 0 and 255 rounds to the nearer side of its outline; area averaging would cost ten times more.
            levels = np.ascontiguousarray(part).view(np.uint8) * np.uint8(255)
            placed[index, : new[0], : new[1]] = place(levels, cv2.INTER_LINEAR) > 127
    return photo, placed


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    contrast, brightness = 1 + rng.uniform(-strength, strength), 128 * rng.uniform(-strength, strength)
    gains = 1 + rng.uniform(-strength / 4, strength / 4, 3)
    levels = np.arange(256)[:, None]
    table = ((levels - 128) * contrast + 128 + brightness) * gains
    return cv2.LUT(image, np.clip(np.round(table), 0, 255).astype(np.uint8)[None])


def annotated_kinds(mixture: Mixture, photos: int = 100) -> dict[str, Tensor]:
    """Source -> bool (3,): which granularities it annotates, judged by its first photos."""
    found: dict[str, Tensor] = {}
    for source, dataset in mixture.datasets.items():
        kinds = found.setdefault(source, torch.zeros(len(GRANULARITIES), dtype=torch.bool))
        for index in range(min(photos, len(dataset.samples))):
            with suppress(DataError):  # reported when the photo is drawn for a batch
                for region in dataset.samples[index].regions:
                    kinds[GRANULARITIES.index(region.granularity)] = True
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
        self.vocabulary = vocabulary or Vocabulary((), ())
        self.rank, self.world_size = rank, world_size
        self.annotates = annotated_kinds(mixture) if object_queries else None
        self.samples, self.stages, self.config = mixture.samples, stages, config
        self.click_box, self.fill, self.seed = click_box, fill, seed
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
        """The image at a place of the stream of photos; where its photo cannot be used, another one is drawn."""
        rng = np.random.default_rng([self.seed, 2, place])
        seed = int(rng.integers(2**63))
        chosen = self._sampler(place)
        for _ in range(_TRIES):
            sample = self.samples[chosen]
            image = self._make(sample, size, rng, seed, skipped)
            if image is not None:
                return image
            chosen = self._sampler.at(rng.random())
        raise DataError(f"{_TRIES} photos in turn gave no usable mask, the last {sample.path}; {skipped[-3:]}")

    def _make(
        self, sample: Sample, size: int, rng: np.random.Generator, seed: int, skipped: list[str]
    ) -> TrainingImage | None:
        """None where nothing of the sample can be used."""
        try:
            photo = sample.image()
        except DataError as exc:
            skipped.append(str(exc))
            return None
        masks, regions = self._readable(sample, skipped)
        pixels, placed = augment(photo, masks, size, self.config, self.fill, rng)
        large = np.flatnonzero(placed.sum((1, 2)) >= self.config.min_area)
        if not len(large):
            return None
        placed, regions = placed[large], [regions[i] for i in large]
        granularities = [region.granularity for region in regions]
        labels = np.array([self.vocabulary.row(sample.source, r.granularity, r.name) for r in regions], np.int64)
        supervised = np.array([_supervised(sample, region) for region in regions], bool)
        drawn = draw_prompts(placed, granularities, self.config, self.click_box, rng)
        used = np.unique(drawn.targets[drawn.targets != NO_TARGET])
        renumber = np.full(len(placed) + 1, NO_TARGET)  # its last entry is that of NO_TARGET
        renumber[used] = np.arange(len(used))
        return TrainingImage(
            sample.name,
            pixels,
            placed[used],
            labels[used],
            supervised[used],
            sample.partial,
            DrawnPrompts(drawn.boxes, drawn.kinds, renumber[drawn.targets]),
            self._object_queries(sample, placed, granularities, labels, supervised),
            seed,
        )

    def _readable(self, sample: Sample, skipped: list[str]) -> tuple[list[np.ndarray], list[Region]]:
        masks, regions = [], []
        for index, region in enumerate(sample.regions):
            try:
                masks.append(sample.mask(index))
                regions.append(region)
            except DataError as exc:
                skipped.append(str(exc))
        return masks, regions

    def _object_queries(
        self,
        sample: Sample,
        masks: np.ndarray,
        granularities: Sequence[str],
        labels: np.ndarray,
        supervised: np.ndarray,
    ) -> ObjectQueryTargets | None:
        if self.annotates is None:
            return None
        kinds = torch.tensor([GRANULARITIES.index(kind) for kind in granularities])
        complete = self.annotates[sample.source] & (sample.supervision.iou and not sample.partial)
        at_stride, boxes = at_logits(torch.from_numpy(masks)), torch.from_numpy(mask_boxes(masks))
        return ObjectQueryTargets(
            at_stride, boxes, kinds, torch.from_numpy(labels), complete, torch.from_numpy(supervised)
        )


def _supervised(sample: Sample, region: Region) -> tuple[bool, bool, bool]:
    """Whether a region counts in the losses of masks, boxes and IoU."""
    outlined = not region.box_only
    return sample.supervision.masks and outlined, sample.supervision.boxes, sample.supervision.iou and outlined
