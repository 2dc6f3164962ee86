"""A mixture packed into plain tars of limited size, to be moved and read elsewhere: `semsam data pack`.

    OUT/mixture.yaml               the same sources with their weights and feeds, of kind sa1b; --root is OUT
    OUT/SOURCE/00000.tar, ...      for each photo N.webp (or as it was) and N.json

The JSON is that of SA-1B, and more: `partial` of the image; `granularity`, `name`, `whole`, `parent` (a place in the
list), `box_only` and, of masks that a model added, `added` of an annotation. `readers.sa1b` reads it. One photo is held
at a time.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from semsam_model.data.added_masks import ADDED_WEIGHT
from semsam_model.data.mixture import Mixture
from semsam_model.data.readers.photo_names import PHOTO_SUFFIXES
from semsam_model.data.readers.sa1b import TarMember
from semsam_model.data.samples import Annotation, CocoMask, PhotoFile, Sample
from semsam_model.errors import ConfigError, DataError
from semsam_model.files import named, write_bytes

_QUALITY = 92  #: WebP quality of a photo that is resized
_NAME = "{:08d}.{}"
#: Fields of an annotation beside its mask.
_FIELDS = ("granularity", "name", "whole", "parent", "box_only")


@dataclass(frozen=True)
class PackedMixture:
    """What `pack_mixture` wrote."""

    mixture: Path  #: the YAML file to train from
    photos: int
    shards: tuple[Path, ...]
    skipped: tuple[str, ...]  #: what could not be read or is larger than a shard, and why


def pack_mixture(
    mixture: Mixture,
    out: Path,
    *,
    shard_bytes: int,
    longest_side: int | None = None,
    on_photo: Callable[[], None] = lambda: None,
) -> PackedMixture:
    """Write every readable photo with its masks; no tar is larger than `shard_bytes`.

    Photos keep their bytes, so what is read back is equal pixel for pixel, unless their longer side is above
    `longest_side` pixels: then photo and masks are resized. Raises ConfigError when OUT holds something already,
    DataError when a source has no readable photo.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: expected an empty folder for the shards")
    shards, skipped, photos = list[Path](), list(mixture.skipped), 0
    for source, dataset in mixture.datasets.items():
        with _Shards(out / source, shard_bytes) as tars:
            for index in range(len(dataset.samples)):
                try:
                    tars.add(*photo_and_json(dataset.samples[index], longest_side))
                except DataError as exc:
                    skipped.append(str(exc))
                on_photo()
        if not tars.photos:
            raise DataError(f"source {source!r}: no readable photo; {skipped[-3:]}")
        photos += tars.photos
        shards += tars.paths
    sources = [
        {
            "name": name,
            "kind": "sa1b",
            "path": name,
            "weight": float(mixture.shares[name]),
            "feeds": [loss for loss, used in asdict(dataset.samples[0].supervision).items() if used],
            **({"turns": True} if name in mixture.turning else {}),
            **({} if mixture.added_weight(name) == ADDED_WEIGHT else {"added_weight": mixture.added_weight(name)}),
        }
        for name, dataset in mixture.datasets.items()
    ]
    path = out / "mixture.yaml"
    write_bytes(path, yaml.safe_dump({"sources": sources}, sort_keys=False).encode())
    return PackedMixture(path, photos, tuple(shards), tuple(skipped))


class _Shards:
    """Tars of one source; the next one begins where a photo would not fit any more."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.paths: list[Path] = []
        self.photos = 0
        self.tar: tarfile.TarFile | None = None

    def __enter__(self) -> _Shards:
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.tar is not None:
            self.tar.close()

    def add(self, photo: bytes, suffix: str, annotation: bytes, where: str) -> None:
        """One photo and its JSON. Raises DataError when they are larger than a tar may be."""
        blocks = sum(1 + -(-len(content) // tarfile.BLOCKSIZE) for content in (photo, annotation))
        size, end = blocks * tarfile.BLOCKSIZE, tarfile.RECORDSIZE  # a tar is filled up to whole records
        if size + end > self.limit:
            raise DataError(f"{where}: expected at most {self.limit} bytes with its masks, it takes {size + end}")
        if self.tar is None or self.tar.offset + size + end > self.limit:
            if self.tar is not None:
                self.tar.close()
            self.paths.append(self.folder / f"{len(self.paths):05d}.tar")
            self.tar = tarfile.open(self.paths[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 closed above
        for content, ending in ((photo, suffix), (annotation, "json")):
            member = tarfile.TarInfo(_NAME.format(self.photos, ending))
            member.size = len(content)
            with named(self.paths[-1]):
                self.tar.addfile(member, io.BytesIO(content))
        self.tar.members.clear()  # type: ignore[attr-defined]  # else every header stays
        self.photos += 1


def photo_and_json(sample: Sample, longest_side: int | None) -> tuple[bytes, str, bytes, str]:
    """Photo, its suffix, its JSON, and a name for messages. Raises DataError when any of it cannot be read."""
    rgb = sample.image()
    masks: Sequence[np.ndarray] = sample.masks()
    scale = 1.0 if longest_side is None else longest_side / max(rgb.shape[:2])
    suffix = Path(sample.photo.name).suffix.lstrip(".").lower()
    if scale < 1:
        size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
        photo = _webp(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
        levels = [mask.view(np.uint8) * np.uint8(255) for mask in masks]
        masks = [cv2.resize(level, size, interpolation=cv2.INTER_AREA) > 127 for level in levels]
        suffix = "webp"
    elif isinstance(sample.photo, (PhotoFile, TarMember)) and suffix in PHOTO_SUFFIXES:
        photo = sample.photo.content()
    else:
        photo, suffix = lossless(rgb), "webp"
    return photo, suffix, _json(sample.annotation, masks), f"{sample.path}: {sample.photo.name}"


def lossless(rgb: np.ndarray) -> bytes:
    """WebP of uint8 RGB (H, W, 3), equal to the pixel."""
    return _webp(rgb, lossless=True)


def _webp(rgb: np.ndarray, *, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "WEBP", lossless=lossless, quality=_QUALITY)
    return file.getvalue()


def _json(annotation: Annotation, masks: Sequence[np.ndarray]) -> bytes:
    height, width = masks[0].shape if masks else (annotation.height, annotation.width)
    regions = [
        {
            "segmentation": CocoMask.of(mask).segmentation,
            **{key: getattr(region, key) for key in _FIELDS},
            **({"added": True} if region.added else {}),
        }
        for region, mask in zip(annotation.regions, masks, strict=True)
    ]
    image = {"width": width, "height": height, "partial": annotation.partial}
    return json.dumps({"image": image, "annotations": regions}, ensure_ascii=False).encode()
