"""Pre-annotation of many pictures: whatever lacks a prediction of a version gets one, a bad picture is told and passed.

Nothing is remembered here: Label Studio, or the file of JSON lines, says what is done. So a run that was killed is
resumed by running it again, and a second run writes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from backend.batch.annotator import printable, told
from backend.batch.sources import Item, Lost
from backend.errors import BackendError, TaskRefused
from backend.label_studio.label_config import LabelConfig

Answer = dict[str, Any] | Exception  #: a prediction, or why there is none
#: How pictures are annotated: here, in processes, on a cluster. Takes items as it needs them and holds few of them;
#: each comes back once, in any order. Raises BackendError when it can annotate no picture at all.
Annotate = Callable[[Iterator[Item]], Generator[tuple[Item, Answer], None, None]]


@dataclass
class Summary:
    """What a run came to."""

    done: int = 0  #: already had a prediction
    written: int = 0
    regions: int = 0
    failed: int = 0


def run(
    items: Iterator[Item | Lost | None],
    annotate: Annotate,
    *,
    seconds_between: float = 0.0,
    tell: Callable[[str], None] = print,
    on_picture: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Annotate every item, None standing for one that is done; each is written as soon as it is there.

    seconds_between: least time from one writing to the next. tell: gets a line for each bad picture. Raises
    BackendError when nothing can be annotated, and LabelStudioError when no prediction can be written.
    """
    summary, last = Summary(), 0.0

    def fail(name: str, error: Exception) -> None:
        summary.failed += 1
        tell(f"{printable(name)}: {told(error)}")

    def missing() -> Iterator[Item]:
        for item in items:
            if isinstance(item, Item):
                yield item
                continue
            if item is None:
                summary.done += 1
            else:
                fail(item.name, item.error)
            on_picture(summary)

    # closed at once when a writing fails, so that workers do not go on with what nobody will write
    with contextlib.closing(annotate(missing())) as answers:
        for item, answer in answers:
            if isinstance(answer, Exception):
                fail(item.name, answer)
                on_picture(summary)
                continue
            time.sleep(max(0.0, last + seconds_between - time.monotonic()))
            try:
                if item.wanted():
                    item.write(answer)
                    summary.written += 1
                    summary.regions += len({row["id"] for row in answer["result"]})
                else:
                    summary.done += 1
            except TaskRefused as error:
                fail(item.name, error)
            last = time.monotonic()
            on_picture(summary)
    return summary


def read_config(xml: str) -> LabelConfig:
    """A labeling config that answers can be written for. Raises BackendError, BadRequest."""
    config = LabelConfig.parse(xml)
    if config.answer is None:
        raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
    return config
