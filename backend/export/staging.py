"""The files of an export while it is made: in DIR/.export, until all of it is there.

So DIR holds a whole export or none, an earlier one until the new one replaces it, and a killed one is taken up where
its last checkpoint was. Long lists grow on disk, an entry a line; nothing is kept in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from backend.errors import ExportError
from semsam_model.files import atomic_write, named, write_bytes

MANIFEST = "export.json"  #: says that a folder is an export, and what it holds
_HIDDEN = ".export"


def to_json(content: Any) -> str:
    """Always the same text for the same content."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class Staging:
    """One export into one folder. Make it with `staged`."""

    def __init__(self, target: Path, identity: Any) -> None:
        self._target, self._folder = target, target / _HIDDEN
        self._identity = json.loads(to_json(identity))
        self._files: dict[str, IO[bytes]] = {}
        self._lengths: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self.after: Any = None  #: what `checkpoint` was last told, by this run or the one that was killed; None: afresh
        state = self._state()
        if state.get("complete"):
            self._publish(state["complete"])  # killed while it moved: first that, since half of it may have moved
            state = {}
        if state.get("identity") == self._identity:
            self.after, self._lengths, self._counts = state["after"], state["lengths"], state["counts"]
        else:
            self._clear()
        self.out.mkdir(exist_ok=True)
        self.published = False

    @property
    def out(self) -> Path:
        """Where the files of the export to be go."""
        return self._folder / "out"

    def count(self, name: str) -> int:
        """Entries of the list by now, or what was added under the name."""
        return self._counts.get(name, 0)

    def add(self, name: str, number: int = 1) -> None:
        """Count something; counts go back to the last checkpoint as lists do."""
        self._counts[name] = self.count(name) + number

    def append(self, name: str, entry: Any) -> None:
        """Put an entry, which is JSON, at the end of a list, and count it under the list's name."""
        line = to_json(entry).encode() + b"\n"
        with named(self._list_path(name)):
            self._list(name).write(line)
        self._lengths[name] = self._lengths.get(name, 0) + len(line)
        self.add(name)

    def checkpoint(self, after: Any) -> None:
        """From here a killed export is taken up: `after` is given back as it is, and lists have what they have now."""
        for name, file in self._files.items():
            with named(self._list_path(name)):
                file.flush()
                os.fsync(file.fileno())
        self.after = json.loads(to_json(after))
        self._save({"after": self.after, "lengths": self._lengths, "counts": self._counts})

    def lines(self, name: str, separator: str = "") -> Iterator[str]:
        """The entries of a list as lines of JSON, in order, with `separator` between them."""
        self._list(name).flush()
        with self._list_path(name).open("r", encoding="utf-8", newline="\n") as file:
            line = next(file, None)
            while line is not None:
                after = next(file, None)
                yield line if after is None else line.removesuffix("\n") + separator + "\n"
                line = after

    def assemble(self, path: str, *pieces: Iterable[str]) -> None:
        """Write a file out of pieces of text, not before all lists are whole."""
        with named(self.out / path), (self.out / path).open("w", encoding="utf-8", newline="\n") as file:
            for piece in pieces:
                file.writelines(piece)

    def publish(self, manifest: dict[str, Any]) -> None:
        """Put the export in the place of the one that was there, and clean up."""
        items = sorted(path.name for path in self.out.iterdir() if path.name != MANIFEST)
        text = json.dumps(manifest | {"items": items}, ensure_ascii=False, indent=1, allow_nan=False)
        write_bytes(self.out / MANIFEST, f"{text}\n".encode())
        self.close()
        self._save({"complete": [*items, MANIFEST]})
        self._publish([*items, MANIFEST])
        self.published = True

    def _publish(self, items: Sequence[str]) -> None:
        for name in earlier_items(self._target):
            if name not in items:
                self._put_away(name)
        for name in items:  # the manifest last: until it moves, the old one tells what is old
            if (self.out / name).exists():
                self._put_away(name)
                (self.out / name).rename(self._target / name)
        self._clear()

    def _put_away(self, name: str) -> None:
        old, away = self._target / name, self._folder / "away" / name
        if old.exists():
            away.parent.mkdir(exist_ok=True)
            if away.is_dir():
                shutil.rmtree(away)
            old.replace(away)

    def _clear(self) -> None:
        """Everything away but the lock; the state first, so that it never tells of what is gone."""
        self.close()
        self._lengths, self._counts, self.after = {}, {}, None
        (self._folder / "state.json").unlink(missing_ok=True)
        for name in ("out", "lists", "away"):
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _list_path(self, name: str) -> Path:
        return self._folder / "lists" / f"{name}.jsonl"

    def _list(self, name: str) -> IO[bytes]:
        file = self._files.get(name)
        if file is None:
            path = self._list_path(name)
            path.parent.mkdir(exist_ok=True)
            file = path.open("ab")
            file.truncate(self._lengths.get(name, 0))  # what came after the last checkpoint comes again
            self._files[name] = file
        return file

    def close(self) -> None:
        """The files of the lists; they open again when they are needed."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _state(self) -> dict[str, Any]:
        try:
            return json.loads((self._folder / "state.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}

    def _save(self, state: dict[str, Any]) -> None:
        with atomic_write(self._folder / "state.json", sync=True) as temporary:
            temporary.write_text(to_json({"identity": self._identity} | state), encoding="utf-8")


def earlier_items(target: Path) -> list[str]:
    """Names of what the export in the folder consists of, but for its manifest; none where there is no export."""
    try:
        items = json.loads((target / MANIFEST).read_bytes())["items"]
        return [name for name in items if isinstance(name, str) and name == Path(name).name and name not in ("", "..")]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def check_target(target: Path) -> None:
    """Make the folder. Raises ExportError where it holds something that is no export; OSError where it cannot be."""
    target.mkdir(parents=True, exist_ok=True)
    if not (target / MANIFEST).exists() and not (target / _HIDDEN).exists():
        strange = next(target.iterdir(), None)
        if strange is not None:
            raise ExportError(
                f"{target}: expected a new or empty folder or an earlier export, found {strange.name}; choose another"
            )


@contextmanager
def staged(target: Path, identity: Any) -> Iterator[Staging]:
    """An export into a checked folder. One with the same `identity` that was killed goes on; another is thrown away.

    Raises ExportError when an export into it runs now.
    """
    (target / _HIDDEN).mkdir(exist_ok=True)
    try:
        lock = FileLock(target / _HIDDEN / "lock").acquire(blocking=False)
    except Timeout:
        raise ExportError(f"{target}: an export into this folder runs already") from None
    with lock:
        with closing(Staging(target, identity)) as staging:
            yield staging
        if staging.published:
            shutil.rmtree(target / _HIDDEN)
