"""Folders of model versions: written whole or not at all, never changed, checked against what they say. No SQL.

    FOLDER/mobile-1a2b3c4d5e6f/version.json          what it is, and the sha256 of every other file
                               weights.safetensors   as `semsam_model.checkpoints.checkpoint.save` writes it
                               report.html, ...      what else was handed over

The digest of a version is the sha256 of version.json: it covers every file, the config, the data, the parent and the
figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from backend.errors import VersionError
from semsam_model.checkpoints.header import SUFFIX, read_header
from semsam_model.errors import CheckpointError
from semsam_model.files import sync_to_disk

FORMAT = "semsam-version-1"
MANIFEST = "version.json"
WEIGHTS = f"weights{SUFFIX}"
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Manifest:
    """What version.json says."""

    version: str
    config: dict[str, Any]  #: of the model
    weights_digest: str  #: of the weights' content, see `semsam_model.checkpoints.checkpoint.content_digest`
    parent: str | None  #: version it was trained from
    data_digest: str | None  #: of the data it was trained on
    figures: dict[str, Any]  #: what was measured
    created_at: str  #: ISO 8601, UTC
    files: dict[str, str]  #: name -> sha256 of the file

    def to_bytes(self) -> bytes:
        """As written; the same content gives the same bytes. Raises VersionError for figures that are no JSON."""
        try:
            content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise VersionError(f"version {self.version}: figures are to be plain JSON values: {error}") from None
        return content.encode() + b"\n"


def write(
    folder: Path,
    weights: Path,
    *,
    parent: str | None,
    data_digest: str | None,
    figures: Mapping[str, Any],
    attachments: Iterable[Path],
    created_at: str,
) -> tuple[Manifest, str]:
    """Copy a version into `folder`/VERSION with one rename at the end; what it is, and its digest.

    A whole folder of the same weights stays as it is; one that is damaged makes way. Raises CheckpointError when
    `weights` is no weights file, VersionError for attachments that cannot be kept side by side, OSError when the disk
    does not take it; nothing is left behind then.
    """
    header = read_header(weights)
    version = header.version.version
    sources = {WEIGHTS: weights}
    for path in attachments:
        if path.name in (*sources, MANIFEST):
            raise VersionError(f"version {version}: {path}: {path.name} is there already, give it another name")
        sources[path.name] = path
    final = folder / version
    temporary = folder / f"{_TEMPORARY}{version}.{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        files = {name: _copy(source, temporary / name) for name, source in sources.items()}
        manifest = Manifest(
            version,
            header.config.to_dict(),
            header.version.digest,
            parent,
            data_digest,
            dict(figures),
            created_at,
            files,
        )
        (temporary / MANIFEST).write_bytes(manifest.to_bytes())
        digest = _seal(temporary / MANIFEST)
        sync_to_disk(temporary)
        if final.exists():
            if not problems(final, version):
                return read(final)
            set_aside(final)
        temporary.rename(final)
        sync_to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest, digest


def read(folder: Path) -> tuple[Manifest, str]:
    """What a version's folder says it is, and its digest. Raises VersionError when that is missing or damaged."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        values = json.loads(content)
        if values.pop("format", None) != FORMAT:
            raise VersionError(f"{path}: expected format {FORMAT}")
        return Manifest(**values), hashlib.sha256(content).hexdigest()
    except FileNotFoundError:
        raise VersionError(f"{path} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VersionError(f"{path}: cannot be read: {error}") from None


def problems(folder: Path, version: str, digest: str | None = None, *, thorough: bool = True) -> list[str]:
    """Why the folder cannot be served as this version; [] when it can.

    digest: the one that was registered. thorough: read every byte; else only whether the files are there, and what
    version.json says.
    """
    try:
        manifest, found = read(folder)
    except VersionError as error:
        return [str(error)]
    if digest is not None and found != digest:
        return [f"{folder / MANIFEST}: its sha256 is {found[:12]}..., registered was {digest[:12]}..."]
    if manifest.version != version:
        return [f"{folder / MANIFEST}: says it is {manifest.version}"]
    missing = [f"{folder / name} is missing" for name in manifest.files if not (folder / name).is_file()]
    if missing or not thorough:
        return missing
    altered = [name for name, sha256 in manifest.files.items() if _sha256(folder / name) != sha256]
    if altered:
        return [f"{folder / name}: altered after it was registered" for name in altered]
    try:
        header = read_header(folder / WEIGHTS)
    except CheckpointError as error:
        return [str(error)]
    same = header.version.digest == manifest.weights_digest
    return [] if same else [f"{folder / WEIGHTS}: holds {header.version}, expected {version}"]


def size(folder: Path) -> int:
    """Bytes of a version's files; 0 when there are none."""
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def set_aside(folder: Path) -> Path:
    """Rename a version's folder to what `strays` finds, so that no half of it ever lies under its name."""
    aside = folder.with_name(f"{_TEMPORARY}{folder.name.removeprefix(_TEMPORARY)}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    return aside


def remove(aside: Path) -> None:
    """Delete what was set aside, if there was anything."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)


def strays(folder: Path, known: Iterable[str], before: datetime) -> list[Path]:
    """Folders of no version that is `known`, last changed before this time: what a process that was killed left.

    before: so long ago that no process is still writing one.
    """
    if not folder.is_dir():
        return []
    names = set(known)
    unknown = (path for path in folder.iterdir() if path.is_dir() and path.name not in names)
    return sorted(path for path in unknown if path.stat().st_mtime < before.timestamp())


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the sha256 of the copy."""
    shutil.copyfile(source, target)
    return _seal(target)


def _seal(path: Path) -> str:
    """Make a new file read-only, and wait until it is on the disk; its sha256."""
    sync_to_disk(path)
    path.chmod(0o444)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
