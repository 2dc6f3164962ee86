"""Pre-annotation of many photos: each that lacks a prediction of a version gets one.

A photo that cannot be annotated is reported, and the others go on. Nothing is remembered here: Label Studio, or the
file of JSON lines, says what is done. So a run that was killed is resumed by running it again, and a second run writes
nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from backend.batch.annotator import printable, reason_of
from backend.batch.sources import FailedItem, Item
from backend.errors import BackendError, TaskRefused
from backend.label_studio.label_config import LabelConfig

Outcome = dict[str, Any] | Exception  #: a prediction, or why there is none
#: Where photos are annotated: here, in worker processes, on a cluster. Takes items as it needs them and holds few of
#: them; each comes back once, in any order. Raises BackendError when it can annotate no photo at all.
Annotate = Callable[[Iterator[Item]], Generator[tuple[Item, Outcome], None, None]]


@dataclass
class Summary:
    """How many photos a run has seen, by what became of them."""

    done: int = 0  #: already had a prediction
    written: int = 0
    regions: int = 0  #: in the predictions that were written
    failed: int = 0


def run(
    items: Iterator[Item | FailedItem | None],
    annotate: Annotate,
    *,
    seconds_between: float = 0.0,
    on_failure: Callable[[str], None] = print,
    on_photo: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Annotate every item and write its prediction at once; None stands for a photo that has one.

    seconds_between: least time from one write to the next. on_failure: gets a line for each photo that has no
    prediction. on_photo: called after each photo. Raises BackendError when nothing can be annotated, and
    LabelStudioError when no prediction can be written.
    """
    summary, last = Summary(), 0.0

    def fail(name: str, error: Exception) -> None:
        summary.failed += 1
        on_failure(f"{printable(name)}: {reason_of(error)}")

    def unfinished() -> Iterator[Item]:
        for item in items:
            if isinstance(item, Item):
                yield item
                continue
            if item is None:
                summary.done += 1
            else:
                fail(item.name, item.error)
            on_photo(summary)

    # closed at once when a write fails, so that workers do not go on
    with contextlib.closing(annotate(unfinished())) as outcomes:
        for item, outcome in outcomes:
            if isinstance(outcome, Exception):
                fail(item.name, outcome)
                on_photo(summary)
                continue
            time.sleep(max(0.0, last + seconds_between - time.monotonic()))
            try:
                if item.wanted():
                    item.write(outcome)
                    summary.written += 1
                    summary.regions += len({row["id"] for row in outcome["result"]})
                else:
                    summary.done += 1
            except TaskRefused as error:
                fail(item.name, error)
            last = time.monotonic()
            on_photo(summary)
    return summary


def read_config(xml: str) -> LabelConfig:
    """A labeling config that predictions can be written for. Raises BackendError, BadRequest."""
    config = LabelConfig.parse(xml)
    if config.answer is None:
        raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
    if config.task_labels and not config.labels:
        raise BackendError(
            f"{config.labels_in or config.answer}: each task brings its own labels ({config.task_labels}), which a"
            " batch cannot compare; write <Label> tags, or use *Retrieve predictions* in Label Studio"
        )
    return config
