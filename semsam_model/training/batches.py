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
from semsam_model.data.vocabulary import NO_LABEL, Vocabulary
from semsam_model.errors import ConfigError, DataError
from semsam_model.network.frame import BOX, CLICK
from semsam_model.training.config import SamplingConfig, Stage
from semsam_model.training.losses.matching import NO_TARGET, Targets
from semsam_model.training.losses.object_queries import GenericTargets, at_logits
from semsam_model.training.sampler import Order
from semsam_model.types import GRANULARITIES

#: Photos tried for one place of a batch before the data is called unusable.
_TRIES = 50


@dataclass(frozen=True, eq=False)
class Batch:
    """B training images of S x S pixels with N prompts each. Sizes and places are shares of the image."""

    images: Tensor  #: uint8 RGB (B, 3, S, S)
    boxes: Tensor  #: float (B, N, 4), cx, cy, w, h
    kinds: Tensor  #: long (B, N), click or box
    targets: Targets
    labels: list[Tensor]  #: long (G_b,) for each image: the masks' rows in the vocabulary, or NO_LABEL
    names: list[str]
    skipped: list[str]  #: photos or masks that could not be read, and why
    seeds: list[int]  #: for what is drawn for an image later on, whatever else is in its batch
    number: int  #: of the batch; processes that share a batch give their shares of it the same
    generic: tuple[GenericTargets, ...] = ()  #: of the first images, where object queries are learned


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


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """bool (G, H, W), none empty -> float32 (G, 4), cx, cy, w, h as shares of (W, H), tight."""
    spans = []
    for axis, length in ((1, masks.shape[2]), (2, masks.shape[1])):
        line = np.asarray(masks.any(axis))
        spans.append((line.argmax(1) / length, 1 - line[:, ::-1].argmax(1) / length))
    (x0, x1), (y0, y1) = spans
    return np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DrawnPrompts:
    """N prompts of one image: `boxes` float32 (N, 4), `kinds` int (N,), `targets` int (N, K) as `Targets.of_prompt`."""

    boxes: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray


def draw_prompts(
    masks: np.ndarray,
    granularity: Sequence[str],
    config: SamplingConfig,
    click_box: float,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
) -> DrawnPrompts:
    """Draw prompts from bool (G, S, S) masks, none empty: a granularity, a mask of it, then a pixel of it or its box.

    Granularities take turns by chance, so that three hundred windows do not drown one house; inside one, every mask
    comes before any comes again; with `weights` of the masks, each is drawn with a chance in proportion to its own. A
    click may mean every mask that contains it (at most `max_targets`, the drawn one first), a box only its own.
    """
    groups = [np.flatnonzero(np.asarray(granularity) == kind) for kind in GRANULARITIES]
    queues: list[list[int]] = [[] for _ in groups]
    present = [index for index, group in enumerate(groups) if len(group)]
    tight = mask_boxes(masks)
    height, width = masks.shape[1:]
    boxes = np.zeros((config.prompts, 4), np.float32)
    kinds = np.full(config.prompts, CLICK)
    targets = np.full((config.prompts, config.max_targets), NO_TARGET)
    for row in range(config.prompts):
        group = int(rng.choice(present))
        if weights is not None:
            chances = np.asarray(weights, float)[groups[group]]
            wanted = int(rng.choice(groups[group], p=chances / chances.sum()))
        else:
            if not queues[group]:
                queues[group] = rng.permutation(groups[group]).tolist()
            wanted = queues[group].pop()
        targets[row, 0] = wanted
        if rng.random() < config.box_share:
            kinds[row] = BOX
            half = np.array([0.5, 0.5, 1, 1]) * tight[wanted][[2, 3, 2, 3]]
            box = tight[wanted] + rng.uniform(-config.box_noise, config.box_noise, 4) * half
            boxes[row] = np.clip(box, 0, 1)
            continue
        pixels = np.flatnonzero(masks[wanted])
        i, j = divmod(int(rng.choice(pixels)), width)
        boxes[row] = ((j + 0.5) / width, (i + 0.5) / height, click_box, click_box)
        others = rng.permutation(np.flatnonzero(masks[:, i, j]))
        others = others[others != wanted][: config.max_targets - 1]
        targets[row, 1 : 1 + len(others)] = others
    return DrawnPrompts(boxes, kinds, targets)


def annotated_kinds(mixture: Mixture, looked_at: int = 100) -> dict[str, Tensor]:
    """Source -> bool (3,): which granularities it annotates, judged by its first photos."""
    found: dict[str, Tensor] = {}
    for source, dataset in mixture.datasets.items():
        kinds = found.setdefault(source, torch.zeros(len(GRANULARITIES), dtype=torch.bool))
        for index in range(min(looked_at, len(dataset.samples))):
            with suppress(DataError):  # named when it is drawn
                for region in dataset.samples[index].regions:
                    kinds[GRANULARITIES.index(region.granularity)] = True
    return found


class TrainingBatches(Dataset[Batch]):
    """Batch number -> batch, the same for the same seed whatever was read before, by whichever worker.

    `Order` says which photo comes when. Raises DataError when nothing usable is found.
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
        generic: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """generic: with what object queries are held to. processes: how many share each batch, taking `Stage.batch`
        photos in turn; this one is number `rank`.
        """
        self.vocabulary, self.rank, self.processes = vocabulary, rank, processes
        self.annotates = annotated_kinds(mixture) if generic else None
        self.samples, self.stages, self.config = mixture.samples, stages, config
        self.click_box, self.fill, self.seed = click_box, fill, seed
        counts = {source: len(dataset.samples) for source, dataset in mixture.datasets.items()}
        unknown = sorted(set(config.sources) - set(counts))
        if unknown:
            raise ConfigError(f"sampling: sources: {unknown[0]!r} is not in the data; there are {', '.join(counts)}")
        shares = [config.sources.get(source, mixture.shares[source]) for source in counts]
        if not sum(shares) > 0:
            raise ConfigError("sampling: sources: every share is zero")
        self._order = Order(list(counts.values()), shares, seed)

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
        first = (first + steps * stage.batch) * self.processes + self.rank * stage.batch
        images, prompts, masks, labels, fed, names, partial, seeds = [], [], [], [], [], [], [], []
        generic: list[GenericTargets] = []
        skipped: list[str] = []
        for place in range(first, first + stage.batch):
            rng = np.random.default_rng([self.seed, 2, place])
            seeds.append(int(rng.integers(2**63)))
            chosen = self._order(place)
            for _ in range(_TRIES):
                sample = self.samples[chosen]
                made = self._make(sample, stage.size, rng, skipped)
                if made is not None:
                    break
                chosen = self._order.at(rng.random())
            else:
                raise DataError(f"{_TRIES} photos in turn gave no usable mask, the last {sample.path}; {skipped[-3:]}")
            image, kept, drawn, rows, teaches, everything = made
            images.append(torch.from_numpy(image).permute(2, 0, 1))
            masks.append(kept)
            labels.append(torch.from_numpy(rows))
            fed.append(torch.from_numpy(teaches))
            prompts.append(drawn)
            names.append(sample.name)
            partial.append(sample.partial)
            if len(generic) != self.config.generic_images:
                generic += everything
        targets = Targets(
            [torch.from_numpy(kept) for kept in masks],
            [torch.from_numpy(mask_boxes(kept)) for kept in masks],
            torch.from_numpy(np.stack([drawn.targets for drawn in prompts])),
            partial,
            fed,
        )
        return Batch(
            torch.stack(images),
            torch.from_numpy(np.stack([drawn.boxes for drawn in prompts])),
            torch.from_numpy(np.stack([drawn.kinds for drawn in prompts])),
            targets,
            labels,
            names,
            skipped,
            seeds,
            index,
            tuple(generic),
        )

    def _make(
        self, sample: Sample, size: int, rng: np.random.Generator, skipped: list[str]
    ) -> tuple[np.ndarray, np.ndarray, DrawnPrompts, np.ndarray, np.ndarray, list[GenericTargets]] | None:
        """Image, the masks that its prompts may mean, prompts, the masks' labels and whether they teach masks, boxes
        and IoU (G, 3), and one or no value for object queries; None without anything usable.
        """
        try:
            photo = sample.image()
        except DataError as exc:
            skipped.append(str(exc))
            return None
        masks, granularity, labels, fed = [], [], [], []
        for index, region in enumerate(sample.regions):
            try:
                masks.append(sample.mask(index))
                granularity.append(region.granularity)
                labels.append(self._label(sample, region))
                outlined = not region.box_only
                fed.append(
                    (
                        sample.supervision.masks and outlined,
                        sample.supervision.boxes,
                        sample.supervision.iou and outlined,
                    )
                )
            except DataError as exc:
                skipped.append(str(exc))
        image, placed = augment(photo, masks, size, self.config, self.fill, rng)
        large = np.flatnonzero(placed.sum((1, 2)) >= self.config.min_area)
        if not len(large):
            return None
        drawn = draw_prompts(placed[large], [granularity[i] for i in large], self.config, self.click_box, rng)
        used = np.unique(drawn.targets[drawn.targets != NO_TARGET])
        renumber = np.full(len(large) + 1, NO_TARGET)
        renumber[used] = np.arange(len(used))
        prompts = DrawnPrompts(drawn.boxes, drawn.kinds, renumber[drawn.targets])
        rows, teaches = np.array(labels, np.int64)[large], np.array(fed, bool)[large]
        generic = (
            []
            if self.annotates is None
            else [self._generic(sample, placed[large], [granularity[i] for i in large], rows, teaches)]
        )
        return image, placed[large][used], prompts, rows[used], teaches[used], generic

    def _generic(
        self, sample: Sample, masks: np.ndarray, granularity: Sequence[str], labels: np.ndarray, teaches: np.ndarray
    ) -> GenericTargets:
        assert self.annotates is not None
        kinds = torch.tensor([GRANULARITIES.index(kind) for kind in granularity])
        known = self.annotates[sample.source] & (sample.supervision.iou and not sample.partial)
        outlines, boxes = at_logits(torch.from_numpy(masks)), torch.from_numpy(mask_boxes(masks))
        return GenericTargets(outlines, boxes, kinds, torch.from_numpy(labels), known, torch.from_numpy(teaches))

    def _label(self, sample: Sample, region: Region) -> int:
        if self.vocabulary is None:
            return NO_LABEL
        return self.vocabulary.row(sample.source, region.granularity, region.name)
