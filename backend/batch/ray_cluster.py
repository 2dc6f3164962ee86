"""`semsam batch` on a Ray cluster, with Ray Data: tasks on CPUs read, decode and resize pictures, actors with a model
each annotate them. Ray moves the data, keeps memory bounded and does again what a worker that died was doing.

Nothing need be shared but what the pictures are read from: the weights travel with the job, tokens never do.
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
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.batch.annotator import Annotator, Prepared, checked_header, prepare, told
from backend.batch.run import Annotate, Answer
from backend.batch.sources import Item
from backend.errors import BackendError
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings, without_secrets
from semsam_model.checkpoints.header import SUFFIX, Header
from semsam_model.config import ModelConfig

if TYPE_CHECKING:
    import pyarrow
    import ray

BATCH = 8  #: pictures that a worker gets at a time, and that are done again when it dies
#: Pictures of the first dataset, and of any. Each begins with the start of its actors; the first ones are short, so
#: that work begins while most of a long list is still unread.
FIRST, MOST = 256, 16384
GROWTH = 4
HALF = 0.5  #: CPUs of a task that reads, and of an actor without a GPU: the two together keep one busy
CONNECT_S = 10.0
RETRIES = 2  #: of a task whose worker died, before its pictures are tried one by one

#: Warnings of Ray Data 2.60 that nobody here can do anything about.
_EXPECTED = (
    r"`\w+` is deprecated",  # its own settings; and the only way, until 2.64, to say how often a task is retried
    "The minimum number of concurrent actors",  # where no picture could be read
)


@contextlib.contextmanager
def on_ray(address: str, settings: Settings, weights: Path, config: LabelConfig, workers: int) -> Iterator[Annotate]:
    """Up to `workers` actors on the cluster at `address`: local (one is started here), auto or HOST:PORT.

    On a cluster with GPUs each has a share of one: all of it while there are enough. Raises BackendError when Ray is
    not installed or the cluster cannot be used, CheckpointError, ConfigError.
    """
    header = checked_header(weights)
    with _connected(address) as cluster:
        _same_semsam(cluster, address)
        device, resources = share(cluster.cluster_resources(), settings.device, workers)
        job = _Job(
            dataclasses.replace(without_secrets(settings), device=device),
            header,
            cluster.put(weights.read_bytes()),
            config,
        )

        def annotate(items: Iterator[Item]) -> Generator[tuple[Item, Answer], None, None]:
            size = FIRST
            while chunk := list(islice(items, size)):
                yield from _annotated(chunk, job, workers, resources)
                size = min(GROWTH * size, MOST)

        yield annotate


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected; as it is where the process is connected already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(f"--ray needs Ray ({error}); install it: pip install 'ray[data]>=2.60,<2.64'") from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)  # what it tells is in the files of the cluster too
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message)
        with _initialised(ray, address):
            yield ray


@contextlib.contextmanager
def _initialised(ray: Any, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False}
        # Ray would lower its workers' priority by 15: on a busy machine they would hardly get a turn
        os.environ.setdefault("RAY_worker_niceness", "0")
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself goes on trying for minutes
            socket.create_connection((host.removeprefix("ray://"), int(port)), CONNECT_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise BackendError(f"--ray {address}: {error}; expected local, auto or HOST:PORT") from None
    try:
        yield
    finally:
        ray.shutdown()


def _same_semsam(cluster: Any, address: str) -> None:
    """Raises BackendError where a worker cannot run this code: it would fail picture by picture."""
    here = _installed()
    try:
        there = cluster.get(cluster.remote(num_cpus=0)(_installed).remote())
    except cluster.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BackendError(f"--ray {address}: semsam cannot run there ({reason}); install semsam {here}") from None
    if here != there:
        raise BackendError(f"--ray {address}: semsam is {there} there and {here} here; install the same")


def _installed() -> str:
    return importlib.metadata.version("semsam")


def share(cluster: dict[str, float], device: str, workers: int) -> tuple[str, dict[str, Any]]:
    """The device of an actor and what it takes of a cluster with these resources. Raises BackendError.

    device: the setting. One picture does not fill a GPU, so more workers than GPUs share them.
    """
    gpus = int(cluster.get("GPU", 0))
    if device == "cpu" or (device == "auto" and not gpus):
        return "cpu", {"num_cpus": HALF}
    if not gpus:
        raise BackendError(f"setting device {device}: the cluster has no GPU; expected auto or cpu")
    return "cuda", {"num_cpus": 1, "num_gpus": 1 / math.ceil(workers / gpus)}


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the workers need to know."""

    settings: Settings  #: without secrets
    header: Header  #: of the weights
    weights: ray.ObjectRef  #: bytes of the file
    config: LabelConfig


def _annotated(
    items: Sequence[Item], job: _Job, workers: int, resources: dict[str, Any]
) -> Generator[tuple[Item, Answer], None, None]:
    """Every item once. Those that no worker survives are tried alone, and then given up."""
    from ray.data.exceptions import UserCodeException
    from ray.exceptions import RayError

    waiting = dict(enumerate(items))
    for batch in (BATCH, 1):
        try:
            for row in _dataset(waiting, job, batch, workers, resources).iter_rows():
                if row["fatal"]:
                    raise BackendError(f"Ray cannot go on: {row['problem']}")
                answer = BackendError(row["problem"]) if row["problem"] else pickle.loads(row["data"])
                yield waiting.pop(row["number"]), answer
        except (RayError, UserCodeException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BackendError(f"Ray cannot go on: {reason}; run the command again when it can") from None
        if not waiting:
            return
    for item in waiting.values():
        yield item, BackendError("the worker that had it died each time; see the logs of the cluster")


def _dataset(
    items: dict[int, Item], job: _Job, batch: int, workers: int, resources: dict[str, Any]
) -> ray.data.Dataset:
    import pyarrow
    import ray.data
    from ray import cloudpickle

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # told apart here: what does not come back is tried again, alone
    rows = [{"number": number, "read": cloudpickle.dumps(item.read)} for number, item in items.items()]
    blocks = [pyarrow.Table.from_pylist(rows[first : first + batch]) for first in range(0, len(rows), batch)]
    table: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": batch}
    prepared = ray.data.from_arrow(blocks).map_batches(
        cast(Any, _read), fn_args=(job.settings, job.header.config), num_cpus=HALF, max_retries=RETRIES, **table
    )
    return prepared.map_batches(
        _Worker,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(blocks))),
        max_task_retries=RETRIES,
        **table,
        **resources,
    )


def _read(table: pyarrow.Table, settings: Settings, config: ModelConfig) -> pyarrow.Table:
    from ray import cloudpickle

    def prepared(row: dict[str, Any]) -> Prepared:
        return prepare(cloudpickle.loads(row["read"])(), settings, config)

    return _each(table, prepared)


class _Worker:
    """An actor."""

    def __init__(self, job: _Job) -> None:
        # seen once: an actor that Ray had dismissed waited forever, in what C++ libraries do as a process ends
        atexit.register(os._exit, 0)
        self._begun: Annotator | str
        try:
            self._begun = self._annotator(job)
        except Exception as error:  # raised here, Ray would count it as the failure of whatever picture comes next
            self._begun = f"a worker on {socket.gethostname()} cannot begin: {told(error)}"

    @staticmethod
    def _annotator(job: _Job) -> Annotator:
        import ray

        with tempfile.NamedTemporaryFile(suffix=SUFFIX) as file:
            file.write(ray.get(job.weights))
            file.flush()
            made = Annotator(job.settings, Path(file.name), job.config)  # its digest is checked as it is loaded
        if made.loaded.version != job.header.version:
            raise BackendError(f"expected model {job.header.version}, got {made.loaded.version}")
        return made

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        begun = self._begun
        if isinstance(begun, str):
            return _table([{**row, "data": b"", "problem": begun, "fatal": True} for row in table.to_pylist()])
        return _each(table, lambda row: begun.annotate(pickle.loads(row["data"])))


def _each(table: pyarrow.Table, step: Any) -> pyarrow.Table:
    """The rows after a step: number, data (pickled), and the problem of those that have one, which later steps pass."""
    rows = []
    for row in table.to_pylist():
        data, problem = b"", row.get("problem", "")
        if not problem:
            try:
                data = pickle.dumps(step(row))
            except Exception as error:
                problem = told(error)
        rows.append({"number": row["number"], "data": data, "problem": problem, "fatal": False})
    return _table(rows)


def _table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """fatal: no worker there can annotate anything."""
    import pyarrow

    columns = [("number", "int64"), ("data", "binary"), ("problem", "string"), ("fatal", "bool")]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))
