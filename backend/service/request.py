"""A predict request: the model that answers all of it, and the time that it has.

Label Studio gives up on a request after 100 s. So what was not clicked is answered within `preannotate_seconds`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from backend.inference.loaded import Loaded
from backend.inference.predictor import LOAD_WAIT_S, Predictor
from backend.label_studio.requests import PredictRequest, TaskRef

#: Photos of one request at a time: one is fetched while another goes through the network.
TOGETHER = 2
#: What a photo that was begun may take beyond `preannotate_seconds`, as a share of these; of 80 s it is 12.
GRACE = 0.15
T = TypeVar("T")


class TimedRequest:
    """Its model is the one that answered when a model was first needed, to the request's end. Thread-safe."""

    def __init__(self, content: PredictRequest, id: str, predictor: Predictor, seconds: float) -> None:
        """seconds: until no further photo without a click is begun, and nothing is waited for in favour of one."""
        self.content = content
        self.id = id
        self._predictor = predictor
        self._deadline = time.monotonic() + seconds
        self._loaded: Loaded | None = None
        self._lock = threading.Lock()

    def name(self, task: TaskRef) -> str:
        """Of the request's part about a task, for the log."""
        return f"request {self.id} project {self.content.project} task {task.id}"

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def version_name(self) -> str:
        """Of the request's model; before it was needed, of the one that answers or is loading."""
        return self._loaded.name if self._loaded else self._predictor.version_name

    def model(self, wait_s: float = LOAD_WAIT_S) -> Loaded:
        """Waits while the model loads. Raises NotReady."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._predictor.ready(wait_s)
            return self._loaded


def in_time(jobs: Sequence[Callable[[], T]], seconds: float, late: Callable[[], T]) -> list[T]:
    """What the jobs give, in their order; `late()` for each that has not ended by then. None begins after that."""
    pool = ThreadPoolExecutor(TOGETHER, "preannotate")
    try:
        futures = [pool.submit(job) for job in jobs]
        ended = wait(futures, seconds).done
        return [future.result() if future in ended else late() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
