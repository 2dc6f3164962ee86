"""Annotated photos -> augmented scenes, and objects cut out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semsam_model.data.samples import Region, Sample
from semsam_model.data.vocabulary import Vocabulary
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size
from semsam_model.training.augmentation import augment, cut_out, paste_scale, turned
from semsam_model.training.config import SamplingConfig
from semsam_model.training.losses.matching import IOU, MASKS
from semsam_model.training.scenes import NO_PARENT, OBJECT, PART, Cutout, Scene, SceneRegions
from semsam_model.types import GRANULARITIES

#: Share of a region that lies in an object, from which on it is cut out with it.
_INSIDE = 0.9
#: Side of a pasted object's box, of the square's.
_LARGEST = 0.95
#: Smallest pasted object, in units of `SamplingConfig.min_area`.
_SMALLEST = 8


@dataclass(frozen=True, eq=False)
class SceneReader:
    """What a scene depends on beside its sample and the random numbers."""

    config: SamplingConfig
    fill: Sequence[float]  #: RGB 0..255 where no photo is
    vocabulary: Vocabulary
    annotates: Mapping[str, np.ndarray]  #: source -> bool (3,): the granularities that it annotates
    turning: frozenset[str]  #: sources whose photos have no up
    added_weight: Callable[[str], float]  #: source -> of its masks that a model added, in the losses of masks

    def scene(
        self, sample: Sample, size: int, config: SamplingConfig, rng: np.random.Generator, skipped: list[str]
    ) -> Scene | None:
        """None where nothing annotated of the sample can be used. config: `self.config`, or with other scales."""
        read = self._read(sample, rng, skipped)
        if read is None:
            return None
        photo, masks, rows = read
        pixels, placed, covered = augment(photo, masks, size, config, self.fill, rng)
        large = np.flatnonzero(placed.sum((1, 2)) >= config.min_area)
        regions = self._regions(sample, placed, rows).only(large)
        if not len(regions.annotated):
            return None
        return Scene((sample.name,), pixels, regions, covered, sample.partial, self._complete(sample))

    def cutouts(self, sample: Sample, size: int, rng: np.random.Generator, skipped: list[str]) -> list[Cutout]:
        """Some objects of a sample, at most `config.paste_objects`, for a scene of `size`; none where none can be cut.

        Only those whose outline was drawn, by a source that feeds masks and IoU: a loose outline takes background
        along.
        """
        if not (sample.supervision.masks and sample.supervision.iou):
            return []
        read = self._read(sample, rng, skipped)
        if read is None or not read[1]:
            return []
        photo, masks, rows = read
        regions = self._regions(sample, np.stack(masks), rows)
        areas = regions.masks.sum((1, 2))
        able = (regions.kinds == OBJECT) & (regions.supervised[:, [MASKS, IOU]] > 0).all(1)
        able &= areas >= self.config.min_area
        count = int(rng.integers(1, self.config.paste_objects + 1))
        roots = rng.permutation(np.flatnonzero(able))[:count]
        found = [self._cut(sample, photo, regions, _with_parts(regions, areas, root), size, rng) for root in roots]
        return [cutout for cutout in found if cutout is not None]

    def _cut(
        self,
        sample: Sample,
        photo: np.ndarray,
        every: SceneRegions,
        rows: np.ndarray,
        size: int,
        rng: np.random.Generator,
    ) -> Cutout | None:
        """rows: of `every`, the object and what goes with it. None where it becomes too small to be seen."""
        chosen = every.only(rows)
        whole = np.asarray(chosen.masks.any(0))
        window = _around(whole)
        layers = [whole[window], *(mask[window] for mask in chosen.masks)]
        new = self._new_size(photo.shape[:2], layers[0], size, rng)
        pixels, (alpha, *levels) = cut_out(photo[window], layers, new, self.config, rng)
        placed = np.stack(levels) > 127
        large = placed.sum((1, 2)) >= self.config.min_area
        if not large[0]:
            return None
        parents = np.where(chosen.parents == NO_PARENT, 0, chosen.parents)
        parents[0] = NO_PARENT
        regions = replace(chosen, masks=placed, parents=parents).only(np.flatnonzero(large))
        annotates_parts = bool(self.annotates[sample.source][PART])
        return Cutout(sample.name, pixels, alpha, regions, annotates_parts, self._complete(sample))

    def _new_size(self, photo: tuple[int, ...], whole: np.ndarray, size: int, rng: np.random.Generator) -> Size:
        """(h, w) of a cut-out object, bool (H, W), of a photo of (H, W)."""
        smallest = (_SMALLEST * self.config.min_area / whole.sum()) ** 0.5
        scale = max(paste_scale(self.config, rng) * size / max(photo), smallest)
        scale = min(scale, _LARGEST * size / max(whole.shape))
        return max(1, round(whole.shape[0] * scale)), max(1, round(whole.shape[1] * scale))

    def _read(
        self, sample: Sample, rng: np.random.Generator, skipped: list[str]
    ) -> tuple[np.ndarray, list[np.ndarray], list[int]] | None:
        """Photo, the masks that can be read and which regions they are of; turned, where the source has no up."""
        try:
            photo = sample.image()
        except DataError as exc:
            skipped.append(str(exc))
            return None
        masks, rows = [], []
        for index in range(len(sample.regions)):
            try:
                masks.append(sample.mask(index))
                rows.append(index)
            except DataError as exc:
                skipped.append(str(exc))
        if self.config.turn and sample.source in self.turning:
            photo, masks = turned(photo, masks, self.config.turn, rng)
        return photo, masks, rows

    def _regions(self, sample: Sample, masks: np.ndarray, rows: Sequence[int]) -> SceneRegions:
        """masks bool (G, H, W), of the sample's regions `rows`."""
        regions = [sample.regions[row] for row in rows]
        number = {row: place for place, row in enumerate(rows)}
        parents = [NO_PARENT if region.parent is None else number.get(region.parent, NO_PARENT) for region in regions]
        labels = [self.vocabulary.row(sample.source, region.granularity, region.name) for region in regions]
        return SceneRegions(
            masks,
            np.array([GRANULARITIES.index(region.granularity) for region in regions], np.int64),
            np.array(labels, np.int64),
            np.array([self._supervised(sample, region) for region in regions], np.float32).reshape(-1, 3),
            np.array(parents, np.int64),
            np.array([region.added for region in regions], bool),
        )

    def _supervised(self, sample: Sample, region: Region) -> tuple[float, float, float]:
        """How much a region counts in the losses of masks, boxes and IoU."""
        fed, outlined = sample.supervision, not region.box_only
        if region.added:  # what the model was sure of is not what it should be sure of
            return self.added_weight(sample.source) * fed.masks, 0, 0
        return fed.masks and outlined, fed.boxes, fed.iou and outlined

    def _complete(self, sample: Sample) -> np.ndarray:
        annotated: np.ndarray = self.annotates[sample.source] & (sample.supervision.iou and not sample.partial)
        return annotated


def _with_parts(regions: SceneRegions, areas: np.ndarray, root: int) -> np.ndarray:
    """Rows of an object, first, of all that it encloses, and of what mostly lies in its mask. areas: of all masks."""
    enclosed = np.arange(len(regions)) == root
    while True:
        more = enclosed | ((regions.parents != NO_PARENT) & enclosed[regions.parents])
        if (more == enclosed).all():
            break
        enclosed = more
    window = _around(regions.masks[root])
    inside = (regions.masks[:, *window] & regions.masks[root][window]).sum((1, 2)) >= _INSIDE * areas
    chosen = (enclosed | inside) & (areas > 0)
    chosen[root] = False
    return np.array([root, *np.flatnonzero(chosen)])


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the box around a bool (H, W) mask that is not empty."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
