"""The loop behind `semsam train`: one YAML file, one run folder, stoppable and resumable at any step.

Run folder: `model.safetensors` (averaged weights, a plain state dict), `state.pt` (everything needed to go on),
`log.jsonl` (one line a report), `preview/` (pictures of predictions), TensorBoard events when asked for.
The random numbers of a step depend on the seed and the step's number alone, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import dataclasses
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

from semsam_model.batches import Batch, TrainingBatches
from semsam_model.data import Sample, read_samples
from semsam_model.errors import ConfigError
from semsam_model.name_head import KINDS
from semsam_model.text import TextEncoder
from semsam_model.train_config import TrainConfig, read_train_config
from semsam_model.train_probe import Oracle, pick_probes
from semsam_model.train_report import Reporter, say_skipped
from semsam_model.train_state import STATE, Run, save_weights
from semsam_model.vocabulary import Vocabulary, encode_vocabulary

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    weights: Path  #: averaged weights, plain state dict
    steps: int  #: steps done in all
    stopped: Literal["finished", "time", "interrupted"]
    oracle: Oracle | None  #: of the averaged weights; None without validation data or when interrupted


def train_from_config(
    path: Path,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    backbone_weights: Path | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train on DATA/train, look at DATA/val where there is one, write to OUT.

    `backbone_weights` stands in for the file's `init_backbone`. Raises ConfigError, DataError, CheckpointError, and
    TrainingError when the loss is no longer a number.
    """
    console = console or Console()
    config = read_train_config(path)
    if backbone_weights is not None:
        config = dataclasses.replace(config, init_backbone=str(backbone_weights))
    reading = read_samples(data / "train")
    say_skipped(console, reading.skipped)
    val = read_samples(data / "val").samples if (data / "val").is_dir() else ()
    console.print(f"{len(reading.samples)} photos to train on: {reading.sources}; {len(val)} for validation")
    return train(config, reading.samples, out, val=val, resume=resume, device=device, console=console)


def train(
    config: TrainConfig,
    samples: Sequence[Sample],
    out: Path,
    *,
    val: Sequence[Sample] = (),
    resume: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> TrainResult:
    """Train on `samples` until the stages, the time limit, Ctrl-C or SIGTERM end it; see `train_from_config`."""
    console = console or Console()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if not resume and (out / STATE).exists():
        raise ConfigError(f"{out}: already holds a run; expected an empty folder, or resume to go on with this one")
    vocabulary = Vocabulary.of(samples) if config.loss.names > 0 else None
    run = Run(config, out, torch.device(device), vocabulary)
    if resume:
        run.load(console)
    else:
        if run.fresh:
            parts = ", ".join(sorted({name.split(".")[0] for name in run.fresh}))
            console.print(f"{len(run.fresh)} tensors of {parts} are not in {config.init} and start anew")
        if vocabulary is not None:
            encoder = TextEncoder(config.text_encoder)
            run.learn_names(encode_vocabulary(vocabulary, encoder, run.model.config.text_dim))
            console.print(f"names: {_lists(vocabulary)}")
    batches = TrainingBatches(
        samples,
        [dataclasses.replace(stage, steps=stage.steps * config.accumulate) for stage in config.stages],
        config.sampling,
        click_box=run.model.click_box,
        fill=run.model.config.pixel_mean,
        seed=config.seed,
        vocabulary=vocabulary,
        generic=config.loss.generic > 0,
    )
    out.mkdir(parents=True, exist_ok=True)
    probes = pick_probes(val, config.probe_per_source)
    with Reporter(config, out, console, probes, run) as reporter:
        stopped = _loop(run, batches, reporter)
        run.save()
        save_weights(run.ema, out / WEIGHTS)
        oracle = None if stopped == "interrupted" else reporter.probe()
    console.print(f"{stopped} after {run.step} steps; weights in {out / WEIGHTS}")
    return TrainResult(out / WEIGHTS, run.step, stopped, oracle)


def _lists(vocabulary: Vocabulary) -> str:
    counts = Counter(f"{source} {KINDS[head]}s" for source, head, _ in vocabulary.rows)
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _loop(run: Run, batches: TrainingBatches, reporter: Reporter) -> Literal["finished", "time", "interrupted"]:
    config = run.config
    limit = None if config.time_limit_minutes is None else 60 * config.time_limit_minutes
    with _stop_signals() as stop, _batches(run, batches) as stream:
        while run.step < config.steps:
            if stop.is_set():
                return "interrupted"
            if limit is not None and run.seconds >= limit:
                return "time"
            started = time.monotonic()
            taken = [next(stream) for _ in range(config.accumulate)]
            result, total = run.optimise(taken)
            run.seconds += time.monotonic() - started
            reporter.step(result, total, taken)
            if run.step % config.save_every == 0:
                run.save()
                save_weights(run.ema, run.out / WEIGHTS)
            if run.step % config.probe_every == 0:
                reporter.probe()
    return "finished"


@contextmanager
def _batches(run: Run, batches: TrainingBatches) -> Iterator[Iterator[Batch]]:
    config = run.config
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
def _stop_signals() -> Iterator[threading.Event]:
    """Set on Ctrl-C and SIGTERM while the block runs; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
