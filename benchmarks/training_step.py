"""python -m benchmarks.training_step CONFIG ROOT: what a step of training costs, in calls of operators and in seconds.

CONFIG is of configs/train, ROOT the folder that the paths of configs/data/mobile.yaml start at. The seed of CONFIG
draws the batches, so two versions of the code see the same ones. Label vectors are random: the text encoder is not
measured.
Prints processor seconds of each step, photos a second by the clock, and for one more step the sum of `torch.profiler`'s
calls, autograd's nodes included, with the operators that are called most.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from semsam_model.allocator import keep_freed_memory
from semsam_model.data.mixture import read_mixture
from semsam_model.data.vocabulary import Vocabulary
from semsam_model.training.batches import Batch
from semsam_model.training.config import TrainConfig, read_train_config
from semsam_model.training.distributed import Distributed
from semsam_model.training.loop import training_batches
from semsam_model.training.state import Run

MIXTURE = Path(__file__).parents[1] / "configs" / "data" / "mobile.yaml"


def prepared(config: TrainConfig, root: Path, out: Path) -> tuple[Run, Iterator[Batch]]:
    """A run before its first step, and its batches."""
    mixture = read_mixture(MIXTURE, root, added=True)
    vocabulary = Vocabulary.of(mixture.named)
    run = Run(config, out, Distributed(torch.device("cpu")), vocabulary)
    vectors = torch.randn(len(vocabulary.rows), run.model.config.text_dim, generator=torch.Generator().manual_seed(0))
    run.use_names(F.normalize(vectors, dim=1))
    batches = training_batches(run, mixture)
    return run, (batches[number] for number in itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, default=25, help="how many operators to print")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    config = read_train_config(arguments.config)
    with tempfile.TemporaryDirectory() as folder:
        run, batches = prepared(config, arguments.root, Path(folder))
        run.optimise([next(batches)])  # the first step allocates
        seconds, processor, photos = 0.0, [], 0
        for batch in itertools.islice(batches, arguments.steps):
            clock, started = time.monotonic(), time.process_time()
            _, total = run.optimise([batch])
            processor.append(time.process_time() - started)
            seconds += time.monotonic() - clock
            photos += len(batch.images)
            print(f"loss {total:.5f}  {processor[-1]:.2f} s of processor time", flush=True)
        print(f"median {statistics.median(processor):.2f} s; {photos / seconds:.2f} photos a second by the clock")
        batch = next(batches)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run.optimise([batch])
        averages = profiler.key_averages()
        print(f"{sum(row.count for row in averages)} calls of operators")
        for row in sorted(averages, key=lambda row: -row.count)[: arguments.most]:
            print(f"{row.count:7d}  {row.self_cpu_time_total / 1e6:7.3f} s  {row.key}")


if __name__ == "__main__":
    main()
