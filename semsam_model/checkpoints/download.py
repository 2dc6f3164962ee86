"""Large files over HTTP: what arrived before a cut is continued, never mixed with another version."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from semsam_model.errors import CheckpointError

_CHUNK = 1 << 16  # at most this much is lost when the connection is cut
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of the body


def download(url: str, path: Path, *, progress: bool = True) -> None:
    """Fetch `url` into `path`, by way of `path`.part, which a later call continues.

    Continuing asks for the rest only if the file is still the one begun (ETag or Last-Modified, kept in
    `path`.part.tag); otherwise, or when the server knows no ranges, it starts over. progress: a bar on stderr.
    Raises CheckpointError when the server refuses, the connection breaks, the body is short, or the file cannot be
    written.
    """
    part = path.with_name(path.name + ".part")
    tag = path.with_name(path.name + ".part.tag")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _continue(url, part, tag, progress):
            part.unlink(missing_ok=True)
            if not _continue(url, part, tag, progress):
                raise CheckpointError(f"{public_url(url)}: the server answers with a range that was not asked for")
        part.replace(path)
        tag.unlink(missing_ok=True)
    except requests.RequestException as exc:
        # the exception's own text may hold a signed address
        raise CheckpointError(
            f"{public_url(url)}: {type(exc).__name__} after {_size(part)} bytes; "
            "run the same command again, it continues from there"
        ) from exc
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be written: {exc}") from exc


def public_url(url: str) -> str:
    """The address without user, password, query and fragment, fit for messages and metadata."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _continue(url: str, part: Path, tag: Path, progress: bool) -> bool:
    """One request. False when `part` cannot be continued and has to go."""
    have = _size(part) if tag.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # a byte range of compressed bytes would be of no use
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text("utf-8")}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and have:
            return content_range == f"bytes */{have}"  # everything had arrived
        if response.status_code == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
            if not found or int(found[1]) != have or _validator(response) != headers.get("If-Range"):
                return False
            total: int | None = int(found[2])
        elif response.status_code == 200:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            have = 0
            # the old part goes before the new tag comes: the two must never be of different files
            part.unlink(missing_ok=True)
            validator = _validator(response)
            if validator:
                tag.write_text(validator, "utf-8")
            else:
                tag.unlink(missing_ok=True)
        else:
            raise CheckpointError(
                f"{public_url(url)}: the server answered {response.status_code} {response.reason}, expected the file"
            )
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar, part.open("ab") as file:
            task = bar.add_task("", total=total, completed=have)
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(task, advance=len(chunk))
    if total is not None and _size(part) != total:
        raise CheckpointError(
            f"{public_url(url)}: {_size(part)} of {total} bytes arrived; "
            "run the same command again, it continues from there"
        )
    return True


def _validator(response: requests.Response) -> str | None:
    """What If-Range takes: a strong ETag, else the date."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
