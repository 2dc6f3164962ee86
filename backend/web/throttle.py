"""Places for predictions that run at the same time, and the queue for them: first come, first served in each project.

Projects take turns, so that one whose annotators click fast, or that is annotated as a whole, delays another by one
prediction at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator


class _Ticket:
    """A place in the queue; `called` is set when it has become a place at work."""

    def __init__(self) -> None:
        self.called = threading.Event()


class Throttle:
    """Thread-safe."""

    def __init__(
        self, places: int, queued: int, queue_s: float, on_change: Callable[[int], None] = lambda waiting: None
    ) -> None:
        """queued: how many may wait. queue_s: for how long. on_change: told how many wait, when that changes."""
        self._free = places
        self._most = queued
        self._queue_s = queue_s
        self._on_change = on_change
        self._queues: OrderedDict[str, deque[_Ticket]] = OrderedDict()  #: by project; whose turn is next comes first
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def place(self, project: str) -> Iterator[bool]:
        """Hold a place inside the block; yields False where the queue is full, or none became free in time."""
        held = self._take(project)
        try:
            yield held
        finally:
            if held:
                self._give_back()

    def _take(self, project: str) -> bool:
        with self._lock:
            waiting = sum(map(len, self._queues.values()))
            if self._free and not waiting:
                self._free -= 1
                return True
            if waiting >= self._most:
                return False
            ticket = _Ticket()
            self._queues.setdefault(project, deque()).append(ticket)
            self._on_change(waiting + 1)
        if ticket.called.wait(self._queue_s):
            return True
        with self._lock:
            if ticket.called.is_set():  # this moment
                return True
            self._queues[project].remove(ticket)
            self._forget_if_empty(project)
            self._on_change(sum(map(len, self._queues.values())))
            return False

    def _give_back(self) -> None:
        """To the next in turn, or to nobody."""
        with self._lock:
            if not self._queues:
                self._free += 1
                return
            project = next(iter(self._queues))
            self._queues[project].popleft().called.set()
            self._queues.move_to_end(project)
            self._forget_if_empty(project)
            self._on_change(sum(map(len, self._queues.values())))

    def _forget_if_empty(self, project: str) -> None:
        if not self._queues[project]:
            del self._queues[project]
