"""What test_together.py starts twice through torchrun: runs of the tiny network, told apart by folder.

torchrun --standalone --nproc-per-node 2 together.py MODEL.yaml OUT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from semsam_model.data.lazy_samples import LazySamples
from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import Dataset, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import TrainingError
from semsam_model.network.model import SemanticSAM
from semsam_model.training.config import LossConfig, SamplingConfig, SimulatedCorrectionsConfig, Stage, TrainConfig
from semsam_model.training.distributed import process_group
from semsam_model.training.loop import train

STEPS, BATCHES = 3, 2


def config(model: Path, batch: int, steps: int = STEPS) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        stages=(Stage(steps, 96, batch),),
        sampling=SamplingConfig(prompts=4),
        loss=LossConfig(points=64, match_points=64, importance=0),
        rounds=SimulatedCorrectionsConfig(prompts=2, clicks=3),
        accumulate=BATCHES,
        lr=1e-5,
        lr_backbone=1e-5,
        warmup=0,
        bfloat16=False,
        threads=1,
        workers=0,
        tensorboard=False,
    )


def photos(count: int = 12) -> Sequence[Sample]:
    return synthetic_samples(count, seed=1, size=(64, 64), source="made")


def interrupting(samples: Sequence[Sample], at: int) -> Mixture:
    """The same photos; asks its process to stop when the at-th one is read."""
    asked = 0

    def make(index: int) -> Sample:
        nonlocal asked
        asked += 1
        if asked == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return samples[index]

    return Mixture({"made": Dataset(LazySamples(len(samples), make), ())}, {"made": 1.0})


def main() -> None:
    model, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    settings = config(model, 1)
    train(config(model, 1, steps=1), photos(), out / "first")
    train(settings, photos(), out / "whole")
    # the second process alone is told to stop, in its second step
    data = interrupting(photos(), BATCHES + 2) if rank == 1 else photos()
    stopped = train(settings, data, out / "parts")
    (out / f"stopped_{rank}").write_text(f"{stopped.stopped} {stopped.steps}")
    train(settings, photos(), out / "parts", resume=True)
    if rank == 1:
        SemanticSAM.normalise = lambda self, images: images.float() * torch.nan  # type: ignore[method-assign]
    try:
        train(settings, photos(), out / "broken")
    except TrainingError as error:
        (out / f"error_{rank}").write_text(str(error))


if __name__ == "__main__":
    with process_group("cpu"):
        main()
    names = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    (Path(sys.argv[2]) / f"threads_{os.environ['RANK']}").write_text(" ".join(names))
