"""Photos of tasks that no server is asked for: a data: URL brings its bytes, a path lies in `local_files_root`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from backend.errors import BadRequest, ImageTooLarge, NotFound, OriginRefused
from backend.label_studio.servers import shown
from semsam_model.errors import DataError
from semsam_model.masks import codecs


def decode_data_url(value: str, max_bytes: int) -> bytes:
    """The bytes of a data: URL, as a browser reads it. Raises BadRequest, ImageTooLarge."""
    if len(value) > 4 * max_bytes + 1000:  # nothing that fits is longer, even with every byte percent-encoded
        raise _too_large("data:...", max_bytes)
    try:
        data = codecs.decode_data_url(value)
    except DataError as error:
        raise BadRequest(f"task photo data:...: {error}") from None
    if len(data) > max_bytes:
        raise _too_large("data:...", max_bytes)
    return data


def find_local_file(root: Path, value: str) -> Path | None:
    """The file inside `root`, a resolved folder, that a task's photo names; None when it names something elsewhere.

    `value` is a path, or Label Studio's /data/local-files/?d=PATH. Raises OriginRefused for a path out of `root`.
    """
    parts = urlsplit(value)
    if parts.path.rstrip("/").endswith("/data/local-files"):
        name = parse_qs(parts.query).get("d", [""])[0].lstrip("/")
    elif value.startswith("/data/"):
        return None
    else:
        name = value
    try:
        if "\\" in name and not (root / name).exists():  # Windows' separators
            name = name.replace("\\", "/").lstrip("/")
        path = (root / name).resolve()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links
        raise OriginRefused(f"task photo {shown(name)}: not a usable path") from None
    if exists and not path.is_relative_to(root):
        raise OriginRefused(f"task photo {shown(name)}: outside the setting local_files_root (SEMSAM_LOCAL_FILES_ROOT)")
    return path if exists else None


def read_local_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file that `find_local_file` found. Raises OriginRefused, NotFound, ImageTooLarge."""
    try:
        # The path is free of links by now: one put there since is not followed, and a pipe does not block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OriginRefused(f"task photo {path.name}: expected a file, not a pipe or device")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise NotFound(f"task photo {path.name}: cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise _too_large(path.name, max_bytes)
    return data


def _too_large(what: str, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"photo {what}: more than {max_bytes} bytes, the setting max_image_bytes (SEMSAM_MAX_IMAGE_BYTES)"
    )
