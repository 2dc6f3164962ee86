"""Pre-annotation of many pictures: whatever lacks a prediction of a version gets one, a bad picture is told and passed.

Nothing is remembered here: Label Studio, or the file of JSON lines, says what is done. So a run that was killed is
resumed by running it again, and a second run writes nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from backend import protocol
from backend.batch_annotator import Annotator, checked_header
from backend.batch_sources import Item
from backend.errors import BackendError
from backend.label_config import LabelConfig
from backend.settings import Settings
from semsam_model.errors import SemsamError

Answer = dict[str, Any] | Exception  #: a prediction, or why there is none
#: How pictures are annotated: here, in processes, on a cluster. Takes items as it needs them and holds few of them;
#: each comes back once, in any order.
Annotate = Callable[[Iterator[Item]], Generator[tuple[Item, Answer], None, None]]


@dataclass
class Summary:
    """What a run came to."""

    done: int = 0  #: already had a prediction
    written: int = 0
    regions: int = 0
    failed: int = 0


def run(
    items: Iterator[Item | None],
    annotate: Annotate,
    *,
    seconds_between: float = 0.0,
    tell: Callable[[str], None] = print,
    on_picture: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Annotate every item, None standing for one that is done; each is written as soon as it is there.

    seconds_between: least time from one writing to the next. tell: gets a line for each bad picture. Raises
    BackendError when a worker process died, and LabelStudioError when a prediction cannot be written.
    """
    summary, last = Summary(), 0.0

    def missing() -> Iterator[Item]:
        for item in items:
            if item is not None:
                yield item
            else:
                summary.done += 1
                on_picture(summary)

    # closed at once when a writing fails, so that workers do not go on with what nobody will write
    with contextlib.closing(annotate(missing())) as answers:
        for item, answer in answers:
            if isinstance(answer, Exception):
                summary.failed += 1
                tell(f"{item.name}: {answer}")
            else:
                time.sleep(max(0.0, last + seconds_between - time.monotonic()))
                item.write(answer)
                last = time.monotonic()
                summary.written += 1
                summary.regions += len({row["id"] for row in answer["result"]})
            on_picture(summary)
    return summary


def read_config(xml: str) -> LabelConfig:
    """A labeling config that answers can be written for. Raises BackendError, BadRequest."""
    config = protocol.LabelConfig.parse(xml)
    if config.answer is None:
        raise BackendError("; ".join(config.problems()) or "the labeling config has no control for answers")
    return config


# ------------------------------------------------------------------------------------------------------ this machine


@contextlib.contextmanager
def in_process(settings: Settings, weights: Path, config: LabelConfig) -> Iterator[Annotate]:
    """One model, here. Raises as `Annotator` does."""
    annotator = Annotator(settings, weights)
    with ThreadPoolExecutor(1, "annotate") as thread:
        yield partial(_windowed, submit=lambda data: thread.submit(annotator, data, config), ahead=4)


@contextlib.contextmanager
def processes(settings: Settings, weights: Path, config: LabelConfig, workers: int) -> Iterator[Annotate]:
    """Worker processes, each with a model of its own. Raises as `Annotator` does."""
    checked_header(weights)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _begin, (settings, weights)) as pool:
        yield partial(_windowed, submit=lambda data: pool.submit(_annotate, data, config), ahead=2 * workers + 2)


_annotators: list[Annotator] = []  # of a worker process: one


def _begin(settings: Settings, weights: Path) -> None:
    _annotators.append(Annotator(settings, weights))


def _annotate(data: bytes, config: LabelConfig) -> dict[str, Any]:
    return _annotators[0](data, config)


def _windowed(
    items: Iterator[Item], *, submit: Callable[[bytes], Future[dict[str, Any]]], ahead: int
) -> Generator[tuple[Item, Answer], None, None]:
    """Read in threads, annotate where `submit` says, at most `ahead` pictures at a time."""

    def annotated(item: Item) -> dict[str, Any]:
        return submit(item.read()).result()

    waiting: dict[Future[dict[str, Any]], Item] = {}
    readers = ThreadPoolExecutor(ahead, "read")
    try:
        while True:
            for item in islice(items, ahead - len(waiting)):
                waiting[readers.submit(annotated, item)] = item
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _outcome(future)
    finally:
        readers.shutdown(cancel_futures=True)


def _outcome(future: Future[dict[str, Any]]) -> Answer:
    try:
        return future.result()
    except BrokenProcessPool:
        raise BackendError("a worker process has died; run the command again, it goes on from here") from None
    except (SemsamError, OSError) as error:
        return error
