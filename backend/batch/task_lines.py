"""Predictions as a file of tasks for Label Studio, one JSON line a photo; and which photos such a file has."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.errors import BackendError
from backend.label_studio.label_config import LabelConfig

_START = b'{"data":'  #: of every line
#: The beginning of a line that we wrote: its photo and version. The rest, which may be long, need not be parsed.
_HEAD = re.compile(rb'\{"data":(\{[^{}]*\}),"predictions":\[\{"model_version":("[^"\\]*"),')


class NameSet:
    """A set of names that may be larger than memory: a temporary table, which SQLite moves to disk as it grows."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._table.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        return self._table.execute("INSERT OR IGNORE INTO names VALUES (?)", (_bytes(name),)).rowcount == 1

    def __contains__(self, name: str) -> bool:
        return self._table.execute("SELECT 1 FROM names WHERE name = ?", (_bytes(name),)).fetchone() is not None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # a file's name need not be UTF-8


class TaskLines:
    """A file of JSON lines, `{"data": {"image": ...}, "predictions": [...]}`, which this run alone appends to.

    `done`: addresses of photos that have a prediction of this version. A line that a killed run left unfinished is cut
    off.
    """

    def __init__(self, path: Path, config: LabelConfig, version: str) -> None:
        """Raises BackendError when the file cannot be written, another run writes to it, or it holds something else."""
        self._key = _field(config)
        self._path = path
        self.done = NameSet()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise BackendError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in self._finished(version):
                self.done.add(name)
        except BlockingIOError:
            self._file.close()
            raise BackendError(f"{path}: another run is writing to it; wait for it, or name another file") from None
        except BaseException:
            self._file.close()
            raise

    def write(self, image: str, prediction: dict[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        prediction = {"model_version": prediction["model_version"], **prediction}  # at the beginning, see _HEAD
        line = json.dumps({"data": {self._key: image}, "predictions": [prediction]}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _finished(self, version: str) -> Iterator[str]:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                if not line.endswith(b"\n") and (line.startswith(_START) or _START.startswith(line)):
                    self._file.truncate(whole)
                    return
                head = _HEAD.match(line)
                if head is not None:
                    data, versions = json.loads(head[1]), [json.loads(head[2])]
                else:
                    task = json.loads(line)
                    data, versions = task["data"], [each["model_version"] for each in task["predictions"]]
                if version in versions:
                    yield data[self._key]
            except (ValueError, KeyError, TypeError):
                raise BackendError(
                    f"{self._path}: expected the JSON lines of an earlier run; name another file"
                ) from None
            whole += len(line)


def _field(config: LabelConfig) -> str:
    """The field of a task's data that holds the address of its photo. Raises BackendError."""
    found = re.fullmatch(r"\$(\w+)", config.image_value or "")
    if found is None:
        raise BackendError(
            f"labeling config: <Image value={config.image_value!r}>; for tasks in a file expected one field's name,"
            ' like "$image"'
        )
    return found[1]
