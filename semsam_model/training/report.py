"""Progress of a training run: bar or plain lines, log.jsonl, TensorBoard, validation figures and previews."""

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


def print_skipped(console: Console, skipped: Sequence[str]) -> None:
    """Name what could not be read, the first twenty."""
    if skipped:
        console.print(f"[yellow]{len(skipped)} unreadable entries skipped:[/yellow]")
        for line in skipped[:20]:
            console.print(f"  {line}", markup=False)


class Reporter:
    """Prints and writes what a run has reached; only the first process does."""

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
            disable=not (console.is_terminal and run.distributed.is_main),
        )
        self.task = self.bar.add_task("", total=config.steps, completed=run.step, loss=math.nan, rate=math.nan)
        self.totals: list[float] = []
        self.images, self.seconds = 0, run.seconds
        self.skipped, self.skipped_in_all = 0, 0  #: by this process, and by all until the step before
        self.board: Any = None

    def __enter__(self) -> Reporter:
        if self.config.tensorboard and self.run.distributed.is_main:
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
        """After each step: its loss of the last batch, its mean total, its batches."""
        for batch in batches:
            self.skipped += len(batch.skipped)
            print_skipped(self.console, batch.skipped)
        if not self.run.distributed.is_main:
            return
        self.totals.append(total)
        self.images += self.run.distributed.world_size * sum(len(batch.images) for batch in batches)
        self.bar.update(self.task, completed=self.run.step, loss=total)
        if self.run.step % self.config.log_every == 0 or self.run.step == 1:
            self._log(result)

    def _log(self, result: LossOutput) -> None:
        rate = self.images / max(self.run.seconds - self.seconds, 1e-9)
        loss = round(float(np.mean(self.totals)), 4)
        row = {
            "loss": loss,
            "images_per_second": round(rate, 3),
            "lr": self.run.optimiser.adamw.param_groups[-1]["lr"],
            "skipped": max(self.skipped, self.skipped_in_all),
        }
        self._write(row | self._terms(result))
        self.bar.update(self.task, rate=rate)
        if not self.console.is_terminal:
            self.console.print(
                f"step {self.run.step}/{self.config.steps}  loss {loss:.2f}  {rate:.2f} images/s  "
                f"{self._minutes_left():.0f} min left"
            )
        self.totals, self.images, self.seconds = [], 0, self.run.seconds

    def _terms(self, result: LossOutput) -> dict[str, float]:
        """Name -> unweighted loss, of the last layer."""
        terms: dict[str, float] = {}
        for layer in result.layers[-1:]:
            terms |= {term.name: float(getattr(layer, term.name).detach()) for term in dataclasses.fields(layer)}
        if result.corrected is not None:
            last = result.corrected.layers[-1]
            terms |= {"corrected_dice": float(last.mask_dice.detach()), "corrected_iou": float(last.iou.detach())}
        if result.object_queries is not None:
            terms |= {f"generic_{name}": value for name, value in result.object_queries.figures().items()}
        scales: dict[str, float] = {}
        if result.names is not None:
            terms |= result.names.figures()
            of_objects, of_parts = self.run.model.name_scales().tolist()
            scales = {"object_scale": round(of_objects, 3), "part_scale": round(of_parts, 3)}
        return {name: round(value, 4) for name, value in terms.items()} | scales

    def _minutes_left(self) -> float:
        by_steps = (self.config.steps - self.run.step) * self.run.seconds / max(self.run.step, 1) / 60
        limit = self.config.time_limit_minutes
        return by_steps if limit is None else min(by_steps, limit - self.run.seconds / 60)

    def probe(self) -> Oracle | None:
        """Figures and preview of the averaged weights; None without validation data."""
        if not self.probes:
            return None
        oracle = quick_oracle(self.run.averaged, self.probes, self.run.size)
        one_each = list({probe.source: probe for probe in reversed(self.probes)}.values())[::-1]
        path = self.out / "preview" / f"step_{self.run.step:06d}.png"
        sheet = save_preview(self.run.averaged, one_each, self.run.size, path)
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
