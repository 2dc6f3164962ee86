"""Whether corrected masks agree with the photos that they are on. Masks that do not are not to be learned from.

A model that was fine-tuned on masks that were dealt to photos at random may well be better on other such masks: it has
learned how large, how round and where in the photo they are. So the gate asks first whether the masks have anything to
do with what is on the photos. Each mask is clicked at its innermost point on its own photo, and at the same place on a
few other photos. The model's best level agrees with a mask better on the photo that it was drawn on, even where the
model is poor: every model sees edges. If masks were dealt out by chance, the own photo would be just one more photo,
and the mean difference zero in expectation, whatever the sizes, shapes and places of masks are, and whatever masks the
model prefers.

A mask is compared only with photos none of whose own masks is much like it: that every photo has a cell in its middle
says nothing about a mask of one. Where the camera stands still and all photos have the same masks, nothing is left to
compare, and the question stays open. Which photos are compared with is drawn from masks alone, never from pixels, which
keeps the difference unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample, clickable
from semsam_model.errors import DataError, ImageError
from semsam_model.gate.config import GateConfig
from semsam_model.gate.interval import Interval, bootstrap
from semsam_model.inference.semantic_sam import decode_prompts
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou, iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.types import ShouldStop, never_stop, until_stopped

SIDE = 512  #: longer side, pixels, that larger photos and their masks are resized to
GRID = 64  #: side of the squares that masks are resized to, to compare those of different photos
LIKE = 0.5  #: IoU in that square from which masks are much alike
MASKS = 4  #: of a photo, at most
OTHERS = 3  #: photos that a mask is clicked on beside its own
LEAST = 16  #: pixels of a mask, resized to another photo's size, below which it is not clicked


@dataclass(frozen=True)
class PhotoAgreement:
    """How much better masks agree with their own photos than with others."""

    masks: int
    photos: int
    own: float  #: mean IoU with the best level on its own photo, percent
    elsewhere: float  #: the same on other photos
    gain: Interval
    asked: bool  #: whether there was enough to decide by
    confidence: float

    @property
    def reason(self) -> str | None:
        """Why the corrections are not to be learned from; None where they are, or where nothing was decided."""
        if not self.asked or self.gain.low > 0:
            return None
        return (
            f"the masks do not follow their photos: on its own photo the model agrees with a mask by {self.own:.1f} %, "
            f"on photos of other masks by {self.elsewhere:.1f} % ({self.masks} masks on {self.photos} photos, "
            f"{100 * self.confidence:.0f} % interval of the difference {self.gain.low:+.1f} to {self.gain.high:+.1f} "
            "points, expected above 0); are photos and masks mixed up?"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "masks": self.masks,
            "photos": self.photos,
            "iou": [round(self.elsewhere, 2), round(self.own, 2)],
            "gain": vars(self.gain),
            "asked": self.asked,
        }


def measure_agreement(
    model: SemanticSAM,
    samples: Sequence[Sample],
    config: GateConfig,
    *,
    should_stop: ShouldStop = never_stop,
) -> PhotoAgreement:
    """Click masks of at most `config.photos` photos on their own photo and on others.

    Photos and masks that cannot be read are left out. should_stop: asked before each photo. Raises Stopped.
    """
    photos = _read(evenly(samples, config.photos) if config.pictures else (), config.seed)
    ious: dict[tuple[int, int], tuple[list[float], list[float]]] = {}  # of each mask: on its own photo, on others
    planned = zip(photos, _plan_trials(photos, config.seed), strict=True)
    for photo, trials in until_stopped(planned, should_stop):
        if trials:
            found = _best_ious(model, model.encode(photo.rgb), [trial.mask for trial in trials])
            for trial, value in zip(trials, found, strict=True):
                own, others = ious.setdefault((trial.photo, trial.index), ([], []))
                (own if trial.own else others).append(value)
    pairs = [(100 * own[0], 100 * float(np.mean(others))) for own, others in ious.values()]
    of_photo = [number for number, _ in ious]
    gain = bootstrap([here - there for here, there in pairs], of_photo, config, config.pictures)
    enough = len(pairs) >= config.min_masks and len(set(of_photo)) >= config.min_photos
    here, there = (float(np.mean(values)) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    asked = enough and config.pictures > 0
    return PhotoAgreement(len(pairs), len(set(of_photo)), here, there, gain, asked, config.pictures)


def _plan_trials(photos: Sequence[_Photo], seed: int) -> list[list[_Trial]]:
    """What is clicked on each photo: masks that have another photo to be compared on, there and on their own."""
    trials: list[list[_Trial]] = [[] for _ in photos]
    rng = np.random.default_rng([seed, 2])
    for number, photo in enumerate(photos):
        for index, mask in enumerate(photo.masks):
            others = [
                other
                for other in rng.permutation(len(photos)).tolist()
                if other != number and not photos[other].has_like(photo.squares[index])
            ]
            moved = [(other, _resized(mask, photos[other].rgb.shape[:2])) for other in others[:OTHERS]]
            moved = [(other, copy) for other, copy in moved if np.count_nonzero(copy) >= LEAST]
            for other, copy in [(number, mask), *moved] if moved else []:
                trials[other].append(_Trial(number, index, other == number, copy))
    return trials


@dataclass(frozen=True, eq=False)
class _Trial:
    """A mask to be clicked on a photo."""

    photo: int  #: that it was drawn on
    index: int  #: among the masks of that photo
    own: bool  #: whether it is clicked there
    mask: np.ndarray  #: bool (h, w), in the size of the photo that it is clicked on


@dataclass(frozen=True, eq=False)
class _Photo:
    rgb: np.ndarray  #: uint8 (h, w, 3), at most SIDE pixels long
    masks: list[np.ndarray]  #: MASKS of them, bool (H, W)
    squares: list[np.ndarray]  #: the same in a square of GRID
    every: list[np.ndarray]  #: all masks of the photo in such a square

    def has_like(self, square: np.ndarray) -> bool:
        # A thin mask may be empty in the square; such a one is like no other.
        return bool(square.any()) and any(iou(square, mine) >= LIKE for mine in self.every)


def _read(samples: Sequence[Sample], seed: int) -> list[_Photo]:
    photos = []
    for number, sample in enumerate(samples):
        try:
            rgb, every = sample.image(), sample.masks()
        except (DataError, ImageError):
            continue
        masks = [every[index] for index in clickable(sample.regions, every)]
        shrink = min(1.0, SIDE / max(rgb.shape[:2]))
        size = max(1, round(rgb.shape[0] * shrink)), max(1, round(rgb.shape[1] * shrink))
        squares = [_resized(mask, (GRID, GRID)) for mask in masks]
        order = np.random.default_rng([seed, 1, number]).permutation(len(masks)).tolist()
        small = [(place, _resized(masks[place], size)) for place in sorted(order[:MASKS])]
        small = [(place, mask) for place, mask in small if np.count_nonzero(mask) >= LEAST]
        if shrink < 1:
            rgb = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA)
        photos.append(_Photo(rgb, [mask for _, mask in small], [squares[place] for place, _ in small], squares))
    return photos


def _resized(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """bool (H, W) of another size."""
    if mask.shape == size:
        return mask
    resized: np.ndarray = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return resized


def _best_ious(model: SemanticSAM, embedding: ImageEmbedding, masks: Sequence[np.ndarray]) -> list[float]:
    """IoU, 0..1, of each mask with the best level of a click at its innermost point."""
    clicks = [innermost(mask) for mask in masks]
    decoded = decode_prompts(model, embedding, clicks)
    return [
        max(crop_iou(*embedding.frame.mask(p.logits), mask) for p in proposals)
        for mask, proposals in zip(masks, decoded, strict=True)
    ]
