"""A folder in the layout of Pascal VOC's segmentation -> samples.

    JPEGImages/NAME.jpg          photos, of any format that is read; NAME may have folders before it
    SegmentationClass/NAME.png   a colour or number a pixel: its class; 0 is background, 255 (void) nothing
    SegmentationObject/NAME.png  the same for objects, where it is there; else all pixels of one class are one region
    labelmap.txt                 `name:R,G,B::` a line, as CVAT writes it; the 21 classes of VOC where it is not there

An object has the class of most of its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from semsam_model.data.readers.entries import AS_WRITTEN, ReadOptions, malformed, renamed, require_folder
from semsam_model.data.readers.losses import Losses
from semsam_model.data.readers.photo_names import PHOTO_SUFFIXES
from semsam_model.data.samples import FULL_SUPERVISION, Annotation, Dataset, PhotoFile, Region, Sample, Supervision
from semsam_model.errors import DataError
from semsam_model.masks.geometry import Size

_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True, eq=False)
class ColourMask:
    """The pixels of one colour of a PNG, as R + 256 G + 65536 B."""

    path: Path
    colour: int

    def decode(self, size: Size) -> np.ndarray:
        colours = read_colours(self.path)
        if colours.shape != size:
            raise DataError(
                f"{self.path}: expected {size[1]}x{size[0]} pixels, got {colours.shape[1]}x{colours.shape[0]}"
            )
        mask: np.ndarray = colours == self.colour
        return mask


@lru_cache(maxsize=4)  # a photo's masks are asked for one after another
def read_colours(path: Path) -> np.ndarray:
    """int32 (H, W) of colours; a number of a PNG without a palette stands for VOC's colour of it. Raises DataError."""
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "I", "I;16", "1"):
                numbers = np.asarray(image).astype(np.int32)
                return np.array([voc_colour(number) for number in range(256)], np.int32)[numbers.clip(0, 255)]
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path}: expected a readable PNG: {exc}") from exc
    return pixels.astype(np.int32) @ np.array((1, 256, 65536), np.int32)


def voc_colour(number: int) -> int:
    """VOC's colour of a number: its bits, dealt to red, green and blue in turn, high bits first."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0] + 256 * channels[1] + 65536 * channels[2]


VOID = voc_colour(255)


def read_voc(
    folder: Path,
    *,
    source: str | None = None,
    supervision: Supervision = FULL_SUPERVISION,
    options: ReadOptions = AS_WRITTEN,
) -> Dataset:
    """A folder in the layout above. What cannot be read is skipped and named. Raises DataError."""
    for name, what in (("SegmentationClass", "PNGs of classes"), ("JPEGImages", "photos")):
        require_folder(folder / name, what, folder)
    names = _names(folder / "labelmap.txt")
    losses, samples = Losses(folder), list[Sample]()
    photos = dict[Path, list[Path]]()  #: by their place in the folder, without the suffix
    for photo in sorted((folder / "JPEGImages").rglob("*")):
        if _is_photo(photo):
            photos.setdefault(photo.relative_to(folder / "JPEGImages").with_suffix(""), []).append(photo)
    files = sorted((folder / "SegmentationClass").rglob("*.png"))
    for file in files:
        place = file.relative_to(folder / "SegmentationClass")
        count = 1
        try:
            annotation = _annotation(file, folder / "SegmentationObject" / place, names, options, losses)
            count = len(annotation.regions)
            found = photos.get(place.with_suffix(""), [])
            if len(found) != 1:
                raise DataError(f"expected one photo of its name in JPEGImages, found {len(found) or 'none'}")
            size = PhotoFile(found[0]).size()
            if size != (annotation.height, annotation.width):
                raise DataError(f"{annotation.width}x{annotation.height} pixels, its photo {size[1]}x{size[0]}")
        except DataError as exc:
            losses.add("file", place, exc, count)
            continue
        if annotation.regions or options.evaluation:
            samples.append(Sample(PhotoFile(found[0]), source or folder.name, annotation, supervision))
        else:
            losses.add("file", file.name, "nothing is on its photo: left out of training", 0)
    return Dataset(tuple(samples), losses.lines, len(files), masks_lost=losses.masks)


def _is_photo(file: Path) -> bool:
    return file.suffix[1:].lower() in PHOTO_SUFFIXES


def _names(labelmap: Path) -> dict[int, str]:
    """Colour -> name, without the background."""
    if not labelmap.is_file():
        return {voc_colour(number): name for number, name in enumerate(_VOC) if number}
    found = {}
    with malformed(labelmap, "lines name:R,G,B::"):
        for line in labelmap.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            name, colour, *_ = line.split(":")
            red, green, blue = map(int, colour.split(","))
            found[red + 256 * green + 65536 * blue] = name
    return {colour: name for colour, name in found.items() if colour}


def _annotation(
    classes: Path, objects: Path, names: dict[int, str], options: ReadOptions, losses: Losses
) -> Annotation:
    kinds = read_colours(classes)
    things, path = (read_colours(objects), objects) if objects.is_file() else (kinds, classes)
    if things.shape != kinds.shape:
        raise DataError(
            f"{kinds.shape[1]}x{kinds.shape[0]} pixels, that of objects {things.shape[1]}x{things.shape[0]}"
        )
    regions = []
    for colour in np.unique(things).tolist():
        if colour in (0, VOID):
            continue
        inside = kinds[things == colour]
        found, counts = np.unique(inside[(inside != 0) & (inside != VOID)], return_counts=True)
        kind = int(found[counts.argmax()]) if found.size else None
        if kind not in names:
            losses.add("file", classes.name, "a colour that is no class's: its mask is read without a name", 0)
        name = None if kind is None or kind not in names else renamed(options.names, names[kind])
        regions.append(Region(ColourMask(path, colour), options.granularity or "object", name))
    height, width = kinds.shape
    return Annotation(width, height, tuple(regions), options.partial)
