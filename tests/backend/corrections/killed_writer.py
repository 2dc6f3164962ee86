"""A process that writes corrections and is killed, again and again.

    python -m tests.backend.corrections.killed_writer URL STRIDE SEED

Each round is a child of its own, which stores a few things one after the other and says so after each. In the first
rounds it kills itself: at its first step, then STRIDE steps later each time, until it lives to its end; a step is the
moment before a statement, before a commit, or after one. In the others this process kills it, at a random moment.
Prints, as JSON, how often each round said that something was stored, and whether it was killed.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from typing import Any

from sqlalchemy import Engine, event

from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.suggestions import save_suggestions
from backend.label_studio.events import parse_webhook
from backend.store.database import Store
from tests.backend.annotations import ORIGIN, annotation, answered, brush_row, square
from tests.backend.annotations import event as webhook

RANDOM_ROUNDS = 10


def bodies(base: int) -> list[dict[str, Any]]:
    """What round `base` stores: two annotations; the first changes, the second is deleted."""
    _, (row,) = answered([square(5, 5, 20)])
    a, b = brush_row("a", square(1, 1, 5)), brush_row("b", square(9, 9, 5))
    newer = [brush_row("a", square(1, 1, 9)), brush_row("c", square(20, 9, 5)), row | {"id": "d"}]
    return [
        webhook("ANNOTATION_CREATED", annotation=annotation(base, [a, b], task=base, updated=1)),
        webhook("ANNOTATION_UPDATED", annotation=annotation(base, newer, task=base, updated=2)),
        webhook("ANNOTATION_CREATED", annotation=annotation(base + 1, [b], task=base, updated=3)),
        webhook("ANNOTATIONS_DELETED", annotations=[{"id": base + 1}]),
    ]


#: Annotations with their regions after so many of `bodies`; the first is number 0, the second number 1.
STATES: list[dict[int, set[str]]] = [
    {},
    {0: {"a", "b"}},
    {0: {"a", "c", "d"}},
    {0: {"a", "c", "d"}, 1: {"b"}},
    {0: {"a", "c", "d"}},
]


def write(url: str, base: int, said: int, deadly: int | None) -> None:
    """One round."""
    store = Store.open(url)
    if deadly is not None:
        die_at_step(deadly)
    suggestion = answered([square(5, 5, 20), square(8, 8, 8)], task=base)[0].suggestion()
    for number, body in enumerate(bodies(base)):
        enqueue(store, parse_webhook(body).to_event(ORIGIN))
        os.write(said, b".")
        if number % 2:
            process_inbox(store)
            assert suggestion
            with store.write() as connection:
                save_suggestions(connection, [suggestion])
    process_inbox(store)
    store.close()


def die_at_step(deadly: int) -> None:
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(_: object, __: object, text: str, *___: object) -> None:
        if not text.startswith("SELECT"):  # dying before one that only reads is dying before the next that writes
            step()

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", step)
    event.listen(Engine, "checkin", step)


def play(url: str, base: int, deadly: int | None, after: tuple[int, float] | None) -> tuple[int, bool]:
    """(how often the child said that something was stored, whether it was killed). after: so many words and seconds."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write(url, base, said, deadly)
            code = 0
        finally:
            os._exit(code)
    os.close(said)
    words = 0
    while True:
        if after is not None and words >= after[0]:
            ended, _, _ = select.select([heard], [], [], after[1])
            if not ended:
                os.kill(child, signal.SIGKILL)
                after = None
                continue
        piece = os.read(heard, 1)
        if not piece:
            break
        words += 1
    os.close(heard)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"round {base} failed")
    return words, os.WIFSIGNALED(status)


def main(url: str, stride: int, seed: int) -> None:
    Store.open(url).close()
    chance = random.Random(seed)
    rounds: list[tuple[int, int, bool]] = []
    deadly, lived = 1, False
    while not lived:
        base = 10 * (len(rounds) + 1)
        words, killed = play(url, base, deadly, None)
        rounds.append((base, words, killed))
        lived, deadly = not killed, deadly + stride
    for _ in range(RANDOM_ROUNDS):
        base = 10 * (len(rounds) + 1)
        words, killed = play(url, base, None, (chance.randrange(5), chance.random() * 0.02))
        rounds.append((base, words, killed))
    print(json.dumps(rounds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
