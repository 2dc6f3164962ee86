"""Annotated photos as values: one `Sample` a photo, whatever format it was read from.

Pixels, masks and, for large sources, annotations are read when they are asked for, so that a sample takes little
memory. Frame: pixels of the EXIF-oriented photo.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_model.data.pixels import decode_rgb, oriented_size
from semsam_model.errors import ConfigError, DataError, ImageError
from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import Size, crop_mask
from semsam_model.types import Label

#: What malformed entries of someone else's file raise, besides DataError.
BAD_ENTRY = (KeyError, TypeError, ValueError, IndexError, AttributeError)
MIN_AREA = 64  #: photo pixels of a mask that is worth a click, see `clickable`


@dataclass(frozen=True)
class Supervision:
    """Which losses the annotations of a source are good for."""

    masks: bool = True
    boxes: bool = True
    iou: bool = True
    object_names: bool = True
    part_names: bool = True

    @property
    def names(self) -> bool:
        return self.object_names or self.part_names

    def name_of(self, granularity: str) -> bool:
        """Whether a region of this granularity supervises names; a named region ("sky") is a whole of its own."""
        return self.part_names if granularity == "part" else self.object_names

    @classmethod
    def of(cls, names: Iterable[str]) -> Supervision:
        """From the names of the losses. Raises ConfigError for another name, and when there is none."""
        known, given = {f.name for f in fields(cls)}, list(names)
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ConfigError(f"feeds: expected some of {', '.join(sorted(known))}, got {', '.join(given) or 'none'}")
        return cls(**{name: name in given for name in known})


FULL_SUPERVISION = Supervision()


class Photo(Protocol):
    """Where the pixels of a sample come from."""

    @property
    def path(self) -> Path:
        """The file they lie in, or a name in the form of one."""

    @property
    def name(self) -> str:
        """The photo's own file name."""

    def pixels(self) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises DataError naming the file."""


def decode_photo(data: bytes, where: str) -> np.ndarray:
    """The bytes of an image file -> uint8 RGB (H, W, 3), as clicks see it. Raises DataError naming `where`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode_rgb(image, data)
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{where}: expected a readable image: {exc}") from exc


def photo_size(file: Path | BinaryIO, where: str) -> Size:
    """(H, W) of a photo as it is seen, from its header. Raises DataError naming `where` when it cannot be read."""
    try:
        with Image.open(file) as image:
            return oriented_size(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{where}: expected a readable image: {exc}") from exc


@dataclass(frozen=True)
class PhotoFile:
    """A photo in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def content(self) -> bytes:
        """The file as it is. Raises DataError when it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as exc:
            raise DataError(f"{self.path}: expected a readable image: {exc}") from exc

    def pixels(self) -> np.ndarray:
        return decode_photo(self.content(), str(self.path))

    def size(self) -> Size:
        """As `photo_size`."""
        return photo_size(self.path, str(self.path))


class Segmentation(Protocol):
    """Where the mask of a region comes from."""

    def decode(self, size: Size) -> np.ndarray:
        """bool (H, W) of a photo of `size` (H, W). Raises DataError, or one of BAD_ENTRY for a malformed entry."""


@dataclass(frozen=True, eq=False)
class CocoMask:
    """A COCO segmentation as it stands in a file: compressed or plain RLE, or polygons."""

    segmentation: Mapping[str, Any] | Sequence[Any]

    @classmethod
    def of(cls, mask: np.ndarray) -> CocoMask:
        """Exactly this bool (H, W) mask."""
        height, width = mask.shape
        return cls(encode_coco_rle(*crop_mask(mask), (height, width)))

    def decode(self, size: Size) -> np.ndarray:
        if isinstance(self.segmentation, Mapping):
            return np.ascontiguousarray(decode_coco_rle(dict(self.segmentation), size))
        if not isinstance(self.segmentation, Sequence) or not self.segmentation:
            raise ValueError("neither RLE nor polygons")
        rings = [np.asarray(ring, np.float64) for ring in self.segmentation]
        # pycocotools takes four numbers for a box, and does not ask whether points are finite.
        if any(ring.ndim != 1 or ring.size < 6 or ring.size % 2 or not np.isfinite(ring).all() for ring in rings):
            raise ValueError("a polygon is not x, y, x, y, x, y, ...")
        reach = 4.0 * max(size)
        rle = coco_mask.frPyObjects([ring.clip(-reach, reach).tolist() for ring in rings], *size)
        return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(rle))).view(bool)


@dataclass(frozen=True, eq=False)
class Region:
    """One annotated mask of a sample."""

    segmentation: Segmentation
    granularity: str  #: one of GRANULARITIES
    name: str | None  #: of the object or part, as the source spells it
    parent: int | None = None  #: index, among the sample's regions, of the enclosing one
    box_only: bool = False  #: nobody drew its outline: the mask is a filled rectangle
    weight: float = 1.0  #: how often fine-tuning draws it beside others, more than 0
    crowd: bool = False  #: several things in one mask (COCO's `iscrowd`); only read for evaluation
    area: float | None = None  #: pixels, as the source says it; only read for evaluation
    whole: str | None = None  #: of a part, as `Label.whole`
    added: bool = False  #: a model found it and nobody annotated it; `data.added_masks` says who reads such

    @property
    def label(self) -> Label | None:
        """None without a name."""
        return None if self.name is None else Label(self.granularity, self.name, self.whole)


@dataclass(frozen=True)
class FederatedLabels:
    """Of a photo that was annotated for some labels only, as those of LVIS and PACO: which, beside those on it."""

    negative: frozenset[Label]  #: looked for, and not there (`neg_category_ids`)
    not_exhaustive: frozenset[Label]  #: there, but not every instance is annotated (`not_exhaustive_category_ids`)


@dataclass(frozen=True, eq=False)
class Annotation:
    """What is known about one photo."""

    width: int
    height: int
    regions: tuple[Region, ...]
    partial: bool = False  #: not everything visible is annotated
    federated: FederatedLabels | None = None  #: None: annotated for every label; only read for evaluation


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo and its annotation; pixels and masks are read at each call, the annotation at the first use."""

    photo: Photo
    source: str
    annotated: Annotation | Callable[[], Annotation]  #: callable: read at the first use; raises DataError
    supervision: Supervision = FULL_SUPERVISION

    @property
    def path(self) -> Path:
        return self.photo.path

    @property
    def name(self) -> str:
        return f"{self.source}/{self.photo.name}"

    @cached_property
    def annotation(self) -> Annotation:
        """Raises DataError naming the file when it cannot be read."""
        return self.annotated if isinstance(self.annotated, Annotation) else self.annotated()

    @property
    def width(self) -> int:
        return self.annotation.width

    @property
    def height(self) -> int:
        return self.annotation.height

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.annotation.regions

    @property
    def partial(self) -> bool:
        return self.annotation.partial

    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises DataError naming the file."""
        size = self.height, self.width
        rgb = self.photo.pixels()
        if rgb.shape[:2] != size:
            raise DataError(
                f"{self._where}: expected {size[1]}x{size[0]} pixels as annotated, got {rgb.shape[1]}x{rgb.shape[0]}"
            )
        return rgb

    def mask(self, index: int) -> np.ndarray:
        """bool (H, W) of one region. Raises DataError naming photo and region."""
        region = self.regions[index]
        try:
            return region.segmentation.decode((self.height, self.width))
        except (DataError, *BAD_ENTRY) as exc:
            raise DataError(
                f"{self._where}, region {index} ({region.name or 'no name'}): expected a mask of "
                f"{self.width}x{self.height} pixels: {exc if isinstance(exc, DataError) else repr(exc)}"
            ) from exc

    def masks(self) -> list[np.ndarray]:
        """bool (H, W) of every region. Raises DataError naming photo and region."""
        return [self.mask(index) for index in range(len(self.regions))]

    @property
    def _where(self) -> str:
        return str(self.path) if self.path.name == self.photo.name else f"{self.path}: {self.photo.name}"


def clickable(regions: Sequence[Region], masks: Sequence[np.ndarray], min_area: int = MIN_AREA) -> list[int]:
    """Indices of the regions that evaluation, the gate and the ranker's training click.

    Somebody drew their outline, and their mask has at least `min_area` pixels. masks: bool (H, W), of every region.
    """
    pairs = enumerate(zip(regions, masks, strict=True))
    return [i for i, (region, mask) in pairs if not region.box_only and np.count_nonzero(mask) >= min_area]


@dataclass(frozen=True, eq=False)
class Dataset:
    """What was read from a source or folder."""

    samples: Sequence[Sample]
    skipped: tuple[str, ...]  #: a line for whatever was left out, with the reason
    photos: int | None = None  #: listed in the source, usable or not; None where nothing lists them
    #: Every label of each source, those on missing photos too; empty where that takes opening every photo.
    labels: Mapping[str, frozenset[Label]] = field(default_factory=dict)
    masks_lost: int = 0  #: masks that the source has and no sample; `skipped` says why


def by_source(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each source, in their order."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.source, []).append(sample)
    return groups
