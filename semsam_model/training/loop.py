"""The loop behind `semsam train`: one YAML file, one run folder, stoppable and resumable at any step.

Run folder: `model.safetensors` (averaged weights, a plain state dict), `state.pt` (everything needed to go on),
`log.jsonl` (one line a report), `preview/` (predictions beside annotated masks), TensorBoard events when asked for.
The random numbers of a step depend on the seed and the step's number alone, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from semsam_model.allocator import keep_freed_memory
from semsam_model.data.folder import read_samples
from semsam_model.data.mixture import Mixture, read_mixture
from semsam_model.data.samples import Sample
from semsam_model.data.vocabulary import Vocabulary, encode_vocabulary
from semsam_model.errors import ConfigError
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.batches import Batch, TrainingBatches
from semsam_model.training.config import TrainConfig, read_train_config
from semsam_model.training.distributed import process_group
from semsam_model.training.probe import Oracle, pick_probes
from semsam_model.training.report import Reporter, print_skipped
from semsam_model.training.state import STATE, WEIGHTS, Run
from semsam_model.types import KINDS, ShouldStop

#: All steps done; `time_limit_minutes` over; asked to stop; the minutes of this call over. The last two are resumed.
Ending = Literal["finished", "time", "interrupted", "paused"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    weights: Path  #: averaged weights, plain state dict
    steps: int  #: steps done in all
    stopped: Ending
    oracle: Oracle | None  #: of the averaged weights; None without validation data, when interrupted or paused


def train_from_config(
    path: Path,
    *,
    data: Path,
    out: Path,
    mixture: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    minutes: float | None = None,
    backbone_weights: Path | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train on DATA/train, or on a mixture whose paths start at DATA; write to OUT. DATA/val is for validation.

    `minutes`: pause after so much time in all, to be resumed. `backbone_weights` stands in for the file's
    `init_backbone`. Raises ConfigError, DataError, CheckpointError, and TrainingError when the loss is no longer a
    number.
    """
    began = time.monotonic()
    keep_freed_memory()
    console = console or _console()
    config = read_train_config(path)
    if backbone_weights is not None:
        config = dataclasses.replace(config, init_backbone=str(backbone_weights))
    if mixture is None:
        dataset = read_samples(data / "train")
        sources, skipped = Mixture.of(dataset.samples), list(dataset.skipped)
    else:
        sources = read_mixture(mixture, data, added=True)
        skipped = sources.skipped
    print_skipped(console, skipped)
    val = read_samples(data / "val").samples if (data / "val").is_dir() else ()
    counts = {source: len(dataset.samples) for source, dataset in sources.datasets.items()}
    console.print(f"{sum(counts.values())} photos to train on: {counts}; {len(val)} for validation")
    end = math.inf if minutes is None else began + 60 * minutes
    return train(config, sources, out, val=val, resume=resume, device=device, end=end, console=console)


def train(
    config: TrainConfig,
    data: Mixture | Sequence[Sample],
    out: Path,
    *,
    val: Sequence[Sample] = (),
    resume: bool = False,
    device: str = "cpu",
    end: float = math.inf,
    console: Console | None = None,
) -> TrainResult:
    """Train until the stages, the time limit, Ctrl-C or SIGTERM end it; see `train_from_config`.

    end: reading of the monotonic clock at which to pause. Under torchrun every process calls this; one of them writes.
    """
    console = console or _console()
    mixture = data if isinstance(data, Mixture) else Mixture.of(data)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with process_group(device) as distributed:
        if not resume and (out / STATE).exists():
            raise ConfigError(f"{out}: already holds a run; expected an empty folder, or resume to go on with this one")
        vocabulary = Vocabulary.of(mixture.named) if config.loss.names > 0 else None
        run = Run(config, out, distributed, vocabulary)
        if resume:
            run.load(console)
        else:
            _begin(run, console)
        batches = training_batches(run, mixture)
        out.mkdir(parents=True, exist_ok=True)
        probes = pick_probes(val, config.probe_per_source) if distributed.is_main else []
        with Reporter(config, out, console, probes, run) as reporter:
            ending = _loop(run, batches, reporter, end)
            run.save()
            oracle = None if ending in ("interrupted", "paused") else reporter.probe()
        distributed.barrier()  # a process that ends takes the others with it, the one that still writes too
    console.print(f"{ending} after {run.step} steps; weights in {out / WEIGHTS}")
    return TrainResult(out / WEIGHTS, run.step, ending, oracle)


def _console() -> Console:
    """Of the first process; the others print only where something is wrong."""
    return Console(quiet=int(os.environ.get("RANK", "0")) > 0)


def _begin(run: Run, console: Console) -> None:
    """Print which weights are new; encode the names that are learned."""
    if run.fresh:
        parts = ", ".join(sorted({".".join(name.split(".")[: 1 + name.startswith("decoder.")]) for name in run.fresh}))
        console.print(f"{len(run.fresh)} tensors of {parts} are not in {run.config.init}, or not of this size: new")
    if run.vocabulary is not None:
        encoder = TextEncoder(run.config.text_encoder)
        run.use_names(encode_vocabulary(run.vocabulary, encoder, run.model.config.text_dim))
        counts = Counter(f"{source} {KINDS[head]}s" for source, head, _ in run.vocabulary.rows)
        console.print(f"names: {', '.join(f'{name} {count}' for name, count in counts.items())}")


def training_batches(run: Run, mixture: Mixture) -> TrainingBatches:
    """As many as steps times `accumulate`."""
    config = run.config
    return TrainingBatches(
        mixture,
        [dataclasses.replace(stage, steps=stage.steps * config.accumulate) for stage in config.stages],
        config.sampling,
        click_box=run.model.config.click_box,
        fill=run.model.config.pixel_mean,
        seed=config.seed,
        vocabulary=run.vocabulary,
        object_queries=config.loss.generic > 0,
        rank=run.distributed.rank,
        world_size=run.distributed.world_size,
    )


def _loop(run: Run, batches: TrainingBatches, reporter: Reporter, end: float) -> Ending:
    """end: reading of the monotonic clock at which this call pauses."""
    config = run.config
    limit = math.inf if config.time_limit_minutes is None else 60 * config.time_limit_minutes
    with _stop_signals() as should_stop, _stream(run, batches) as stream:
        while run.step < config.steps:
            # All processes decide by the values of all: they stop at the same step, and have the same learning rate.
            values = run.distributed.gather([should_stop(), time.monotonic() >= end, run.seconds, reporter.skipped])
            stopped, late, run.seconds = values[:, :3].max(0).tolist()
            reporter.skipped_in_all = int(values[:, 3].sum())
            if stopped:
                return "interrupted"
            if run.seconds >= limit:
                return "time"
            if late:
                return "paused"
            started = time.monotonic()
            taken = [next(stream) for _ in range(config.accumulate)]
            result, total = run.optimise(taken)
            run.seconds += time.monotonic() - started
            reporter.step(result, total, taken)
            if run.step % config.save_every == 0:
                run.save()
            if run.step % config.probe_every == 0:
                reporter.probe()
    return "finished"


@contextmanager
def _stream(run: Run, batches: TrainingBatches) -> Iterator[Iterator[Batch]]:
    config = run.config
    # Every tensor that a worker hands over is an open file.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(run.step * config.accumulate, len(batches)),
        num_workers=config.workers,
        prefetch_factor=3 if config.workers else None,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
    )
    stream = iter(loader)
    try:
        yield stream
    finally:
        shutdown = getattr(stream, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _as_is(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the loop ends the workers itself once the step is saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)


@contextmanager
def _stop_signals() -> Iterator[ShouldStop]:
    """Asks to stop after Ctrl-C or SIGTERM while the block runs; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
