"""Processes that are killed at random moments of their work, again and again, on one store.

    python -m tests.endurance.killed SERVER FOLDER SECONDS SEED WEIGHTS REGION_WEIGHTS

SERVER is a PostgreSQL, or "sqlite". Each kind of work has SECONDS, and at least three rounds. A round is a child of its
own, which says what it has done after it is acknowledged; after each, what all had said is looked for. A child is
forked with its modules imported and its model loaded, so that no kill is wasted on the start, and it is killed within
the time that children take that are not killed. Prints, as JSON, how many rounds each kind had, how many
of them were killed, and how often something was said.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from backend.store.database import Store
from tests.backend.postgres import new_database
from tests.endurance.killed.kept import Ingest, Learning, Migration, Switching
from tests.endurance.killed.work import Work
from tests.endurance.killed.written import Batch, Export

AT_FIRST_S = 1.0  #: until the first kill of a kind, at most
LATER, LESS = 1.2, 0.8  #: later: times what a child took that could end, but not less than so much of the one before

KINDS: dict[str, type[Work]] = {
    "ingest": Ingest,
    "learning": Learning,
    "switching": Switching,
    "export": Export,
    "batch": Batch,
    "migration": Migration,
}


class Round(NamedTuple):
    """What became of a child."""

    said: list[Any]
    killed: bool
    took_s: float  #: from when it began


def play(work: Work, number: int, after_s: float) -> Round:
    """One round, killed `after_s` seconds after it began, unless it has ended by then."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Store.open(work.url).close()  # how long that takes is not of interest
            os.write(told, b'"begun"\n')
            work.do(number, lambda what: os.write(told, json.dumps(what).encode() + b"\n"))
            code = 0
        finally:
            os._exit(code)
    os.close(told)
    content, began, kill_at = b"", None, None
    while True:
        left = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([heard], [], [], left)
        if not ready:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            kill_at = time.monotonic() + 60
            continue
        piece = os.read(heard, 65536)
        if not piece:
            break
        content += piece
        if began is None:
            began = time.monotonic()
            kill_at = began + after_s
    took_s = time.monotonic() - (began or 0.0)
    os.close(heard)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"round {number} failed")
    return Round([json.loads(line) for line in content.splitlines()][1:], os.WIFSIGNALED(status), took_s)


def main(server: str, folder: str, seconds: str, seed: str, weights: str, region_weights: str) -> None:
    found = {}
    for kind, make in KINDS.items():
        mine = Path(folder) / kind
        mine.mkdir()
        url = f"sqlite:///{mine}/semsam.db" if server == "sqlite" else new_database(server)
        work = make(url, mine, Path(region_weights if make is Batch else weights))
        chance, said, killed, rounds, longest_s = random.Random(int(seed)), list[Any](), 0, 0, AT_FIRST_S
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until or rounds < 3:
            rounds += 1
            became = play(work, rounds, chance.random() * longest_s)
            said += became.said
            killed += became.killed
            work.check(said, became.said)
            if not became.killed:
                longest_s = max(LATER * became.took_s, LESS * longest_s)
        work.end()
        shutil.rmtree(mine)
        found[kind] = {"rounds": rounds, "killed": killed, "said": len(said)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
