"""Photos annotated on this machine, for `semsam batch`: by one model here, or by worker processes with a model each.

A worker process that dies, killed for its memory say, costs no other photo its prediction: the photos that were in work
are tried again one at a time, and only one whose worker dies again is given up.
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

from backend.batch.annotator import Annotator, Failure, attempt, checked_header
from backend.batch.run import Annotate, Outcome
from backend.batch.sources import Item
from backend.errors import BackendError
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from semsam_model.network.query_calibration import Curve

GIVEN_UP = "the worker process that had it died, beside others and alone; too little memory for it?"
LOAD_S = 600.0  #: for all processes to load their models


@contextlib.contextmanager
def in_this_process(
    settings: Settings, weights: Path, config: LabelConfig, worth: Curve | None = None
) -> Iterator[Annotate]:
    """One model, here. worth: as `Annotator`. Raises as `Annotator` does."""
    with by_one_model(Annotator(settings, weights, config, worth)) as annotate:
        yield annotate


@contextlib.contextmanager
def by_one_model(annotator: Annotator) -> Iterator[Annotate]:
    """A model that is loaded already, in a thread of its own."""
    with ThreadPoolExecutor(1, "annotate") as thread:
        yield partial(_annotated, annotate=lambda data: thread.submit(annotator, data).result(), most=4)


@contextlib.contextmanager
def in_worker_processes(
    settings: Settings, weights: Path, config: LabelConfig, workers: int, worth: Curve | None = None
) -> Iterator[Annotate]:
    """Worker processes, each with a model of its own. Raises CheckpointError, ConfigError; BackendError when one of
    them cannot begin."""
    checked_header(weights)
    with contextlib.closing(_WorkerPool((settings, weights, config, worth), workers)) as pool:
        yield partial(_annotated, annotate=pool.annotate, most=2 * workers + 2, restart=pool.restart)


class _WorkerPool:
    """Processes that have all loaded their models. When one dies, `ProcessPoolExecutor` ends the others too, because
    the pipes that they share may be left half written; `restart` makes new ones."""

    def __init__(self, annotator: tuple[Settings, Path, LabelConfig, Curve | None], count: int) -> None:
        """annotator: what each process makes its own of. Raises BackendError when a process cannot begin."""
        self._annotator, self._count = annotator, count
        self._pool = self._started()

    def annotate(self, data: bytes) -> dict[str, Any]:
        """Raises BackendError for this photo, BrokenProcessPool when a process has died."""
        prediction = self._pool.submit(_annotate, data).result()
        if isinstance(prediction, Failure):
            raise BackendError(prediction.reason)
        return prediction

    def restart(self) -> None:
        """Raises BackendError when a new process cannot begin."""
        self.close()
        self._pool = self._started()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        all_loaded = spawn.Barrier(self._count)  # so that each process answers once
        pool = ProcessPoolExecutor(self._count, spawn, _load, (*self._annotator, all_loaded))
        try:
            waiting = [pool.submit(_load_failure) for _ in range(self._count)]
            failure = next(filter(None, [future.result() for future in waiting]), None)
        except (BrokenProcessPool, OSError, ValueError):
            # When a process dies first, the pool closes its pipes while the next process is being started with them:
            # they are then closed handles (OSError), or their numbers are taken anew and stand twice (ValueError).
            failure = Failure("it died while it loaded its model; too little memory?")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        if failure is None:
            return pool
        pool.shutdown(cancel_futures=True)
        raise BackendError(f"--workers {self._count}: a worker process cannot begin: {failure.reason}")


# ------------------------------------------------------------------------------------------------- in a worker process

_loaded: list[Annotator | Failure] = []  #: one, once `_load` has run
_all_loaded: list[Barrier] = []  #: one


def _load(settings: Settings, weights: Path, config: LabelConfig, worth: Curve | None, all_loaded: Barrier) -> None:
    _all_loaded.append(all_loaded)
    _loaded.append(attempt(lambda: Annotator(settings, weights, config, worth)))  # an error raised here would be lost


def _load_failure() -> Failure | None:
    with contextlib.suppress(BrokenBarrierError):
        _all_loaded[0].wait(LOAD_S)
    return _loaded[0] if isinstance(_loaded[0], Failure) else None


def _annotate(data: bytes) -> dict[str, Any] | Failure:
    annotator = _loaded[0]
    assert isinstance(annotator, Annotator)
    return attempt(lambda: annotator(data))


# ------------------------------------------------------------------------------------------------------- in the parent


def _annotated(
    items: Iterator[Item],
    *,
    annotate: Callable[[bytes], dict[str, Any]],
    most: int,
    restart: Callable[[], None] = lambda: None,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Every item once, as they are done: threads read a photo and wait for `annotate`, at most `most` at a time.

    When `annotate` raises BrokenProcessPool, any photo in work may be the reason: `restart` is called, and each of
    them is tried alone.
    """

    def read_and_annotate(item: Item) -> dict[str, Any]:
        return annotate(item.read())

    in_work: dict[Future[dict[str, Any]], Item] = {}
    suspects: list[Item] = []  # in work when a process died
    broken = False
    threads = ThreadPoolExecutor(most, "read")
    try:
        while True:
            alone = bool(suspects)
            chosen: Iterable[Item] = [suspects.pop()] if alone else islice(items, most - len(in_work))
            for item in chosen:
                if broken:
                    restart()
                    broken = False
                in_work[threads.submit(read_and_annotate, item)] = item
            if not in_work:
                return
            done = wait(in_work, return_when=FIRST_COMPLETED).done
            if any(_process_died(future) for future in done):
                broken, done = True, wait(in_work).done
            for future in done:
                item = in_work.pop(future)
                if not _process_died(future):
                    yield item, _outcome(future)
                elif alone:
                    yield item, BackendError(GIVEN_UP)
                else:
                    suspects.append(item)
    finally:
        threads.shutdown(cancel_futures=True)


def _process_died(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _outcome(future: Future[dict[str, Any]]) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, Exception):  # KeyboardInterrupt ends the run
        raise error
    return error
