"""A lock that is given in the order in which it was asked for.

SQLite's own is given to whoever looks first, and those who wait look ever more rarely: one thread that writes without a
pause would keep all others from it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """Thread-safe; not to be taken again by the thread that has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def turn(self, wait_s: float) -> Iterator[None]:
        """Have it until the end of the block. Raises TimeoutError when it does not come in time."""
        self._take(wait_s)
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()  # handed over: nobody else can take it in between
                else:
                    self._taken = False

    def _take(self, wait_s: float) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(wait_s):
            return
        with self._lock:
            if mine.is_set():  # at the last moment
                return
            self._waiting.remove(mine)
        raise TimeoutError(f"no turn in {wait_s:g} s")
