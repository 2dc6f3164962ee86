"""Whether corrections follow their pictures. What does not is not to be learned from, whatever it is called.

A child that learned from masks dealt out among the photos may well be better on others dealt out in the same way: it
has learned how large, how round and where in the photo such masks are. So it is asked whether the masks have anything
to do with what is to be seen. Each is clicked at its innermost point on its own photo, and as if it lay in the same
place on a few other photos. The model's best level agrees with a mask better on the photo that it was drawn on, also
where the model is poor: edges are seen by all. If masks were dealt out by chance, its own photo were just one more
photo, and the mean difference zero in expectation, whatever the masks' sizes, shapes and places are, and whatever the
model prefers.

Photos are compared with only if none of their own masks is much like it: that every photo has a cell in its middle
says nothing about a mask of one. Where the camera stands still, and all photos bear the same masks, nothing is left to
compare, and nothing is asked. Which photos are compared with is drawn from masks alone, never from pixels, which keeps
the difference fair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample, clickable
from semsam_model.errors import DataError, ImageError
from semsam_model.gate.config import GateConfig
from semsam_model.gate.interval import Interval, bootstrap
from semsam_model.inference.proposals import decode_prompts
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou, iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM

SIDE = 512  #: longer side, pixels, that photos and masks are brought to, if larger
GRID = 64  #: sides of the squares that masks of different photos are held against each other in
LIKE = 0.5  #: IoU in that square from which masks are much alike
MASKS = 4  #: of a photo, at most
OTHERS = 3  #: photos that a mask is tried on beside its own
LEAST = 16  #: pixels of a mask, brought to another photo's size, below which it is not tried


@dataclass(frozen=True)
class Following:
    """How much better masks agree with their own photos than with others."""

    masks: int
    photos: int
    own: float  #: IoU with the best level, percent
    elsewhere: float
    gain: Interval
    asked: bool  #: whether there was enough to tell by
    confidence: float

    @property
    def reason(self) -> str | None:
        """Why the corrections are not to be learned from; None if they are, or if it could not be told."""
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


def follow(
    model: SemanticSAM,
    samples: Sequence[Sample],
    config: GateConfig,
    *,
    on_photo: Callable[[], None] = lambda: None,
) -> Following:
    """Try masks of at most `config.photos` photos on their own and on other photos.

    What cannot be read is passed over. `on_photo`: after each photo.
    """
    photos = _read(evenly(samples, config.photos) if config.pictures else (), config.seed)
    tried: list[list[_Trial]] = [[] for _ in photos]
    rng = np.random.default_rng([config.seed, 2])
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
                tried[other].append(_Trial(number, index, other == number, copy))
    found: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
    for photo, trials in zip(photos, tried, strict=True):
        if trials:
            ious = _agreement(model, model.encode(photo.rgb), [trial.mask for trial in trials])
            for trial, value in zip(trials, ious, strict=True):
                found.setdefault((trial.photo, trial.index), ([], []))[not trial.own].append(value)
        on_photo()
    own = [100 * once[0] for once, _ in found.values()]
    elsewhere = [100 * float(np.mean(others)) for _, others in found.values()]
    of_photo = [number for number, _ in found]
    gain = bootstrap(np.subtract(own, elsewhere).tolist(), of_photo, config, config.pictures)
    enough = len(found) >= config.min_masks and len(set(of_photo)) >= config.min_photos
    here, there = (float(np.mean(values)) if values else 0.0 for values in (own, elsewhere))
    return Following(len(found), len(set(of_photo)), here, there, gain, enough and config.pictures > 0, config.pictures)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A mask to be clicked on a photo."""

    photo: int  #: that it was drawn on
    index: int
    own: bool
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class _Photo:
    rgb: np.ndarray  #: uint8 (H, W, 3), made smaller
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


def _agreement(model: SemanticSAM, embedding: ImageEmbedding, masks: Sequence[np.ndarray]) -> list[float]:
    """IoU, 0..1, of each mask with the best level of a click at its innermost point."""
    clicks = [innermost(mask) for mask in masks]
    decoded = decode_prompts(model, embedding, clicks)
    return [
        max(crop_iou(*embedding.frame.mask(p.logits), mask) for p in proposals)
        for mask, proposals in zip(masks, decoded, strict=True)
    ]
