"""`semsam batch` on a Ray cluster, with Ray Data: tasks on CPUs read, decode and resize photos, actors with a model
each annotate them. Ray moves the data, keeps memory bounded and repeats the work of a worker that died.

Machines need to share only the place that photos are read from: the weights travel with the job, tokens never do.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import pickle
import socket
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.batch.annotator import (
    Annotator,
    Failure,
    PreparedPhoto,
    attempt,
    checked_header,
    describing_config,
    prepare,
)
from backend.batch.run import Annotate, Outcome
from backend.batch.sources import Item
from backend.errors import BackendError
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings, without_secrets
from semsam_model.checkpoints.header import SUFFIX, Header
from semsam_model.config import ModelConfig

if TYPE_CHECKING:
    import pyarrow
    import ray

    from semsam_model.network.query_calibration import Curve

BATCH = 8  #: photos that a worker gets at a time, and that are repeated when it dies
GROWTH, MOST = 4, 16384  #: each dataset has so many times the photos of the one before, and at most so many
CPUS = 0.5  #: of a task that reads, and of an actor without a GPU: the two together keep one busy
CONNECT_S = 10.0

#: Warnings of Ray Data 2.60 that we cannot avoid.
_EXPECTED_WARNINGS = (
    r"`\w+` is deprecated",  # its own settings; and the only way, until 2.64, to say how often a task is retried
    "The minimum number of concurrent actors",  # where no photo could be read
)


@contextlib.contextmanager
def on_ray(
    address: str,
    settings: Settings,
    weights: Path,
    config: LabelConfig,
    workers: int,
    *,
    first: int = 256,
    retries: int = 2,
    worth: Curve | None = None,
) -> Iterator[Annotate]:
    """Up to `workers` actors on the cluster at `address`: local (one is started here), auto or HOST:PORT.

    On a cluster with GPUs each actor has a share of one: a whole GPU while there are enough. first: photos of the
    first dataset; actors start anew with each, and a short first one lets work begin while most of a long list is
    unread. retries: of a task whose worker died, before its photos are tried one by one. worth: as `Annotator`. Raises
    BackendError when Ray is not installed or the cluster cannot be used, CheckpointError, ConfigError.
    """
    header = checked_header(weights)
    with _connected(address) as cluster:
        _check_same_version(cluster, address)
        has = cluster.cluster_resources()
        device, resources = actor_resources(has, settings.device, workers)
        sent_settings = dataclasses.replace(without_secrets(settings), device=device)
        sent = cluster.put(weights.read_bytes())
        room = max(1, int(has.get("CPU", 0) / (resources["num_cpus"] + CPUS)))  # each beside a task that reads
        job = _Job(sent_settings, header, sent, config, worth, workers, room, resources, retries)

        def annotate(items: Iterator[Item]) -> Generator[tuple[Item, Outcome], None, None]:
            size = first
            while chunk := list(islice(items, size)):
                yield from _annotated(chunk, job)
                size = min(GROWTH * size, MOST)

        yield annotate


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster, or to the one that this process uses already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(f"--ray needs Ray ({error}); install it: pip install 'ray[data]>=2.60,<2.64'") from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)  # the cluster's log files have the same lines
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        with _ray_runtime(ray, address):
            yield ray


@contextlib.contextmanager
def _ray_runtime(ray: Any, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False}
        # Ray would lower its workers' priority by 15: on a busy machine they would hardly run
        os.environ.setdefault("RAY_worker_niceness", "0")
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.removeprefix("ray://"), int(port)), CONNECT_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise BackendError(f"--ray {address}: {error}; expected local, auto or HOST:PORT") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_same_version(cluster: Any, address: str) -> None:
    """Raises BackendError where a worker cannot run this code: every photo would fail."""
    here = _installed_version()
    try:
        there = cluster.get(cluster.remote(num_cpus=0)(_installed_version).remote())
    except cluster.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BackendError(f"--ray {address}: semsam cannot run there ({reason}); install semsam {here}") from None
    if here != there:
        raise BackendError(f"--ray {address}: semsam is {there} there and {here} here; install the same")


def _installed_version() -> str:
    return importlib.metadata.version("semsam")


def actor_resources(cluster: dict[str, float], device: str, workers: int) -> tuple[str, dict[str, Any]]:
    """The device of an actor, and its share of a cluster with the resources `cluster`. Raises BackendError.

    device: the setting. One photo does not fill a GPU, so more workers than GPUs share them.
    """
    gpus = int(cluster.get("GPU", 0))
    if device == "cpu" or (device == "auto" and not gpus):
        return "cpu", {"num_cpus": CPUS}
    if not gpus:
        raise BackendError(f"setting device {device}: the cluster has no GPU; expected auto or cpu")
    return "cuda", {"num_cpus": 1, "num_gpus": 1 / math.ceil(workers / gpus)}


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all datasets of a run have in common."""

    settings: Settings  #: without secrets
    header: Header  #: of the weights
    weights: ray.ObjectRef  #: bytes of the file
    config: LabelConfig
    worth: Curve | None  #: as `Annotator`
    workers: int
    room: int  #: for so many of them, which start at once: on nodes that tasks have filled there is none for actors
    resources: dict[str, Any]  #: of an actor
    retries: int


def _annotated(items: Sequence[Item], job: _Job) -> Generator[tuple[Item, Outcome], None, None]:
    """Every item once. Those whose workers die are tried alone, and then given up."""
    from ray.data.exceptions import UserCodeException
    from ray.exceptions import RayError

    waiting = dict(enumerate(items))
    for batch in (BATCH, 1):
        try:
            for row in _dataset(waiting, job, batch).iter_rows():
                if row["fatal"]:
                    raise BackendError(f"Ray cannot go on: {row['problem']}")
                outcome = BackendError(row["problem"]) if row["problem"] else pickle.loads(row["data"])
                yield waiting.pop(row["number"]), outcome
        except (RayError, UserCodeException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BackendError(f"Ray cannot go on: {reason}; run the command again when it can") from None
        if not waiting:
            return
    for item in waiting.values():
        yield item, BackendError("the worker that had it died each time; see the logs of the cluster")


def _dataset(items: dict[int, Item], job: _Job, batch: int) -> ray.data.Dataset:
    """The annotated items, in batches of `batch`; those whose worker died are missing."""
    import pyarrow
    import ray.data
    from ray import cloudpickle

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # `_annotated` tries again what does not come back
    rows = [{"number": number, "read": cloudpickle.dumps(item.read)} for number, item in items.items()]
    blocks = [pyarrow.Table.from_pylist(rows[first : first + batch]) for first in range(0, len(rows), batch)]
    most = min(job.workers, len(blocks))
    table: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": batch}
    prepared = ray.data.from_arrow(blocks).map_batches(
        cast(Any, _read),
        fn_args=(job.settings, describing_config(job.header)),
        num_cpus=CPUS,
        max_retries=job.retries,
        **table,
    )
    return prepared.map_batches(
        _Worker,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(min_size=min(most, job.room), max_size=most),
        max_task_retries=job.retries,
        **table,
        **job.resources,
    )


def _read(table: pyarrow.Table, settings: Settings, config: ModelConfig) -> pyarrow.Table:
    from ray import cloudpickle

    def prepared(row: dict[str, Any]) -> PreparedPhoto:
        return prepare(cloudpickle.loads(row["read"])(), settings, config)

    return _each(table, prepared)


class _Worker:
    """An actor."""

    def __init__(self, job: _Job) -> None:
        # without it, an actor that Ray had dismissed was once seen to wait forever in a C++ library's exit handler
        atexit.register(os._exit, 0)
        # an error raised here would count as the failure of whichever photo comes next
        self._annotator = attempt(lambda: self._load(job))

    @staticmethod
    def _load(job: _Job) -> Annotator:
        import ray

        with tempfile.NamedTemporaryFile(suffix=SUFFIX) as file:
            file.write(ray.get(job.weights))
            file.flush()
            annotator = Annotator(job.settings, Path(file.name), job.config, job.worth)  # checks the digest
        if annotator.loaded.version != job.header.version:
            raise BackendError(f"expected model {job.header.version}, got {annotator.loaded.version}")
        return annotator

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        annotator = self._annotator
        if isinstance(annotator, Failure):
            problem = f"a worker on {socket.gethostname()} cannot begin: {annotator.reason}"
            return _table([{**row, "data": b"", "problem": problem, "fatal": True} for row in table.to_pylist()])
        return _each(table, lambda row: annotator.annotate(pickle.loads(row["data"])))


def _each(table: pyarrow.Table, step: Callable[[dict[str, Any]], object]) -> pyarrow.Table:
    """The rows after a step: number, pickled data or a problem. Later steps leave rows with a problem as they are."""

    def after(row: dict[str, Any]) -> dict[str, Any]:
        result = Failure(row["problem"]) if row.get("problem") else attempt(lambda: pickle.dumps(step(row)))
        data, problem = (b"", result.reason) if isinstance(result, Failure) else (result, "")
        return {"number": row["number"], "data": data, "problem": problem, "fatal": False}

    return _table([after(row) for row in table.to_pylist()])


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """fatal: the worker can annotate no photo at all."""
    import pyarrow

    columns = [("number", "int64"), ("data", "binary"), ("problem", "string"), ("fatal", "bool")]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))
