"""What a file says its photo is called -> the photo on disk. One rule for every reader.

Others write paths of their own machine, with separators of either kind, addresses of a server, Label Studio's upload
(`/data/upload/3/1a832500-cat.jpg`), its local files (`?d=pics/cat.jpg`), its cloud storage (`?fileuri=BASE64`). So a
photo is looked for, below a folder, by

    the name as it stands
    the path in it, and ever shorter ends of that path: pics/may/cat.jpg, may/cat.jpg, cat.jpg
    the same without the eight digits that Label Studio puts before the name of an upload
    the bare name in the folder `images`

Names are compared in Unicode's composed form (NFC), since some disks hold the other one. A shorter end may be the name
of several photos: then none of them gets it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from semsam_model.errors import DataError

#: How the names of photos end that the readers read and the exports write.
PHOTO_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "mpo")

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
_NO_PIECES = ("", ".", "..")
_Key = tuple[str, ...]  #: server and path that a name stands for


class PhotoFolder:
    """The photos that one file of annotations names, looked for in one folder."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """names: all that the file says its photos are called: of two that mean one photo, one may be wrong."""
        self._folder = folder
        self._listed = cache(_composed_names)
        self._found: dict[str, Path] = {}
        by_path: dict[Path, dict[_Key, list[str]]] = {}
        for name in dict.fromkeys(names):
            path, exact = self._find(name)
            if path is not None:
                self._found[name] = path
                key: _Key = () if exact else next(_paths(name), ("", name))
                by_path.setdefault(path.resolve(), {}).setdefault(key, []).append(name)
        #: Names that are left out, and others that would be the same photo.
        self._contested: dict[str, str] = {}
        for keys in by_path.values():
            guessed = {key: spelled for key, spelled in keys.items() if key}
            if len(keys) > 1:
                for key, spelled in guessed.items():
                    other = next(spelling[0] for rival, spelling in keys.items() if rival != key)
                    self._contested |= dict.fromkeys(spelled, other)

    def path(self, name: str) -> Path:
        """Where the photo lies. Raises DataError where it is not there, or cannot be told from another."""
        if name in self._contested:
            raise DataError(
                f"{name[:200]!r} and {self._contested[name][:200]!r} would both be {self._found[name]}; "
                "put each photo where its own name says"
            )
        if name not in self._found:
            raise DataError(f"no such photo under {self._folder}")
        return self._found[name]

    def _find(self, name: str) -> tuple[Path | None, bool]:
        """The photo, and whether its name is exactly that."""
        with contextlib.suppress(OSError, ValueError):  # a name that is too long, or holds a NUL
            if name and (self._folder / name).is_file():
                return self._folder / name, True
        for pieces in _places(name):
            with contextlib.suppress(OSError, ValueError):
                path = self._there(pieces)
                if path is not None:
                    return path, False
        return None, False

    def _there(self, pieces: Sequence[str]) -> Path | None:
        path = self._folder.joinpath(*pieces)
        if path.is_file():
            return path
        if all(map(str.isascii, pieces)):
            return None
        path = self._folder
        for piece in pieces:
            own = self._listed(path).get(unicodedata.normalize("NFC", piece))
            if own is None:
                return None
            path /= own
        return path if path.is_file() else None


def _composed_names(folder: Path) -> dict[str, str]:
    """What lies in a folder: name in composed form -> name on disk."""
    if not folder.is_dir():
        return {}
    return {unicodedata.normalize("NFC", entry.name): entry.name for entry in folder.iterdir()}


def _places(name: str) -> Iterator[list[str]]:
    """Paths below the folder to look at, the most telling first."""
    paths = [list(path[1:]) for path in _paths(name)]
    for path in paths:
        yield from (path[start:] for start in range(len(path)))
    short = [[*path[:-1], _UPLOAD_PREFIX.sub("", path[-1])] for path in paths if _UPLOAD_PREFIX.match(path[-1])]
    for path in short:
        yield from (path[start:] for start in range(len(path)))
    yield from (["images", path[-1]] for path in (*paths, *short))


def _paths(name: str) -> Iterator[_Key]:
    """The server ("" for none) and the pieces of the path that a name may stand for: as an address, then as it is."""
    plain = name.replace("\\", "/")
    with contextlib.suppress(ValueError):  # brackets that are no IPv6 address
        parts = urlsplit(plain)
        query = parse_qs(parts.query)
        if "fileuri" in query:
            inner = _decoded(query["fileuri"][0])
            if inner and "fileuri=" not in inner:
                yield from _paths(inner)
        stored = query.get("d", [unquote(parts.path)])[0].replace("\\", "/")
        if pieces := [piece for piece in stored.split("/") if piece not in _NO_PIECES]:
            yield parts.netloc, *pieces
    if pieces := [piece for piece in plain.split("/") if piece not in _NO_PIECES]:
        yield "", *pieces


def _decoded(text: str) -> str | None:
    """Label Studio's `fileuri`: an address in base64."""
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    return None


def original_name(address: str | None) -> str | None:
    """The photo's own file name, of a task's address for it; None where the address has none, as a data URL."""
    if not address or address[:5].lower() == "data:":
        return None
    path = next(_paths(address), None)
    if path is None:
        return None
    return _UPLOAD_PREFIX.sub("", path[-1]) if "upload" in path else path[-1]


def is_photo_name(text: str) -> bool:
    """Whether a text is the path or address of a photo, by the way its name ends."""
    if text[:11].lower() == "data:image/":
        return True
    return any(path[-1].lower().endswith(tuple(f".{suffix}" for suffix in PHOTO_SUFFIXES)) for path in _paths(text))
