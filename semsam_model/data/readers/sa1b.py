"""SA-1B -> samples: `sa_N.jpg` beside `sa_N.json`, in a folder, in its subfolders, or in plain tars.

Only names (and positions in tars) are kept in memory, in flat arrays; a photo's JSON is opened when its regions are
asked for and is not kept, so that memory does not grow while a dataset is read. The masks have neither names nor
parents and are of every size: their granularity is `region`. The tars of `data.shards` have the same form, and their
masks keep names, parents and granularities.
"""

from __future__ import annotations

import operator
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

import numpy as np

from semsam_model.data.lazy_samples import LazySamples, chain
from semsam_model.data.readers.entries import malformed, parse_json
from semsam_model.data.readers.photo_names import PHOTO_SUFFIXES
from semsam_model.data.samples import (
    FULL_SUPERVISION,
    Annotation,
    CocoMask,
    Dataset,
    Photo,
    PhotoFile,
    Region,
    Sample,
    Supervision,
    decode_photo,
)
from semsam_model.errors import DataError
from semsam_model.types import GRANULARITIES


@dataclass(frozen=True)
class _Source:
    """What all samples of a source share."""

    name: str
    supervision: Supervision
    added: bool  #: with the masks that a model added

    def sample(self, photo: Photo, read: Callable[[], bytes], where: str) -> Sample:
        """A photo whose JSON is read, and named in messages, so."""
        return Sample(photo, self.name, partial(_annotation, read, where, self.added), self.supervision)


def read_sa1b(
    path: Path, *, source: str | None = None, supervision: Supervision = FULL_SUPERVISION, added: bool = False
) -> Dataset:
    """A folder (with subfolders and tars in it) or one tar, in order of their names. Only names are read.

    added: with the masks that are marked as added by a model, and left out otherwise.
    A photo without its JSON, a JSON without its photo and a torn tar are named in `skipped`. What is wrong inside a
    photo or JSON shows when it is read, as DataError. Raises DataError when there is nothing at all.
    """
    skipped = list[str]()
    of_source = _Source(source or path.stem, supervision, added)
    if path.is_dir():
        parts = list(_parts(path, of_source, skipped))
    elif path.is_file():
        parts = [_read_tar(path, of_source, skipped)]
    else:
        raise DataError(f"{path}: expected a folder or a tar of SA-1B, found none")
    samples = chain(parts)
    if not samples:
        raise DataError(f"{path}: expected photos beside JSON files of the same name, found none; {skipped[:3]}")
    return Dataset(samples, tuple(skipped))


def _parts(folder: Path, of_source: _Source, skipped: list[str]) -> Iterator[LazySamples]:
    yield _read_folder(folder, of_source, skipped)
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir() or entry.name.endswith(".tar"))
    for name in inner:
        if name.endswith(".tar"):
            yield _read_tar(folder / name, of_source, skipped)
        else:
            yield from _parts(folder / name, of_source, skipped)


def _names(names: list[str]) -> np.ndarray:
    """Names in one flat array, of the longest one's width."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


# -------------------------------------------------------------------------------------------------------------- folders


def _read_folder(folder: Path, of_source: _Source, skipped: list[str]) -> LazySamples:
    photos, known = dict[str, str](), set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.rpartition(".")
            if suffix == "json":
                known.add(stem)
            elif suffix.lower() in PHOTO_SUFFIXES:
                photos[stem] = entry.name
    skipped += (f"{folder / photos[stem]}: no {stem}.json beside it" for stem in sorted(photos.keys() - known))
    skipped += (f"{folder / stem}.json: no photo beside it" for stem in sorted(known - photos.keys()))
    names = _names(sorted(photos[stem] for stem in photos.keys() & known))
    return LazySamples(len(names), partial(_from_folder, folder, names, of_source))


def _from_folder(folder: Path, names: np.ndarray, of_source: _Source, index: int) -> Sample:
    path = folder / os.fsdecode(names[index])
    annotation = path.with_suffix(".json")
    return of_source.sample(PhotoFile(path), annotation.read_bytes, str(annotation))


def _annotation(read: Callable[[], bytes], where: str, added: bool) -> Annotation:
    """added: with the masks that a model added, which come last."""
    with malformed(where, "the annotation of an SA-1B photo"):
        parsed = parse_json(read(), dict)
        image, entries = parsed["image"], parsed["annotations"]
        if not added:
            entries = [entry for entry in entries if not entry.get("added")]
        regions = tuple(_region(entry, len(entries)) for entry in entries)
        return Annotation(int(image["width"]), int(image["height"]), regions, bool(image.get("partial", False)))


def _region(entry: dict[str, Any], count: int) -> Region:
    granularity, name, parent = entry.get("granularity", "region"), entry.get("name"), entry.get("parent")
    whole = entry.get("whole")
    if granularity not in GRANULARITIES or not all(isinstance(value, (str, NoneType)) for value in (name, whole)):
        raise ValueError(f"granularity {granularity!r}, name {name!r}, whole {whole!r}")
    if parent is not None and not 0 <= operator.index(parent) < count:
        raise ValueError(f"parent {parent!r} of {count} regions")
    box_only = bool(entry.get("box_only", False))
    added = bool(entry.get("added", False))
    return Region(CocoMask(entry["segmentation"]), granularity, name, parent, box_only, whole=whole, added=added)


# ----------------------------------------------------------------------------------------------------------------- tars


@dataclass(frozen=True)
class TarMember:
    """A photo, or its JSON, inside an uncompressed tar."""

    path: Path
    name: str
    start: int  #: bytes from the tar's start
    length: int

    @property
    def where(self) -> str:
        return f"{self.path}: {self.name}"

    def content(self) -> bytes:
        """The file as it is. Raises DataError when the tar cannot be read or is cut short."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.length)
        except OSError as exc:
            raise DataError(f"{self.where}: cannot be read: {exc}") from exc
        if len(content) != self.length:
            raise DataError(f"{self.where}: expected {self.length} bytes, the tar ends after {len(content)}")
        return content

    def pixels(self) -> np.ndarray:
        return decode_photo(self.content(), self.where)


def _read_tar(path: Path, of_source: _Source, skipped: list[str]) -> LazySamples:
    photos, known = dict[str, tuple[str, int, int]](), dict[str, tuple[int, int]]()
    try:
        end = path.stat().st_size
        # Plain tars only: in a compressed one nothing can be read without all that comes before it.
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else every header stays
                stem, _, suffix = member.name.rpartition(".")
                if not member.isfile() or member.offset_data + member.size > end:
                    continue
                if suffix == "json":
                    known[stem] = member.offset_data, member.size
                elif suffix.lower() in PHOTO_SUFFIXES:
                    photos[stem] = member.name, member.offset_data, member.size
            # tarfile takes a tear between two members, or noise, for the end; the real one is a block of zeros.
            last = tar.offset
        if TarMember(path, "its end", last, tarfile.BLOCKSIZE).content().strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {last}")
    except (OSError, DataError, tarfile.TarError) as exc:
        skipped.append(f"{path}: expected an uncompressed tar, whole; {len(photos)} photos came before: {exc}")
    skipped += (f"{path}: {photos[stem][0]}: no {stem}.json with it" for stem in sorted(photos.keys() - known.keys()))
    skipped += (f"{path}: {stem}.json: no photo with it" for stem in sorted(known.keys() - photos.keys()))
    stems = sorted(photos.keys() & known.keys())
    names = _names([PurePosixPath(photos[stem][0]).name for stem in stems])
    spans = np.array([(*photos[stem][1:], *known[stem]) for stem in stems], np.int64).reshape(-1, 4)
    return LazySamples(len(stems), partial(_from_tar, path, names, spans, of_source))


def _from_tar(path: Path, names: np.ndarray, spans: np.ndarray, of_source: _Source, index: int) -> Sample:
    """spans: int64 (n, 4), start and length of each photo and of its JSON in the tar, bytes."""
    name = os.fsdecode(names[index])
    start, length, json_start, json_length = spans[index].tolist()
    annotation = TarMember(path, name.rpartition(".")[0] + ".json", json_start, json_length)
    return of_source.sample(TarMember(path, name, start, length), annotation.content, annotation.where)
