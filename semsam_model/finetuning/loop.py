"""Fine-tuning: a trained model learns from a project's corrections, in minutes on a CPU, without forgetting the rest.

By default the prompt decoder and the heads are trained. Then the image features never change, so each view (a scaled,
cropped, flipped copy) of a photo is encoded once and kept, and a step costs only prompts and losses. Synthetic scenes
are mixed in, so that the model does not forget. Prompts are drawn as in training, a correction more often the more
wrong the model was about it (`Region.weight`). Some prompts are corrected by further clicks, as an annotator would, so
that second clicks are not forgotten (config: rounds). Weights are averaged over the steps.

The random numbers of a step depend on the seed and the step's number alone, and the state is on disk every few steps:
a run that was killed goes on, and ends as if it had not been.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semsam_model.data.folder import evenly_spaced
from semsam_model.data.samples import Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.data.vocabulary import NameTable, Vocabulary, encode_vocabulary
from semsam_model.errors import DataError, Stopped, TrainingError
from semsam_model.finetuning.config import FEATURES, TRAINED, FineTuneConfig
from semsam_model.finetuning.views import View, Views, stack_features
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.distributed import Distributed
from semsam_model.training.losses.masks import LossOutput
from semsam_model.training.objective import PromptLoss
from semsam_model.training.optimiser import NotFinite, Optimiser, OptimiserSettings, save_state
from semsam_model.training.prompts import PromptBatch, draw_prompts
from semsam_model.training.ranker import fit_ranker
from semsam_model.types import ShouldStop, never_stop

log = logging.getLogger(__name__)

STATE = "finetune.pt"
LAYOUT = 2  #: of the state file; one of another layout is not read
LR_FINAL = 0.02  #: share of the learning rate that is left at the end of the cosine
SCENES = 1  #: seed of the synthetic scenes that are mixed in; the gate's have another


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

    corrections: photos of the project, of one source. replay: earlier data beside the synthetic scenes. encoder: for
    names; without it, or where the model cannot name or there are fewer than two labels, masks alone are learned.
    on_step: called before each step with its number. should_stop: asked before each step, and after each photo that the
    ranker is fitted to.
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
    tuned = run.optimiser.averaged
    if config.ranker_photos:
        samples = [sample for each in (corrections, earlier) for sample in evenly_spaced(each, config.ranker_photos)]
        try:
            tuned.ranker = fit_ranker(tuned, samples, per_source=None, seed=config.seed, should_stop=should_stop)
        except DataError as error:
            log.warning("the ranker stays as it was: %s", error)
    loss = float(np.mean(run.losses[-20:])) if run.losses else math.nan
    return FineTuned(tuned, run.step, run.seconds, loss, run.named)


class FineTuneRun:
    """Model, averages, optimiser and step: what a killed run must find again."""

    def __init__(
        self,
        parent: SemanticSAM,
        corrections: Sequence[Sample],
        earlier: Sequence[Sample],
        config: FineTuneConfig,
        out: Path,
        encoder: TextEncoder | None,
    ) -> None:
        """earlier: data that is mixed in. Raises DataError when there is nothing to train on."""
        if not corrections:
            raise DataError("fine-tuning: expected at least one photo with corrections, got none")
        self.config, self.out = config, out
        self.samples, self.project_photos = [*corrections, *earlier], len(corrections)
        self.model = copy.deepcopy(parent).float()
        # where features are kept, they must be what they will be when the model predicts
        self.model.train(config.learn == "everything")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED[config.learn]))
        self.device = self.model.pixel_mean.device
        self.optimiser = Optimiser(self.model, _optimiser_settings(config), Distributed(self.device))
        vocabulary, table = self._names(encoder)
        self.named = 0 if table is None else len(table.heads)  #: labels whose names are trained
        corrected = config.rounds if self.model.config.corrections else dataclasses.replace(config.rounds, prompts=0)
        loss = dataclasses.replace(config.loss, names=config.names)
        self.prompt_loss = PromptLoss(self.model, loss, corrected, table)
        self.views = Views(self.model, self.samples, config, vocabulary)
        #: a photo is drawn in proportion to the weight of its regions
        weights = np.array([sum(r.weight for r in s.regions) for s in corrections], float)
        if not weights.sum() > 0:
            raise DataError("fine-tuning: expected regions in the corrections, got none")
        self.chance = weights / weights.sum()
        self.key = self._key(parent)
        self.seconds = 0.0
        self.losses: list[float] = []

    @property
    def step(self) -> int:
        """Steps done."""
        return self.optimiser.steps

    def _names(self, encoder: TextEncoder | None) -> tuple[Vocabulary | None, NameTable | None]:
        if encoder is None or self.model.name_head is None or not self.config.names:
            return None, None
        vocabulary = Vocabulary.of(self.samples)
        if not any(row[0] == self.samples[0].source for row in vocabulary.rows):
            return None, None
        vectors = encode_vocabulary(vocabulary, encoder, self.model.config.text_dim)
        return vocabulary, NameTable.of(vocabulary, vectors).to(self.device)

    def _key(self, parent: SemanticSAM) -> str:
        """Of all that a saved state must have in common with this run."""
        settings = {"layout": LAYOUT, **dataclasses.asdict(self.config)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for sample in self.samples[: self.project_photos]:
            digest.update(f"{sample.name} {len(sample.regions)}\0".encode())
        first = next(p for p in parent.parameters())
        digest.update(first.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def advance(self) -> None:
        """One step. Raises TrainingError when loss or gradient is not finite."""
        began = time.monotonic()
        rng = np.random.default_rng([self.config.seed, 2, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        views = self._draw_views(rng)
        try:
            _, total = self.optimiser.step([views], lambda views: self._loss(views, rng), self.step / self.config.steps)
        except NotFinite as error:
            raise TrainingError(f"fine-tuning, {error}; try again with a smaller lr") from None
        self.losses.append(total)
        self.seconds += time.monotonic() - began

    def _draw_views(self, rng: np.random.Generator) -> list[View]:
        found: list[View] = []
        tries = 0
        while len(found) < self.config.batch:
            if self.project_photos < len(self.samples) and rng.random() < self.config.replay_share:
                # earlier data is many photos, each seen from one side
                view = self.views.view(int(rng.integers(self.project_photos, len(self.samples))), 0)
            else:
                photo = int(rng.choice(self.project_photos, p=self.chance))
                view = self.views.view(photo, int(rng.integers(self.config.views)))
            tries += 1
            if view is not None:
                found.append(view)
            elif tries > 50 * self.config.batch:
                raise DataError(f"fine-tuning: {tries} photos in turn gave no usable mask")
        return found

    def _loss(self, views: Sequence[View], rng: np.random.Generator) -> LossOutput:
        drawn = []
        for view in views:
            kinds, weights = [r.granularity for r in view.regions], [r.weight for r in view.regions]
            click_box = self.model.config.click_box
            drawn.append(draw_prompts(view.masks, kinds, self.config.sampling, click_box, rng, weights))
        # what a project does not label is not what it wants: its candidates may well learn to be worth little
        partial = [False] * len(views)
        prompts = PromptBatch.of(drawn, [v.masks for v in views], [v.rows for v in views], partial).to(self.device)
        return self.prompt_loss(self._features(views), prompts, rng, rng.spawn(len(views)))

    def _features(self, views: Sequence[View]) -> Features:
        kept = [v.features for v in views if v.features is not None]
        if kept:
            return stack_features(kept)
        return self.model.features(self.model.normalise(torch.cat([v.image for v in views]).to(self.device)))

    # ---- on disk

    def save(self) -> None:
        """Write what `load` needs."""
        state = {"key": self.key, "seconds": self.seconds, "losses": self.losses}
        save_state(self.optimiser.state_dict() | state, self.out / STATE)

    def load(self) -> None:
        """Go on where `save` left off, if it was this run's; what cannot be read or is another's is begun anew."""
        path = self.out / STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is none
            log.warning("%s: cannot be read, fine-tuning begins anew: %s", path, error)
            return
        if state.get("key") != self.key:
            log.warning("%s: of another run, fine-tuning begins anew", path)
            return
        self.optimiser.load_state_dict(state)
        self.seconds, self.losses = state["seconds"], state["losses"]
        log.info("fine-tuning goes on at step %d", self.step)


def _optimiser_settings(config: FineTuneConfig) -> OptimiserSettings:
    return OptimiserSettings(
        lr=config.lr,
        rates=dict.fromkeys(FEATURES, config.lr_features),
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        lr_final=LR_FINAL,
        clip=config.clip,
        ema=config.ema,
        ema_delay=1,
    )
