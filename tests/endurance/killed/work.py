"""One kind of work that processes are killed at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from backend.store.database import Store

Say = Callable[[object], None]


class Work:
    """One kind of work. `do` is killed, again and again, on one store and one folder.

    What takes long and leaves nothing behind, such as loading a model, belongs in the constructor: children are forked
    from the process that has called it.
    """

    def __init__(self, url: str, folder: Path, weights: Path) -> None:
        self.url, self.folder, self.weights = url, folder, weights

    def store(self) -> closing[Store]:
        return closing(Store.open(self.url))

    def do(self, number: int, say: Say) -> None:
        """Round `number`, in a process of its own. say: called when something is acknowledged."""
        raise NotImplementedError

    def check(self, said: list[Any], new: list[Any]) -> None:
        """After a round, killed or not. said: in all rounds. new: in this one. Raises AssertionError."""
        raise NotImplementedError

    def end(self) -> None:
        """Close what was opened for all rounds."""
