"""What a request without clicks may take, since Label Studio gives up on it after 100 s."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from backend.inference.predictor import LOAD_WAIT_S, Loaded, Predictor

#: Photos of one request at a time: one is fetched while another goes through the network.
TOGETHER = 2
#: What a photo that was begun may take beyond `preannotate_seconds`, as a share of these; of 80 s it is 12.
GRACE = 0.15
T = TypeVar("T")


def in_time(jobs: Sequence[Callable[[], T]], seconds: float, late: Callable[[], T]) -> list[T]:
    """What the jobs give, in their order; `late()` for each that has not ended by then. None begins after that."""
    pool = ThreadPoolExecutor(TOGETHER, "preannotate")
    try:
        futures = [pool.submit(job) for job in jobs]
        ended = wait(futures, seconds).done
        return [future.result() if future in ended else late() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class RequestModel:
    """The model of one request: the one that answered when it was first needed, to the request's end. Thread-safe."""

    def __init__(self, predictor: Predictor, seconds: float) -> None:
        """seconds: until no further photo without a click is begun, and nothing is waited for in favour of one."""
        self._predictor = predictor
        self._deadline = time.monotonic() + seconds
        self._loaded: Loaded | None = None
        self._lock = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def version_name(self) -> str:
        """Of this model; before it was needed, of the one that answers or is loading."""
        return self._loaded.version.version if self._loaded else self._predictor.version_name

    def ready(self, wait_s: float = LOAD_WAIT_S) -> Loaded:
        """The model; waits while it loads. Raises NotReady."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._predictor.ready(wait_s)
            return self._loaded
