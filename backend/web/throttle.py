"""How many predictions run at the same time, and how many may wait for their turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

QUEUED = 2  #: predictions that wait for a place; each holds a spare thread meanwhile
QUEUE_S = 3.0  #: seconds that they wait


class Throttle:
    """Places for predictions that run at the same time, and a short queue for them. Thread-safe."""

    def __init__(self, places: int, queued: int = QUEUED, queue_s: float = QUEUE_S) -> None:
        self._places = threading.BoundedSemaphore(places)
        self._queue = threading.BoundedSemaphore(queued)
        self._queue_s = queue_s

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place inside the block; yields False where none became free in time."""
        held = self._places.acquire(blocking=False) or self._wait()
        try:
            yield held
        finally:
            if held:
                self._places.release()

    def _wait(self) -> bool:
        if not self._queue.acquire(blocking=False):
            return False
        try:
            return self._places.acquire(timeout=self._queue_s)
        finally:
            self._queue.release()
