"""What a training image shows, before prompts are drawn: one photo, four in a square, or one with pasted objects.

Pasting cuts objects with their parts out of another photo by their masks, at any scale, and hides what lies below
(copy-paste with large scale jitter, Ghiasi et al. 2021). Frame: pixels of the S x S training image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from semsam_model.masks.geometry import Size
from semsam_model.types import GRANULARITIES

NO_PARENT = -1
OBJECT, PART = GRANULARITIES.index("object"), GRANULARITIES.index("part")
#: Of what was to be seen of a mask; one that keeps less behind what is pasted over it is dropped.
MIN_VISIBLE = 0.3


@dataclass(frozen=True, eq=False)
class SceneRegions:
    """G annotated masks of one frame, with what their losses need."""

    masks: np.ndarray  #: bool (G, H, W)
    kinds: np.ndarray  #: long (G,), index into GRANULARITIES
    labels: np.ndarray  #: long (G,), rows of the vocabulary, or NO_LABEL: each mask has those of its own source
    supervised: np.ndarray  #: float32 (G, 3), 0..1: how much a mask counts in the losses of masks, boxes and IoU
    parents: np.ndarray  #: long (G,), row of the enclosing one, or NO_PARENT
    added: np.ndarray  #: bool (G,): a model found it and nobody annotated it

    def __len__(self) -> int:
        return len(self.masks)

    def only(self, rows: np.ndarray) -> SceneRegions:
        """Some of them, long (n,). What encloses a region takes the place of a parent that is left out."""
        number = np.full(len(self) + 1, NO_PARENT)  # its last entry is that of NO_PARENT
        number[rows] = np.arange(len(rows))
        parents = self.parents.copy()
        for _ in range(len(self)):
            lost = (parents != NO_PARENT) & (number[parents] == NO_PARENT)
            if not lost.any():
                break
            parents[lost] = self.parents[parents[lost]]
        return SceneRegions(
            self.masks[rows],
            self.kinds[rows],
            self.labels[rows],
            self.supervised[rows],
            number[parents[rows]],
            self.added[rows],
        )

    @property
    def annotated(self) -> np.ndarray:
        """long (n,): rows of the masks that somebody annotated."""
        return np.flatnonzero(~self.added)

    @staticmethod
    def joined(parts: Sequence[SceneRegions]) -> SceneRegions:
        """One after another, all of one frame."""
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        parents = [
            np.where(part.parents == NO_PARENT, NO_PARENT, part.parents + start)
            for part, start in zip(parts, starts, strict=True)
        ]
        return SceneRegions(
            np.concatenate([part.masks for part in parts]),
            np.concatenate([part.kinds for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.supervised for part in parts]),
            np.concatenate(parents),
            np.concatenate([part.added for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """An augmented image of S x S pixels with its regions, none of them empty."""

    names: tuple[str, ...]  #: of the photos in it
    pixels: np.ndarray  #: uint8 RGB (S, S, 3)
    regions: SceneRegions
    covered: Size  #: (h, w) from the upper left that is photo; the rest is fill
    partial: bool  #: not everything visible is annotated
    complete: np.ndarray  #: bool (3,): of a granularity, whatever is not annotated is not there


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object with its parts, cut from a photo; the object is its first region, and encloses the others."""

    name: str  #: of the photo
    pixels: np.ndarray  #: uint8 RGB (h, w, 3)
    alpha: np.ndarray  #: uint8 (h, w), 0..255; inside above 127
    regions: SceneRegions  #: of h x w pixels, none empty
    annotates_parts: bool  #: its photo's source annotates parts
    complete: np.ndarray  #: bool (3,), of its photo; as `Scene.complete`


def pasted(scene: Scene, cutouts: Sequence[tuple[Cutout, tuple[int, int]]], min_area: int) -> Scene:
    """The scene with cut-out objects, each with the (row, column) of its upper left pixel, all of it in the frame.

    Later ones lie above earlier ones. Masks keep what stays visible. Those with less than MIN_VISIBLE of it, or of
    `min_area` pixels, go, and of their granularity not all is annotated then.
    """
    size = scene.pixels.shape[:2]
    pixels, parts = scene.pixels.copy(), [scene.regions]
    for cutout, (top, left) in cutouts:
        frame = np.zeros((len(cutout.regions), *size), bool)
        height, width = cutout.alpha.shape
        frame[:, top : top + height, left : left + width] = cutout.regions.masks
        parts.append(replace(cutout.regions, masks=frame))
    regions, ends = SceneRegions.joined(parts), np.cumsum(list(map(len, parts)))
    masks = regions.masks
    before = masks.sum((1, 2))
    for (cutout, (top, left)), below in zip(cutouts, ends, strict=False):
        height, width = cutout.alpha.shape
        window = slice(top, top + height), slice(left, left + width)
        share = cutout.alpha[..., None].astype(np.uint16)
        pixels[window] = (cutout.pixels * share + pixels[window] * (255 - share) + 127) // 255
        masks[:below, *window] &= cutout.alpha <= 127
    visible = masks.sum((1, 2))
    kept = (visible >= min_area) & (visible >= MIN_VISIBLE * before)
    return replace(
        scene,
        names=(*scene.names, *(cutout.name for cutout, _ in cutouts)),
        pixels=pixels,
        regions=regions.only(np.flatnonzero(kept)),
        # The rest of its photo does not matter: only parts that are some of those there make it partial.
        partial=scene.partial or any(cutout.annotates_parts and not cutout.complete[PART] for cutout, _ in cutouts),
        complete=_complete(
            scene, [cutout for cutout, _ in cutouts], regions.kinds[~kept & (visible > 0) & ~regions.added]
        ),
    )


def _complete(scene: Scene, cutouts: Sequence[Cutout], lost: np.ndarray) -> np.ndarray:
    """`Scene.complete` after pasting. lost: kinds of the masks that were dropped and can still be seen a little."""
    complete = scene.complete.copy()
    complete[lost] = False
    for cutout in cutouts:
        # What was cut is a whole of its own kind; of other kinds more may lie in it than its source annotates.
        others = np.arange(len(complete)) != cutout.regions.kinds[0]
        complete[others] &= cutout.complete[others]
    return complete


def mosaic(cells: Sequence[Scene]) -> Scene:
    """Four scenes of S / 2 pixels: upper left, upper right, lower left, lower right."""
    side = cells[0].pixels.shape[0]
    size = 2 * side
    pixels = np.empty((size, size, 3), np.uint8)
    placed = []
    for number, cell in enumerate(cells):
        row, column = number // 2 * side, number % 2 * side
        window = slice(row, row + side), slice(column, column + side)
        pixels[window] = cell.pixels
        masks = np.zeros((len(cell.regions), size, size), bool)
        masks[:, *window] = cell.regions.masks
        placed.append(replace(cell.regions, masks=masks))
    return Scene(
        tuple(name for cell in cells for name in cell.names),
        pixels,
        SceneRegions.joined(placed),
        (size, size),
        any(cell.partial for cell in cells),
        np.logical_and.reduce([cell.complete for cell in cells]),
    )
