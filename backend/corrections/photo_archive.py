"""Original photo files by the digest of their bytes: what training and export read, without Label Studio.

`photos/<first two digits>/<sha256>` in the data folder. A file is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from backend.settings import Settings
from semsam_model.files import replacing


class PhotoArchive:
    """A folder of photo files. Safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        """root: made when the first file is kept."""
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the file with this digest lies, or would lie. Raises ValueError for what is no digest."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"photo {sha256[:80]!r}: expected 64 hexadecimal digits")
        return self._root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether the file is kept."""
        return self.path(sha256).is_file()

    def keep(self, data: bytes) -> str:
        """Store a file's bytes, synced to disk, and give their digest. Raises OSError when the disk takes no more."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if path.is_file():
            return sha256
        with replacing(path, shared=True, sync=True, mode=0o600) as temporary:
            temporary.write_bytes(data)
        return sha256


def open_photos(settings: Settings) -> PhotoArchive:
    """The archive in the settings' data folder."""
    return PhotoArchive(settings.data_dir / "photos")
