"""The bytes of photos of corrections, by their digests, in a folder or in an object store; nobody else opens them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from backend.errors import LabelStudioError, NotFound, PhotosUnavailable
from backend.label_studio.object_store import ObjectStores
from backend.outages import Outages
from backend.settings import Settings
from semsam_model.errors import Stopped
from semsam_model.files import atomic_write
from semsam_model.types import ShouldStop

log = logging.getLogger(__name__)

AGAIN_S = 5.0  #: seconds after which a job asks an object store again that was away


class PhotoArchive:
    """Original photo files by the digest of their bytes: <first two digits>/<sha256>, there whole or not at all.

    Safe to use from several threads and processes. Of an object store every method may raise PhotosUnavailable.
    """

    def __init__(self, root: Path | ObjectFolder) -> None:
        """root: a folder, made when the first file is kept, or one in an object store."""
        self._files = _Folder(root) if isinstance(root, Path) else root

    @property
    def in_folder(self) -> bool:
        """Whether photos have a `path`."""
        return isinstance(self._files, _Folder)

    def path(self, sha256: str) -> Path:
        """Where the file with this digest lies in the folder, or would lie. Raises ValueError for what is no digest."""
        assert isinstance(self._files, _Folder), "photos in an object store have no path"
        return self._files.root / _name(sha256)

    def has(self, sha256: str) -> bool:
        """Whether the file is kept. Raises ValueError for what is no digest."""
        return self._files.has(_name(sha256))

    def find(self, sha256: str) -> BinaryIO | None:
        """The file, to be read and closed; None where it is not kept. Raises ValueError for what is no digest; OSError.

        One from an object store is in memory, at most `max_image_bytes`: ImageTooLarge is raised for a larger one.
        """
        return self._files.find(_name(sha256))

    def keep(self, data: bytes) -> str:
        """Store a file's bytes, synced to disk, and give their digest. Raises OSError when the disk takes no more."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = _name(sha256)
        if not self._files.has(name):
            self._files.write(name, data)
        return sha256

    def clear_away(self, older_than: timedelta = timedelta(hours=1)) -> int:
        """Remove what killed processes left half written, if nobody has written to it for so long; how many files.

        In an object store nothing is.
        """
        if not isinstance(self._files, _Folder):
            return 0
        before, removed = time.time() - older_than.total_seconds(), 0
        for path in self._files.root.glob("*/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
        return removed

    def at_hand(self, folder: Path, should_stop: ShouldStop) -> PhotoArchive:
        """The same photos as files: this archive, or one in `folder`, into which `has` copies what is asked for.

        The copies are whoever's who made the folder. While the object store is away, `has` waits; it raises Stopped
        when `should_stop` says so.
        """
        return self if self.in_folder else _Copies(folder, self, should_stop)


class ObjectFolder:
    """A folder in an object store."""

    def __init__(self, address: str, settings: Settings) -> None:
        """address: s3://bucket/folder, ..., as the setting `photo_store`."""
        self._address = address
        self._stores = ObjectStores(settings)

    def has(self, name: str) -> bool:
        try:
            return self._stores.has(f"{self._address}/{name}")
        except LabelStudioError as error:
            raise _unavailable(error) from None

    def find(self, name: str) -> BinaryIO | None:
        try:
            return io.BytesIO(self._stores.read(f"{self._address}/{name}"))
        except NotFound:
            return None
        except LabelStudioError as error:
            raise _unavailable(error) from None

    def write(self, name: str, data: bytes) -> None:
        try:
            self._stores.write(f"{self._address}/{name}", data)
        except LabelStudioError as error:
            raise _unavailable(error) from None


class _Folder:
    """A folder on a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def find(self, name: str) -> BinaryIO | None:
        try:
            return (self.root / name).open("rb")
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with atomic_write(self.root / name, shared=True, sync=True, mode=0o600) as temporary:
            temporary.write_bytes(data)


class _Copies(PhotoArchive):
    """A folder with copies of those photos of another archive that were asked for."""

    def __init__(self, root: Path, source: PhotoArchive, should_stop: ShouldStop) -> None:
        super().__init__(root)
        self._source, self._should_stop, self._outages = source, should_stop, Outages(log)

    def has(self, sha256: str) -> bool:
        if super().has(sha256):
            return True
        while not self._should_stop():
            try:
                found = self._source.find(sha256)
            except PhotosUnavailable as error:
                self._outages.failed("photos", f"{error}; waiting for it")
                time.sleep(AGAIN_S)
                continue
            self._outages.works("photos", "photos can be read again")
            if found is None:
                return False
            with found:
                return self.keep(found.read()) == sha256
        raise Stopped("copying photos ended early")


def open_photos(settings: Settings) -> PhotoArchive:
    """The archive that the settings name."""
    address = settings.photo_store
    if address is None or address.startswith("file://"):
        return PhotoArchive(settings.data_dir / "photos" if address is None else Path(address.removeprefix("file://")))
    return PhotoArchive(ObjectFolder(address, settings))


def _name(sha256: str) -> str:
    """Of the file with this digest. Raises ValueError for what is no digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"photo {sha256[:80]!r}: expected 64 hexadecimal digits")
    return f"{sha256[:2]}/{sha256}"


def _unavailable(error: LabelStudioError) -> PhotosUnavailable:
    return PhotosUnavailable(f"photo_store: {error}")
