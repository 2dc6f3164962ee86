"""Asks for /health ten times a second until its input ends, then prints what it saw as JSON.

    python -m tests.endurance.pulse URL

A process of its own: in the one that makes the hostile requests it would wait for that one's own work.
"""

from __future__ import annotations

import json
import select
import sys
import time
from urllib.request import urlopen


def main(url: str) -> None:
    """Prints a line when it begins, and in the end {"seconds": of each answer, "failures": texts}."""
    seconds, failures = list[float](), list[str]()
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        began = time.perf_counter()
        try:
            with urlopen(f"{url}/health", timeout=60) as answer:
                assert json.load(answer)["status"] == "UP"
        except Exception as error:
            failures.append(repr(error))
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds, "failures": failures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
