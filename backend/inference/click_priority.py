"""Clicks go before work that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: How long a step of background work waits for clicks, so that many annotators cannot stop it for good.
LONGEST_WAIT_S = 5.0


class ClickPriority:
    """Background work begins its next step when no click is being answered. Thread-safe."""

    def __init__(self, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._longest_wait_s = longest_wait_s
        self._changed = threading.Condition()
        self._clicks = 0

    @contextmanager
    def click(self) -> Iterator[None]:
        """A click is being answered inside the block."""
        with self._changed:
            self._clicks += 1
        try:
            yield
        finally:
            with self._changed:
                self._clicks -= 1
                self._changed.notify_all()

    def wait_for_clicks(self) -> None:
        """Return when no click is being answered, or after `longest_wait_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._clicks, self._longest_wait_s)
