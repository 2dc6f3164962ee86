"""What a training run tells: progress bar or plain lines, log.jsonl, TensorBoard, validation figures and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semsam_model.errors import TrainingError
from semsam_model.training.batches import Batch
from semsam_model.training.config import TrainConfig
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.probe import Oracle, Probe, quick_oracle, save_preview
from semsam_model.training.state import Run

LOG = "log.jsonl"


def say_skipped(console: Console, skipped: Sequence[str]) -> None:
    """Name what could not be read, the first twenty."""
    if skipped:
        console.print(f"[yellow]{len(skipped)} unreadable entries skipped:[/yellow]")
        for line in skipped[:20]:
            console.print(f"  {line}", markup=False)


class Reporter:
    """Progress bar, log.jsonl, TensorBoard, validation figures and pictures."""

    def __init__(self, config: TrainConfig, out: Path, console: Console, probes: Sequence[Probe], run: Run) -> None:
        self.config, self.out, self.console, self.probes, self.run = config, out, console, probes, run
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.2f}  {task.fields[rate]:.2f} images/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and run.processes.first),
        )
        self.task = self.bar.add_task("", total=config.steps, completed=run.step, loss=math.nan, rate=math.nan)
        self.totals: list[float] = []
        self.images, self.seconds = 0, run.seconds
        self.skipped, self.skipped_in_all = 0, 0  #: by this process, and by all until the step before
        self.board: Any = None

    def __enter__(self) -> Reporter:
        if self.config.tensorboard and self.run.processes.first:
            try:
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and rarely wanted
            except ImportError:
                raise TrainingError(
                    "tensorboard: true needs the package tensorboard: pip install 'semsam[tensorboard]',"
                    " or write tensorboard: false in the training configuration"
                ) from None
            self.board = SummaryWriter(str(self.out))
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def step(self, result: LossOutput, total: float, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.skipped += len(batch.skipped)
            say_skipped(self.console, batch.skipped)
        if not self.run.processes.first:
            return
        self.totals.append(total)
        self.images += self.run.processes.count * sum(len(batch.images) for batch in batches)
        self.bar.update(self.task, completed=self.run.step, loss=total)
        if self.run.step % self.config.log_every == 0 or self.run.step == 1:
            rate = self.images / max(self.run.seconds - self.seconds, 1e-9)
            terms = {
                term.name: round(float(getattr(layer, term.name).detach()), 4)
                for layer in result.layers[-1:]
                for term in dataclasses.fields(layer)
            }
            if result.corrected is not None:
                again = result.corrected.layers[-1]
                terms |= {
                    "corrected_dice": round(float(again.mask_dice.detach()), 4),
                    "corrected_iou": round(float(again.iou.detach()), 4),
                }
            if result.names is not None:
                names, scales = result.names, self.run.model.name_scales().tolist()
                terms |= {
                    "object_name": round(float(names.object_name.detach()), 4),
                    "part_name": round(float(names.part_name.detach()), 4),
                    "object_scale": round(scales[0], 3),
                    "part_scale": round(scales[1], 3),
                }
                shares = {"object_top1": names.object_top1, "part_top1": names.part_top1}
                terms |= {name: round(share, 4) for name, share in shares.items() if share is not None}
            if result.generic is not None:
                terms |= {f"generic_{name}": round(value, 4) for name, value in result.generic.figures().items()}
            row = {
                "loss": round(float(np.mean(self.totals)), 4),
                "images_per_second": round(rate, 3),
                "lr": self.run.optimizer.param_groups[-1]["lr"],
                "skipped": max(self.skipped, self.skipped_in_all),
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
        path = self.out / "preview" / f"step_{self.run.step:06d}.png"
        sheet = save_preview(self.run.ema, one_each, self.run.size, path)
        if self.board is not None:
            self.board.add_image("preview", sheet, self.run.step, dataformats="HWC")
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
