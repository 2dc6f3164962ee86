"""Fine-tuning: a trained model learns from a project's corrections, in minutes on a CPU, without forgetting the rest.

What learns is the prompt decoder and the heads, by default. Then the image features never change, so each view (a
scaled, cropped, flipped copy) of a photo is encoded once and kept, and a step costs only prompts and losses. Among the
corrections come made scenes, which keep the model what it was. Prompts are drawn as in training, a correction more
often the more wrong the model was about it (`Region.weight`), and some of them are corrected by further clicks, as an
annotator would, so that second clicks are not forgotten (`rounds`). Weights are averaged over the steps.

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
from torch import Tensor, nn

from semsam_model.data.samples import Sample
from semsam_model.data.synthetic import made_samples
from semsam_model.data.vocabulary import NO_LABEL, NameTable, Vocabulary, encode_vocabulary
from semsam_model.errors import DataError, TrainingError
from semsam_model.files import replacing
from semsam_model.finetuning.config import FEATURES, TRAINED, FineTuneConfig
from semsam_model.finetuning.views import View, Views, batched
from semsam_model.network.decoder import LayerOutput
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.batches import DrawnPrompts, draw_prompts, mask_boxes
from semsam_model.training.losses.masks import training_loss
from semsam_model.training.losses.matching import Match, Targets
from semsam_model.training.losses.names import name_loss
from semsam_model.training.ranker import fit_ranker
from semsam_model.training.simulated_corrections import correct
from semsam_model.training.state import decay_groups, learning_rate_factor

log = logging.getLogger(__name__)

STATE = "finetune.pt"
SCENES = 1  #: seed of the made scenes that are mixed in; the gate's have another
LAST_RATE = 0.02  #: share of the learning rate that is left at the end of the cosine


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A model that has learned from corrections; on the device of the one it started from."""

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
    stop: Callable[[int], bool] = lambda step: False,
) -> FineTuned | None:
    """Learn from corrections; `model` itself stays as it is. Goes on where an earlier call with the same `out` ended.

    corrections: photos of the project, of one source. replay: earlier data beside the made scenes. encoder: for names;
    without it, or where the model cannot name or there are fewer than two labels, masks alone are learned. stop: asked
    before each step with its number, and after each photo of those that the order of candidates is learned from; when
    true, the state is saved and None returned.
    Raises DataError when nothing can be learned from, TrainingError when the loss is no longer a number.
    """
    scenes: list[Sample] = list(made_samples(config.scenes, seed=SCENES, source="made"))
    earlier = [*scenes, *replay]
    run = _Run(model, corrections, earlier, config, out, encoder)
    out.mkdir(parents=True, exist_ok=True)
    run.load()
    while run.step < config.steps:
        if stop(run.step):
            run.save()
            return None
        run.advance()
        if run.step % config.save_every == 0:
            run.save()
    run.save()
    tuned = run.averaged
    if config.ranker_photos:
        per_source = config.ranker_photos
        taken = [*_spread(corrections, per_source), *_spread(earlier, per_source)]

        def go_on() -> None:
            if stop(run.step):
                raise _Stopped

        try:
            tuned.ranker = fit_ranker(tuned, taken, per_source=None, seed=config.seed, on_photo=go_on)
        except _Stopped:
            return None
        except DataError as error:
            log.warning("the order of candidates stays as it was: %s", error)
    loss = float(np.mean(run.losses[-20:])) if run.losses else math.nan
    return FineTuned(tuned, run.step, run.seconds, loss, len(run.table.heads) if run.table else 0)


class _Stopped(Exception):
    """The caller does not want to go on."""


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    places = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int))
    return [samples[place] for place in places] if len(samples) else []


class _Run:
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
        if not corrections:
            raise DataError("fine-tuning: expected at least one photo with corrections, got none")
        self.config, self.out = config, out
        self.samples, self.own = [*corrections, *earlier], len(corrections)
        self.model = copy.deepcopy(parent).float()
        # where features are kept, they must be what they will be when the model answers
        self.model.train(config.learn == "everything")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED[config.learn]))
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, dict.fromkeys(FEATURES, config.lr_features), config.lr, config.weight_decay)
        )
        self.vocabulary, self.table = self._names(encoder)
        self.views = Views(self.model, self.samples, config, self.vocabulary)
        #: photos come by what their regions are worth together
        worth = np.array([sum(r.weight for r in s.regions) for s in corrections], float)
        if not worth.sum() > 0:
            raise DataError("fine-tuning: expected regions in the corrections, got none")
        self.chance = worth / worth.sum()
        self.key = self._key(parent)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def _names(self, encoder: TextEncoder | None) -> tuple[Vocabulary | None, NameTable | None]:
        if encoder is None or self.model.name_head is None or not self.config.names:
            return None, None
        vocabulary = Vocabulary.of(self.samples)
        if not any(row[0] == self.samples[0].source for row in vocabulary.rows):
            return None, None
        vectors = encode_vocabulary(vocabulary, encoder, self.model.config.text_dim)
        return vocabulary, NameTable.of(vocabulary, vectors).to(self.model.pixel_mean.device)

    def _key(self, parent: SemanticSAM) -> str:
        """Of all that a saved state must have in common with this run."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for sample in self.samples[: self.own]:
            digest.update(f"{sample.name} {len(sample.regions)}\0".encode())
        first = next(p for p in parent.parameters())
        digest.update(first.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def advance(self) -> None:
        """One step."""
        began = time.monotonic()
        rng = np.random.default_rng([self.config.seed, 2, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        views = self._draw(rng)
        total = self._loss(views, rng)
        value = float(total.detach())
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = float(nn.utils.clip_grad_norm_(learning, self.config.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                f"fine-tuning, step {self.step}: expected a finite loss and gradient, got {value} and {norm}; "
                "try again with a smaller lr"
            )
        factor = learning_rate_factor(self.step, self.step / self.config.steps, self.config.warmup, LAST_RATE)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.step += 1
        decay = min(self.config.ema, self.step / (9 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.averaged.parameters())
            torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], 1 - decay)
        self.losses.append(value)
        self.seconds += time.monotonic() - began

    def _draw(self, rng: np.random.Generator) -> list[View]:
        found: list[View] = []
        tries = 0
        while len(found) < self.config.batch:
            if self.own < len(self.samples) and rng.random() < self.config.replay_share:
                # earlier data is many photos, each seen from one side
                view = self.views.view(int(rng.integers(self.own, len(self.samples))), 0)
            else:
                photo = int(rng.choice(self.own, p=self.chance))
                view = self.views.view(photo, int(rng.integers(self.config.views)))
            tries += 1
            if view is not None:
                found.append(view)
            elif tries > 50 * self.config.batch:
                raise DataError(f"fine-tuning: {tries} photos in turn gave no usable mask")
        return found

    def _loss(self, views: Sequence[View], rng: np.random.Generator) -> Tensor:
        model, device = self.model, self.model.pixel_mean.device
        prompts = [
            draw_prompts(v.masks, v.granularity, self.config.sampling, model.click_box, rng, v.weights) for v in views
        ]
        cached = [v.features for v in views if v.features is not None]
        if cached:
            features = batched(cached)
        else:
            features = model.features(model.normalise(torch.cat([v.image for v in views]).to(device)))
        targets = _targets(views, prompts).to(device)
        boxes = torch.from_numpy(np.stack([p.boxes for p in prompts])).to(device)
        kinds = torch.from_numpy(np.stack([p.kinds for p in prompts])).to(device)
        layers = model.prompt(features, boxes, kinds, all_layers=True)
        result = training_loss(layers, features.mask_features, targets, self.config.loss)
        total = result.total
        if self.table is not None:
            total = total + self.config.names * self._name_loss(self.table, features, layers[-1], result.matches, views)
        rounds = self.config.rounds
        if rounds.prompts and model.config.corrections:
            count, rngs = int(rng.integers(1, rounds.clicks + 1)), rng.spawn(len(views))
            again, held_to = correct(model, features, boxes, kinds, targets, layers[-1], rounds, count, rngs)
            corrected = training_loss(again, features.mask_features, held_to, self.config.loss)
            total = total + rounds.weight * corrected.total
        return total

    def _name_loss(
        self,
        table: NameTable,
        features: Features,
        last: LayerOutput,
        matches: Sequence[Match],
        views: Sequence[View],
    ) -> Tensor:
        objects, parts, labels = [], [], []
        for image, match in enumerate(matches):
            rows = torch.from_numpy(views[image].rows).to(match.target.device)[match.target]
            query, rows = match.query[rows != NO_LABEL], rows[rows != NO_LABEL]
            of_object, of_part = self.model.class_embeddings(features, last, image, query)
            objects.append(of_object)
            parts.append(of_part)
            labels.append(rows)
        return name_loss(torch.cat(objects), torch.cat(parts), torch.cat(labels), table, self.model.name_scales()).total

    # ---- on disk

    def save(self) -> None:
        state = {
            "key": self.key,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        with replacing(self.out / STATE) as temporary:
            torch.save(state, temporary)

    def load(self) -> None:
        """Go on where `save` left off, if it was this run's; what cannot be read or is another's is begun anew."""
        path = self.out / STATE
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.model.pixel_mean.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is none
            log.warning("%s: cannot be read, fine-tuning begins anew: %s", path, error)
            return
        if state.get("key") != self.key:
            log.warning("%s: of another run, fine-tuning begins anew", path)
            return
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        log.info("fine-tuning goes on at step %d", self.step)


def _targets(views: Sequence[View], prompts: Sequence[DrawnPrompts]) -> Targets:
    return Targets(
        [torch.from_numpy(v.masks) for v in views],
        [torch.from_numpy(mask_boxes(v.masks)) for v in views],
        torch.from_numpy(np.stack([p.targets for p in prompts])),
        # what a project does not label is not what it wants: its candidates may well be told to be worth little
        [False] * len(views),
    )
