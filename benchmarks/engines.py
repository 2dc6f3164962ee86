"""Cold and warm clicks of mask engines, alone and with the embedded model describing, on this machine.

    python -m benchmarks.engines [--threads 2] [--only swin_t|swin_l|sam2|sam]

All weights are random, of the published shapes: values change no timing, but the number of masks that differ does.
Each figure is seconds that passed, and in brackets of processor time, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.machine import described as machine
from benchmarks.machine import peak_mib
from benchmarks.run import SMALL, sample_photo
from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.config import read_model_config
from semsam_model.engines.photo import Preprocessing
from semsam_model.engines.transformers_sam import TransformersSam
from semsam_model.inference.engine import DescribedEngine, MaskEngine, Model, described
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.semantic_sam import SemanticSamEngine
from semsam_model.masks.codecs import encode_brush_rle
from semsam_model.network.model import build_model
from semsam_model.types import Click, LabelSet, Prompt


def semantic_sam(name: str) -> MaskEngine:
    return SemanticSamEngine(build_model(read_model_config(name)).eval())


def sam(model: torch.nn.Module, content: dict[str, object]) -> MaskEngine:
    return TransformersSam(model.eval(), Preprocessing.of(content, 1024))


ENGINES: dict[str, Callable[[], MaskEngine]] = {
    "swin_t": lambda: semantic_sam("swin_t"),
    "swin_l": lambda: semantic_sam("swin_l"),
    # the library's defaults are the tiny one; small has more blocks
    "sam2": lambda: sam(
        transformers.Sam2Model(
            transformers.Sam2Config(
                vision_config={
                    "backbone_config": {
                        "model_type": "sam2_hiera_det_model",
                        "blocks_per_stage": [1, 2, 11, 2],
                        "global_attention_blocks": [7, 10, 13],
                    }
                }
            )
        ),
        {"size": {"height": 1024, "width": 1024}},
    ),
    "sam": lambda: sam(transformers.SamModel(transformers.SamConfig()), {"size": {"longest_edge": 1024}}),
}


class Cost(NamedTuple):
    """Medians of one step."""

    seconds: float
    processor: float  #: seconds of all threads

    def in_ms(self) -> str:
        return f"{1000 * self.seconds:.0f} ({1000 * self.processor:.0f})"

    def in_s(self) -> str:
        return f"{self.seconds:.2f} ({self.processor:.2f})"


def cost(action: Callable[[], object], repeats: int) -> Cost:
    """Over `repeats` runs after one warm-up."""
    action()
    rows = []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        action()
        rows.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return Cost(*(statistics.median(column) for column in zip(*rows, strict=True)))


def warm(model: Model, rgb: np.ndarray, labels: LabelSet | None) -> Cost:
    """From an embedded photo to brush RLE, with names where there are labels."""
    embedding, height, width = model.encode(rgb), *rgb.shape[:2]
    prompt = Prompt((Click(width / 2, height / 2),))

    def run() -> None:
        candidates = predict_candidates(model, embedding, prompt)
        if labels is not None:
            candidates = name_candidates(candidates, labels, 0.4)
        for c in candidates:
            encode_brush_rle(c.crop, c.bbox, c.size)

    return cost(run, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=ENGINES, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rgb, (describer, _) = sample_photo(SMALL), load_model()
    vectors = torch.nn.functional.normalize(torch.randn(12, describer.config.text_dim), dim=1).numpy()
    labels = LabelSet(tuple(map(str, range(12))), (None,) * 12, vectors)
    table = Table("engine", "cold, s", "warm, ms", "warm, described and named, ms", "embedding, MB", "peak so far, MiB")
    embedded = cost(lambda: describer.encode(rgb), 3).in_s(), "", warm(describer, rgb, labels).in_ms()
    table.add_row("embedded", *embedded, f"{describer.encode(rgb).nbytes / 1e6:.0f}", f"{peak_mib(os.getpid()):.0f}")
    for name in [arguments.only] if arguments.only else ENGINES:
        engine = ENGINES[name]()
        both = DescribedEngine(engine, describer)
        alone = (
            described(engine.model) if isinstance(engine, SemanticSamEngine) else DescribedEngine(engine, nameless())
        )
        row = [cost(partial(engine.encode, rgb), 3).in_s(), warm(alone, rgb, None).in_ms()]
        row += [warm(both, rgb, labels).in_ms(), f"{engine.encode(rgb).nbytes / 1e6:.0f}"]
        table.add_row(name, *row, f"{peak_mib(os.getpid()):.0f}")
    Console(width=130).print(table)
    print(f"{arguments.threads} threads, {machine()}")


def nameless() -> torch.nn.Module:
    """The smallest network, which names nothing: what stands in for a describer that costs nearly nothing."""
    return build_model(read_model_config("tiny")).eval()


if __name__ == "__main__":
    main()
