"""Files that are whole under their names or not there: written beside, then renamed in one step of the system."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, shared: bool = False, sync: bool = False, mode: int | None = None) -> Iterator[Path]:
    """Gives a path to write to, beside `path`; what was written there becomes `path` at the end.

    `path`'s folder is made. When the body raises, `path` stays as it was and nothing is left beside it.

    shared: several processes may write `path` at once, so each gets a temporary file of its own. Otherwise there is one
        name, and what a killed process left is overwritten by the next.
    sync: the content is on the disk before it gets its name.
    mode: permissions that the file has before anything is written to it (by default what the system gives new files).
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp" if shared else f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        if mode is not None:
            temporary.touch(mode, exist_ok=False)
        with named(path):
            yield temporary
            if sync:
                sync_to_disk(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of the body that names no file, as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Raises OSError, which names the file."""
    with named(path):
        path.write_bytes(content)


def sync_to_disk(path: Path) -> None:
    """Returns when the content of a file, or the list of names in a folder, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
