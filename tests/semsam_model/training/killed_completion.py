"""A completion that kills itself after two photos.

python -m tests.semsam_model.training.killed_completion WEIGHTS CONFIG OUT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from semsam_model.checkpoints.checkpoint import load
from semsam_model.training.completion import complete_mixture
from tests.semsam_model.training.test_completion import ANYTHING


@contextmanager
def deadly(_: str, photos: int) -> Iterator[Callable[[], None]]:
    left = [2]

    def done() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    yield done


if __name__ == "__main__":
    weights, config, out = map(Path, sys.argv[1:])
    network, version = load(weights)
    complete_mixture(network, config, out, weights=str(version), root=config.parent, settings=ANYTHING, watch=deadly)
