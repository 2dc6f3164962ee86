"""Fine-tuning: a trained model learns from a project's corrections, in minutes on a CPU, without forgetting the rest.

By default the prompt decoder and the heads are trained. Then the image features never change, so each view (a scaled,
cropped, flipped copy) of a photo is encoded once and kept, and a step costs only prompts and losses. Made scenes are
mixed in, which keep the model what it was. Prompts are drawn as in training, a correction more
often the more wrong the model was about it (`Region.weight`), and some of them are corrected by further clicks, as an
annotator would, so that second clicks are not forgotten (config: rounds). Weights are averaged over the steps.

The random numbers of a step depend on the seed and the step's number alone, and the state is on disk every few steps:
a run that was killed goes on, and ends as if it had not been.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semsam_model.data.samples import Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import DataError, Stopped
from semsam_model.finetuning.config import FineTuneConfig
from semsam_model.finetuning.state import FineTuneRun
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.ranker import fit_ranker
from semsam_model.types import ShouldStop, never_stop

log = logging.getLogger(__name__)

SCENES = 1  #: seed of the made scenes that are mixed in; the gate's have another


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A model that was trained on corrections; on the device of the one it started from."""

    model: SemanticSAM
    steps: int
    seconds: float  #: of the steps, over resumed runs
    loss: float  #: mean of the last steps
    named: int  #: labels whose names were learned


def fine_tune(
    model: SemanticSAM,
    corrections: Sequence[Sample],
    config: FineTuneConfig,
    out: Path,
    *,
    replay: Sequence[Sample] = (),
    encoder: TextEncoder | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    should_stop: ShouldStop = never_stop,
) -> FineTuned:
    """Train on corrections; `model` itself stays as it is. Goes on where an earlier call with the same `out` ended.

    corrections: photos of the project, of one source. replay: earlier data beside the made scenes. encoder: for names;
    without it, or where the model cannot name or there are fewer than two labels, masks alone are learned. on_step:
    called before each step with its number. should_stop: asked before each step, and after each photo that the ranker
    is fitted to.
    Raises Stopped, with the state saved; DataError when there is nothing to train on; TrainingError when the loss is no
    longer a number.
    """
    scenes: list[Sample] = list(synthetic_samples(config.scenes, seed=SCENES, source="made"))
    earlier = [*scenes, *replay]
    run = FineTuneRun(model, corrections, earlier, config, out, encoder)
    run.load()
    while run.step < config.steps:
        on_step(run.step)
        if should_stop():
            run.save()
            raise Stopped(f"fine-tuning: stopped at step {run.step} of {config.steps}")
        run.advance()
        if run.step % config.save_every == 0:
            run.save()
    run.save()
    tuned = run.averaged
    if config.ranker_photos:
        samples = [*_evenly_spaced(corrections, config.ranker_photos), *_evenly_spaced(earlier, config.ranker_photos)]
        try:
            tuned.ranker = fit_ranker(tuned, samples, per_source=None, seed=config.seed, should_stop=should_stop)
        except DataError as error:
            log.warning("the ranker stays as it was: %s", error)
    loss = float(np.mean(run.losses[-20:])) if run.losses else math.nan
    return FineTuned(tuned, run.step, run.seconds, loss, run.named)


def _evenly_spaced(samples: Sequence[Sample], most: int) -> list[Sample]:
    places = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int))
    return [samples[place] for place in places] if len(samples) else []
