"""The loop behind `semsam train`: one YAML file, one run folder, stoppable and resumable at any step.

Run folder: `model.safetensors` (averaged weights, a plain state dict), `state.pt` (everything needed to go on),
`log.jsonl` (one line a report), `preview/` (pictures of predictions), TensorBoard events when asked for.
The random numbers of a step depend on the seed and the step's number alone, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from semsam_model.config import check_fields, read_model_config, read_yaml
from semsam_model.data import Batch, Sample, SamplingConfig, Stage, TrainingBatches, read_samples
from semsam_model.errors import CheckpointError, ConfigError, TrainingError
from semsam_model.losses import LossConfig, LossOutput, training_loss
from semsam_model.model import SemanticSAM, build_model
from semsam_model.train_probe import Oracle, Probe, pick_probes, quick_oracle, save_preview

WEIGHTS, STATE, LOG = "model.safetensors", "state.pt", "log.jsonl"


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on but the data and the device."""

    model: str
    """Name or YAML file of the model config"""
    stages: tuple[Stage, ...]
    """Stretches of optimiser steps at one image size, in order"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    seed: int = 0
    init: str | None = None
    """Weights of the whole model to start from (a run's model.safetensors)"""
    init_backbone: str | None = None
    """ImageNet weights of the backbone to start from (safetensors)"""
    lr: float = 4e-4
    lr_backbone: float = 5e-5
    lr_final: float = 0.01
    """Share of the learning rates that is left at the end of the cosine"""
    warmup: int = 100
    """Steps of linear warm-up"""
    weight_decay: float = 0.05
    """Of matrices and kernels; none for norms, biases and embeddings"""
    clip: float = 1.0
    """Largest norm of the whole gradient"""
    accumulate: int = 1
    """Batches a step"""
    bfloat16: bool = True
    """Autocast to bfloat16; losses stay float32"""
    ema: float = 0.999
    """Decay of the averaged weights; ramps up over the first steps"""
    time_limit_minutes: float | None = None
    """Stop cleanly after this much training time, counted over resumed runs"""
    anneal: str = "steps"
    """What the cosine runs against: steps, or time (needs time_limit_minutes) where the number of steps is unknown"""
    threads: int | None = None
    """Threads of the arithmetic; torch's choice when null"""
    workers: int = 1
    """Processes that prepare batches; 0 prepares them in the loop"""
    log_every: int = 20
    save_every: int = 200
    probe_every: int = 200
    """Steps between validation figures and pictures"""
    probe_per_source: int = 3
    """Validation photos a source for them"""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        checks = (
            (len(self.stages) > 0, "stages: expected at least one"),
            (self.anneal in ("steps", "time"), f"anneal {self.anneal!r}: expected steps or time"),
            (self.anneal == "steps" or self.time_limit_minutes is not None, "anneal: time needs time_limit_minutes"),
            (
                self.time_limit_minutes is None or self.time_limit_minutes > 0,
                "time_limit_minutes: expected more than 0",
            ),
            (
                self.lr > 0 and self.lr_backbone >= 0 and self.clip > 0,
                "lr, lr_backbone, clip: expected positive numbers",
            ),
            (0 <= self.ema < 1 and 0 <= self.lr_final <= 1, "ema: expected 0 <= ema < 1, lr_final: 0..1"),
            (
                min(self.accumulate, self.log_every, self.save_every, self.probe_every, self.probe_per_source) >= 1,
                "accumulate, log_every, save_every, probe_every, probe_per_source: expected at least 1",
            ),
            (self.warmup >= 0 and self.workers >= 0 and self.seed >= 0, "warmup, workers, seed: expected at least 0"),
        )
        for good, message in checks:
            if not good:
                raise ConfigError(f"training config: {message}")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def from_dict(cls, values: object, where: str = "training config") -> TrainConfig:
        """Checked construction from plain values. Raises ConfigError naming the key."""
        known = check_fields(cls, values, where)
        parts: dict[str, type] = {"sampling": SamplingConfig, "loss": LossConfig}
        for name, part in parts.items():
            if name in known:
                known[name] = part(**check_fields(part, known[name], f"{where}: {name}"))
        known["stages"] = tuple(Stage(**check_fields(Stage, s, f"{where}: stages")) for s in known["stages"])
        return cls(**known)


def read_train_config(path: Path) -> TrainConfig:
    """Read a training YAML file, unknown keys refused. Raises ConfigError."""
    return TrainConfig.from_dict(read_yaml(path), str(path))


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
    _say_skipped(console, reading.skipped)
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
    run = _Run(config, out, torch.device(device))
    if resume:
        run.load(console)
    batches = TrainingBatches(
        samples,
        [dataclasses.replace(stage, steps=stage.steps * config.accumulate) for stage in config.stages],
        config.sampling,
        click_box=run.model.click_box,
        fill=run.model.config.pixel_mean,
        seed=config.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    probes = pick_probes(val, config.probe_per_source)
    with _Reporter(config, out, console, probes, run) as reporter:
        stopped = _loop(run, batches, reporter)
        run.save()
        save_weights(run.ema, out / WEIGHTS)
        oracle = None if stopped == "interrupted" else reporter.probe()
    console.print(f"{stopped} after {run.step} steps; weights in {out / WEIGHTS}")
    return TrainResult(out / WEIGHTS, run.step, stopped, oracle)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a plain state dict as safetensors, in one move."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(state))
    temporary.replace(path)


class _Run:
    """Model, averaged model, optimiser and the count of steps: what a resumed run must find again."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device) -> None:
        self.config, self.out, self.device = config, out, device
        torch.manual_seed(config.seed)
        self.model: SemanticSAM = build_model(read_model_config(config.model)).to(device)
        if config.init_backbone is not None:
            self._start_backbone(Path(config.init_backbone))
        if config.init is not None:
            _load_whole(self.model, Path(config.init))
        self.ema: SemanticSAM = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), betas=(0.9, 0.999))
        self.step = 0
        self.seconds = 0.0

    def _start_backbone(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; init_backbone expects ImageNet weights of the backbone")
        load = getattr(self.model.backbone, "load_imagenet", None)
        if load is None:
            raise ConfigError(f"init_backbone: model {self.config.model} has no ImageNet loader; use init instead")
        load(path)

    @property
    def progress(self) -> float:
        """Share of the schedule that lies behind, 0..1."""
        if self.config.anneal == "time" and self.config.time_limit_minutes is not None:
            return min(1.0, self.seconds / (60 * self.config.time_limit_minutes))
        return self.step / self.config.steps

    @property
    def size(self) -> int:
        """Image size of the current step."""
        left = self.step
        for stage in self.config.stages:
            if left < stage.steps:
                break
            left -= stage.steps
        return stage.size

    def forward(self, batch: Batch) -> LossOutput:
        images = self.model.normalise(batch.images.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            features = self.model.features(images)
            layers = self.model.prompt(
                features, batch.boxes.to(self.device), batch.kinds.to(self.device), all_layers=True
            )
            return training_loss(layers, features.mask_features, batch.targets.to(self.device), self.config.loss)

    def optimise(self, batches: Sequence[Batch]) -> tuple[LossOutput, float]:
        """One step; returns the loss of the last batch and the mean total. Raises TrainingError when not finite."""
        factor = learning_rate_factor(self.config, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            result = self.forward(batch)
            value = float(result.total.detach())
            if not math.isfinite(value):
                raise self._not_finite(batch, value)
            (result.total / len(batches)).backward()
            total += value / len(batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not math.isfinite(float(norm)):
            raise self._not_finite(batch, float(norm))
        self.optimizer.step()
        self.step += 1
        self._average()
        return result, total

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        ours, theirs = self.ema, self.model
        averages: list[Tensor] = list(ours.parameters())
        torch._foreach_lerp_(averages, [p.detach() for p in theirs.parameters()], 1 - decay)
        for average, buffer in zip(ours.buffers(), theirs.buffers(), strict=True):
            average.copy_(buffer)

    def _not_finite(self, batch: Batch, value: float) -> TrainingError:
        path = self.out / "not_finite.pt"
        torch.save({"step": self.step, "names": batch.names, "images": batch.images, "boxes": batch.boxes}, path)
        return TrainingError(
            f"step {self.step}: expected a finite loss and gradient, got {value}, on {', '.join(batch.names)}; batch "
            f"saved in {path}. Resume from the last saved state with a smaller lr or bfloat16: false"
        )

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        temporary = self.out / (STATE + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.out / STATE)

    def load(self, console: Console) -> None:
        """Go on where `save` left off. Settings may differ from the saved ones, and are named; the model may not."""
        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; resume expects the folder of an earlier run")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as exc:  # torch raises many kinds, all of which mean: not this run's state
            raise CheckpointError(f"{path}: expected the saved state of model {self.config.model}: {exc}") from exc
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        before, now = json.loads(state["config"]), json.loads(json.dumps(dataclasses.asdict(self.config)))
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        for group, fresh in zip(self.optimizer.param_groups, parameter_groups(self.model, self.config), strict=True):
            group.update({key: fresh[key] for key in ("base_lr", "weight_decay")})
        console.print(f"resumed at step {self.step}" + (f"; changed settings: {'; '.join(changed)}" if changed else ""))


def _load_whole(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except Exception as exc:  # missing file, not safetensors, other names or shapes
        raise CheckpointError(f"{path}: expected a state dict of this model as safetensors: {exc}") from exc


def parameter_groups(model: SemanticSAM, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: backbone and the rest, each with and without weight decay.

    Only matrices and kernels decay. Embeddings and position tables are bare parameters, so their names do not end in
    `weight`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = (name.startswith("backbone."), parameter.ndim >= 2 and name.endswith("weight"))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": config.lr_backbone if backbone else config.lr,
            "lr": 0.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up by step, times a cosine from 1 to `lr_final` over the progress 0..1."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    return warm * (config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * progress)))


def _loop(run: _Run, batches: TrainingBatches, reporter: _Reporter) -> Literal["finished", "time", "interrupted"]:
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
def _batches(run: _Run, batches: TrainingBatches) -> Iterator[Iterator[Batch]]:
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


def _say_skipped(console: Console, skipped: Sequence[str]) -> None:
    if skipped:
        console.print(f"[yellow]{len(skipped)} unreadable entries skipped:[/yellow]")
        for line in skipped[:20]:
            console.print(f"  {line}", markup=False)


class _Reporter:
    """Progress bar, log.jsonl, TensorBoard, validation figures and pictures."""

    def __init__(self, config: TrainConfig, out: Path, console: Console, probes: Sequence[Probe], run: _Run) -> None:
        self.config, self.out, self.console, self.probes, self.run = config, out, console, probes, run
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.2f}  {task.fields[rate]:.2f} images/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=config.steps, completed=run.step, loss=math.nan, rate=math.nan)
        self.totals: list[float] = []
        self.images, self.seconds, self.skipped = 0, run.seconds, 0
        self.board: Any = None

    def __enter__(self) -> _Reporter:
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and rarely wanted

            self.board = SummaryWriter(str(self.out))
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def step(self, result: LossOutput, total: float, batches: Sequence[Batch]) -> None:
        self.totals.append(total)
        self.images += sum(len(batch.images) for batch in batches)
        for batch in batches:
            self.skipped += len(batch.skipped)
            _say_skipped(self.console, batch.skipped)
        self.bar.update(self.task, completed=self.run.step, loss=total)
        if self.run.step % self.config.log_every == 0 or self.run.step == 1:
            rate = self.images / max(self.run.seconds - self.seconds, 1e-9)
            terms = {
                term.name: round(float(getattr(result.layers[-1], term.name).detach()), 4)
                for term in dataclasses.fields(result.layers[-1])
            }
            row = {
                "loss": round(float(np.mean(self.totals)), 4),
                "images_per_second": round(rate, 3),
                "lr": self.run.optimizer.param_groups[-1]["lr"],
                "skipped": self.skipped,
                **terms,
            }
            self._write(row)
            self.bar.update(self.task, rate=rate)
            if not self.console.is_terminal:
                left = self._minutes_left()
                self.console.print(
                    f"step {self.run.step}/{self.config.steps}  loss {row['loss']:.2f}  {rate:.2f} images/s  "
                    f"{left:.0f} min left"
                )
            self.totals, self.images, self.seconds = [], 0, self.run.seconds

    def _minutes_left(self) -> float:
        by_steps = (self.config.steps - self.run.step) * self.run.seconds / max(self.run.step, 1) / 60
        limit = self.config.time_limit_minutes
        return by_steps if limit is None else min(by_steps, limit - self.run.seconds / 60)

    def probe(self) -> Oracle | None:
        """Figures and pictures of the averaged weights; None without validation data."""
        if not self.probes:
            return None
        oracle = quick_oracle(self.run.ema, self.probes, self.run.size)
        one_each = list({probe.source: probe for probe in reversed(self.probes)}.values())[::-1]
        save_preview(self.run.ema, one_each, self.run.size, self.out / "preview" / f"step_{self.run.step:06d}.png")
        self._write({"oracle": round(oracle.best, 4), "first": round(oracle.first, 4), "by_source": oracle.by_source})
        sources = "  ".join(f"{source} {100 * value:.0f}" for source, value in oracle.by_source.items())
        self.console.print(
            f"step {self.run.step}  best of six {100 * oracle.best:.1f}  first {100 * oracle.first:.1f}  ({sources})"
        )
        return oracle

    def _write(self, row: dict[str, Any]) -> None:
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": self.run.step, "minutes": round(self.run.seconds / 60, 2), **row}) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(name, value, self.run.step)
