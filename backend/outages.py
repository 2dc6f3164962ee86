"""What fails again and again while another program is away: one line when that begins, one when it is over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable


class Outages:
    """Thread-safe."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def failed(self, what: Hashable, line: str) -> None:
        """Log the line, unless it was the last that was logged about this."""
        with self._lock:
            is_news = self._said.get(what) != line
            self._said[what] = line
        self._log.log(logging.WARNING if is_news else logging.DEBUG, "%s", line)

    def works(self, what: Hashable, line: str) -> None:
        """Log the line, if this had failed before."""
        with self._lock:
            had_failed = self._said.pop(what, None) is not None
        if had_failed:
            self._log.info("%s", line)
