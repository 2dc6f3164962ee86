"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    """Until it is so; fails after `seconds`. Looking takes a sixth of the time at most: others have work to do."""
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if true():
            return
        assert time.monotonic() < end
        time.sleep(max(0.05, 5 * (time.monotonic() - began)))
