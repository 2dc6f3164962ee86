"""Clicks come first: what nobody waits for begins its next step when no click is being answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

GIVE_WAY_S = 5.0  #: a step is begun after this time all the same, so that many annotators cannot stop it for good


class Turns:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._clicks = 0

    @contextmanager
    def click(self) -> Iterator[None]:
        """A click is being answered."""
        with self._changed:
            self._clicks += 1
        try:
            yield
        finally:
            with self._changed:
                self._clicks -= 1
                self._changed.notify_all()

    def give_way(self) -> None:
        """Returns when no click is being answered, or after GIVE_WAY_S."""
        with self._changed:
            self._changed.wait_for(lambda: not self._clicks, GIVE_WAY_S)
