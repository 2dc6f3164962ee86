"""Annotated photographs as values: one `Sample` a photo, whatever it was read from, and long rows of them.

Pixels, masks and, for large sources, annotations are read when asked for, so a sample costs little to name. Frame:
pixels of the EXIF-oriented photo.
"""

from __future__ import annotations

import io
import operator
import pickle
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from semsam_model.data.pixels import decode_rgb
from semsam_model.errors import ConfigError, DataError, ImageError
from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import Size, crop_mask
from semsam_model.types import Label

MIN_AREA = 64  #: photo pixels of a mask that is worth a click, see `clickable`

#: What a mask can raise besides DataError while it is read from someone else's file.
BAD_ENTRY = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class Segmentation(Protocol):
    """Where a mask comes from."""

    def decode(self, size: Size) -> np.ndarray:
        """bool (H, W) of a photo of `size` (H, W). Raises DataError, or one of BAD_ENTRY for a malformed entry."""


class Photo(Protocol):
    """Where pixels come from."""

    @property
    def path(self) -> Path:
        """The file they lie in, or a name in the form of one."""

    @property
    def name(self) -> str:
        """The photo's own file name."""

    def pixels(self) -> np.ndarray:
        """uint8 RGB (H, W, 3). Raises DataError naming the file."""


@dataclass(frozen=True)
class Feeds:
    """Which losses a source teaches."""

    masks: bool = True
    boxes: bool = True
    iou: bool = True
    object_names: bool = True
    part_names: bool = True

    @property
    def names(self) -> bool:
        return self.object_names or self.part_names

    def name_of(self, granularity: str) -> bool:
        """Whether a region of this granularity teaches its name; a named region ("sky") is a whole of its own."""
        return self.part_names if granularity == "part" else self.object_names

    @classmethod
    def of(cls, names: Iterable[str]) -> Feeds:
        """From the names of the losses fed. Raises ConfigError for another name, and when there is none."""
        known, given = {f.name for f in fields(cls)}, list(names)
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ConfigError(f"feeds: expected some of {', '.join(sorted(known))}, got {', '.join(given) or 'none'}")
        return cls(**{name: name in given for name in known})


EVERY_LOSS = Feeds()


@dataclass(frozen=True, eq=False)
class Region:
    """One annotated mask of a sample."""

    segmentation: Segmentation
    granularity: str  #: one of GRANULARITIES
    name: str | None  #: of the object or part, as the source spells it
    parent: int | None = None  #: index, among the sample's regions, of the enclosing one
    box_only: bool = False  #: nobody drew its outline: the mask is a filled rectangle
    weight: float = 1.0  #: how often fine-tuning asks for it beside others, more than 0
    crowd: bool = False  #: several things in one mask, not told apart; only where a source is read for evaluation
    area: float | None = None  #: pixels, as the source says it; only where a source is read for evaluation
    whole: str | None = None  #: of a part, as `Label.whole`

    @property
    def label(self) -> Label | None:
        """None without a name."""
        return None if self.name is None else Label(self.granularity, self.name, self.whole)


@dataclass(frozen=True)
class Checked:
    """Of a photo that was annotated for some labels alone, as those of LVIS and PACO: which, beside those on it."""

    absent: frozenset[Label]  #: looked for, and not there
    incomplete: frozenset[Label]  #: there, but not every one of them is annotated


@dataclass(frozen=True, eq=False)
class Annotation:
    """What is known about one photo."""

    width: int
    height: int
    regions: tuple[Region, ...]
    partial: bool = False  #: not everything visible is annotated
    checked: Checked | None = None  #: None: every label of the source; only where a source is read for evaluation


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo and its annotation; what is not held is read when asked for."""

    photo: Photo
    source: str
    annotated: Annotation | Callable[[], Annotation]  #: callable: read at the first use; raises DataError
    feeds: Feeds = EVERY_LOSS

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


# --------------------------------------------------------------------------------------------------- photos and masks


def read_rgb(data: bytes, where: str) -> np.ndarray:
    """A picture file -> uint8 RGB (H, W, 3), as clicks see it. Raises DataError that begins with `where`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode_rgb(image, data)
    except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{where}: expected a readable image: {exc}") from exc


@dataclass(frozen=True)
class PhotoFile:
    """A picture file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def content(self) -> bytes:
        """The file as it is. Raises OSError."""
        return self.path.read_bytes()

    def pixels(self) -> np.ndarray:
        try:
            data = self.content()
        except OSError as exc:
            raise DataError(f"{self.path}: expected a readable image: {exc}") from exc
        return read_rgb(data, str(self.path))


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


# -------------------------------------------------------------------------------------------------------- many samples


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source or folder gave: samples, and what was left out and why."""

    samples: Sequence[Sample]
    skipped: tuple[str, ...]
    photos: int | None = None  #: listed, usable or not; None where nothing lists them
    #: What each source calls things anywhere in its file, on missing photos too; empty where that is not known unread.
    labels: Mapping[str, frozenset[Label]] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, int]:
        """Photos a source."""
        counts: dict[str, int] = {}
        for sample in self.samples:
            counts[sample.source] = counts.get(sample.source, 0) + 1
        return counts


class LazySamples(Sequence[Sample]):
    """`count` samples, each made by `make(index)` when asked for and not kept. Workers may get `make` by pickle."""

    def __init__(self, count: int, make: Callable[[int], Sample]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> LazySamples: ...
    def __getitem__(self, index: int | slice) -> Sample | LazySamples:
        if isinstance(index, slice):
            chosen = range(self._count)[index]
            return LazySamples(len(chosen), partial(_chosen, self._make, chosen))
        place = operator.index(index)
        place += self._count if place < 0 else 0
        if not 0 <= place < self._count:
            raise IndexError(index)
        return self._make(place)


def _chosen(make: Callable[[int], Sample], places: range, index: int) -> Sample:
    return make(places[index])


def pack(samples: Iterable[Sample]) -> LazySamples:
    """The same samples, serialised: in one block of memory that worker processes share.

    Polygons as Python numbers take several times the bytes, and looking at them in a worker copies their pages.
    """
    block, ends = bytearray(), array("q", [0])
    for sample in samples:
        block += pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL)
        ends.append(len(block))
    return LazySamples(len(ends) - 1, partial(_unpacked, np.frombuffer(block, np.uint8), np.frombuffer(ends, np.int64)))


def _unpacked(block: np.ndarray, ends: np.ndarray, index: int) -> Sample:
    return pickle.loads(block[ends[index] : ends[index + 1]].data)


def chain(parts: Sequence[Sequence[Sample]]) -> LazySamples:
    """The parts one after another."""
    ends = np.cumsum([0, *map(len, parts)])
    return LazySamples(int(ends[-1]), partial(_linked, tuple(parts), ends))


def _linked(parts: tuple[Sequence[Sample], ...], ends: np.ndarray, index: int) -> Sample:
    part = int(np.searchsorted(ends, index, side="right")) - 1
    return parts[part][index - int(ends[part])]
