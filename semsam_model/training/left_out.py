"""Which of the masks that a model finds on a photo annotators left out.

Those that are

    sure      predicted IoU from a bound on
    stable    two masks of them, at a higher and a lower threshold of the logits, have IoU from a bound on
    distinct  nothing annotated, and nothing added before, has more than a bound of IoU with them
    in order  each lies in another mask, holds it, or keeps apart from it: a border that cuts through an annotated mask
              says that one of the two is wrong

A mask inside another one is a part of the smallest such; any other is a region: what it is, nobody said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from semsam_model.data.added_masks import AddedMask
from semsam_model.data.samples import Region
from semsam_model.errors import ConfigError
from semsam_model.masks.geometry import BBox, crop_mask, shared_pixels
from semsam_model.types import Candidate


@dataclass(frozen=True)
class CompletionSettings:
    """Which masks are added. Chosen for the embedded model, whose predicted IoU is above 0.8 for few masks."""

    grid: int = 24  #: clicks along each side of the photo
    least_iou: float = 0.6  #: predicted
    least_stability: float = 0.8  #: share of cells above -1 that are above +1, which lie in them
    most_iou: float = 0.5  #: with an annotated mask, or one added before
    inside: float = 0.9  #: share of a mask that lies in another, from which on it is a part of it
    apart: float = 0.1  #: share of the smaller of two masks that both cover, up to which they keep apart
    least_area: float = 0.001  #: share of the photo
    most_area: float = 0.8

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ConfigError(f"grid {self.grid}: expected at least 1")
        shares = {name: value for name, value in asdict(self).items() if name != "grid"}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} {value}: expected 0 to 1")


@dataclass(frozen=True, eq=False)
class _Placed:
    """A mask of a photo."""

    crop: np.ndarray
    bbox: BBox
    area: int
    box_only: bool = False  #: a filled rectangle: its border says nothing

    @classmethod
    def of(cls, mask: np.ndarray, box_only: bool = False) -> _Placed:
        """mask: bool (H, W)."""
        crop, bbox = crop_mask(mask)
        return cls(crop, bbox, int(np.count_nonzero(crop)), box_only)

    @property
    def filled(self) -> _Placed:
        """Its box, filled."""
        return _Placed(np.ones_like(self.crop), self.bbox, self.crop.size)


def left_out(
    masks: Sequence[np.ndarray],
    regions: Sequence[Region],
    candidates: Sequence[Candidate],
    settings: CompletionSettings,
) -> list[AddedMask]:
    """Which candidates nobody annotated, the surest first.

    masks: bool (H, W), what is annotated, of `regions`. Candidates of equal worth come in their own order.
    """
    known = [_Placed.of(mask, region.box_only) for mask, region in zip(masks, regions, strict=True)]
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.predicted_iou * c.stability):
        sure = candidate.predicted_iou >= settings.least_iou and candidate.stability >= settings.least_stability
        share = candidate.area / (candidate.size[0] * candidate.size[1])
        placed = _Placed(candidate.crop, candidate.bbox, candidate.area)
        fits = sure and settings.least_area <= share <= settings.most_area
        if fits and all(_distinct(placed, other, settings) for other in known):
            known.append(placed)
            chosen.append(candidate)
    parents = [_smallest_around(place, known, settings) for place in range(len(masks), len(known))]
    return [
        AddedMask(c.mask, "region" if parent is None else "part", parent, c.predicted_iou, c.stability)
        for c, parent in zip(chosen, parents, strict=True)
    ]


def _distinct(new: _Placed, other: _Placed, settings: CompletionSettings) -> bool:
    """Whether a mask is another than one that is known, and in order with it."""
    if other.box_only:
        new = new.filled
    shared = shared_pixels(new.crop, new.bbox, other.crop, other.bbox)
    if not shared:
        return True
    if shared > settings.most_iou * (new.area + other.area - shared):
        return False
    nested = shared >= settings.inside * min(new.area, other.area)
    return nested or other.box_only or shared <= settings.apart * min(new.area, other.area)


def _smallest_around(place: int, known: Sequence[_Placed], settings: CompletionSettings) -> int | None:
    """Which of the known masks a mask is a part of: of the larger ones that hold it the smallest."""
    own = known[place]
    holding = [
        (other.area, number)
        for number, other in enumerate(known)
        if other.area > own.area
        and shared_pixels(own.crop, own.bbox, other.crop, other.bbox) >= settings.inside * own.area
    ]
    return min(holding)[1] if holding else None
