"""What annotates for `semsam batch` on this machine: one model here, or worker processes with a model each.

A process that dies, killed for its memory say, takes no other picture with it: what was in work is tried again, one at
a time, and only a picture that kills again is given up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any

from backend.batch.annotator import Annotator, checked_header, told
from backend.batch.run import Annotate, Answer
from backend.batch.sources import Item
from backend.errors import BackendError
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

GIVEN_UP = "the worker process that had it died, beside others and alone; too little memory for it?"
BEGIN_S = 600.0  #: for all processes to load their models


@contextlib.contextmanager
def in_process(settings: Settings, weights: Path, config: LabelConfig) -> Iterator[Annotate]:
    """One model, here. Raises as `Annotator` does."""
    annotator = Annotator(settings, weights, config)
    with ThreadPoolExecutor(1, "annotate") as thread:
        yield partial(_windowed, annotate=lambda data: thread.submit(annotator, data).result(), ahead=4)


@contextlib.contextmanager
def processes(settings: Settings, weights: Path, config: LabelConfig, workers: int) -> Iterator[Annotate]:
    """Worker processes, each with a model of its own. Raises CheckpointError, ConfigError; BackendError when one of
    them cannot begin."""
    checked_header(weights)
    with contextlib.closing(_Workers(settings, weights, config, workers)) as pool:
        yield partial(_windowed, annotate=pool.annotate, ahead=2 * workers + 2, renew=pool.renew)


class _Workers:
    """Processes that have all loaded their models; where one has died, all are replaced."""

    def __init__(self, settings: Settings, weights: Path, config: LabelConfig, count: int) -> None:
        self._made_of, self._count = (settings, weights, config), count
        self._pool = self._begun()

    def annotate(self, data: bytes) -> dict[str, Any]:
        """Raises BackendError for this picture, BrokenProcessPool when a process has died."""
        answer = self._pool.submit(_annotate, data).result()
        if isinstance(answer, str):
            raise BackendError(answer)
        return answer

    def renew(self) -> None:
        """Raises BackendError when the new ones cannot begin."""
        self.close()
        self._pool = self._begun()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begun(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        everyone = spawn.Barrier(self._count)  # so that each process is asked once
        pool = ProcessPoolExecutor(self._count, spawn, _begin, (*self._made_of, everyone))
        try:
            asked = [pool.submit(_problem) for _ in range(self._count)]
            problem = next(filter(None, [future.result() for future in asked]), None)
        except BrokenProcessPool:
            problem = "it died while it loaded its model; too little memory?"
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        if problem is None:
            return pool
        pool.shutdown(cancel_futures=True)
        raise BackendError(f"--workers {self._count}: a worker process cannot begin: {problem}")


# ------------------------------------------------------------------------------------------------- in a worker process

_begun: list[Annotator | str] = []  #: one: what annotates, or why it cannot
_others: list[Barrier] = []  #: one


def _begin(settings: Settings, weights: Path, config: LabelConfig, everyone: Barrier) -> None:
    _others.append(everyone)
    try:
        _begun.append(Annotator(settings, weights, config))
    except Exception as error:  # raised here, it would be lost
        _begun.append(told(error))


def _problem() -> str | None:
    with contextlib.suppress(BrokenBarrierError):
        _others[0].wait(BEGIN_S)
    return _begun[0] if isinstance(_begun[0], str) else None


def _annotate(data: bytes) -> dict[str, Any] | str:
    """A prediction, or why there is none: not every exception survives the way to another process."""
    annotator = _begun[0]
    assert isinstance(annotator, Annotator)
    try:
        return annotator(data)
    except Exception as error:
        return told(error)


# ------------------------------------------------------------------------------------------------------------ in order


def _windowed(
    items: Iterator[Item],
    *,
    annotate: Callable[[bytes], dict[str, Any]],
    ahead: int,
    renew: Callable[[], None] = lambda: None,
) -> Generator[tuple[Item, Answer], None, None]:
    """Read in threads, annotate where `annotate` does, at most `ahead` pictures at a time.

    renew: called before the next picture when `annotate` has raised BrokenProcessPool.
    """

    def annotated(item: Item) -> dict[str, Any]:
        return annotate(item.read())

    waiting: dict[Future[dict[str, Any]], Item] = {}
    suspects: list[Item] = []  # a process died while these were in work: one of them may be the reason
    dead = False
    readers = ThreadPoolExecutor(ahead, "read")
    try:
        while True:
            alone = bool(suspects)
            chosen: Iterable[Item] = [suspects.pop()] if alone else islice(items, ahead - len(waiting))
            for item in chosen:
                if dead:
                    renew()
                    dead = False
                waiting[readers.submit(annotated, item)] = item
            if not waiting:
                return
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            if any(_died(future) for future in done):
                dead, done = True, wait(waiting).done
            for future in done:
                item = waiting.pop(future)
                if not _died(future):
                    yield item, _outcome(future)
                elif alone:
                    yield item, BackendError(GIVEN_UP)
                else:
                    suspects.append(item)
    finally:
        readers.shutdown(cancel_futures=True)


def _died(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _outcome(future: Future[dict[str, Any]]) -> Answer:
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, Exception):  # KeyboardInterrupt is nobody's failure
        raise error
    return error
