"""Trains the refiner on the answers of a finished network, with simulated corrections.

As RITM (Sofiiuk et al. 2021, section 3.2): clicks follow each other where the mask is wrong, the network's own answer
is the mask of the next step, and only the last of one to three steps has a gradient. The loss is their normalised focal
loss, plus dice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from semsam_model.errors import CheckpointError
from semsam_model.network.refiner import Refiner
from semsam_model.network.refiner_frame import hint_maps
from semsam_model.training.optimiser import save_state
from semsam_model.training.refiner_examples import Example, Material
from semsam_model.training.state import save_weights
from semsam_model.types import ShouldStop, never_stop

STATE, WEIGHTS = "state.pt", "refiner.safetensors"
ITERATIONS = (0.4, 0.35, 0.25)  #: shares of steps with one, two, three corrections
RATE, BACKBONE_RATE = 6e-4, 2e-4
WARM_UP = 60  #: steps
DECAY = 1e-4
LARGEST_GRADIENT = 1.0
GAMMA = 2.0  #: of the focal loss
SAVE_EVERY = 50  #: steps


def new_refiner(network: Mapping[str, Tensor], seed: int = 0) -> Refiner:
    """An untrained refiner that starts from the backbone of a network with MobileNetV2, by the names of its state.

    Raises CheckpointError for another network.
    """
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in network.items() if name.startswith(prefix)}
    torch.manual_seed(seed)
    refiner = Refiner()
    try:
        refiner.start_from(backbone)
    except (KeyError, RuntimeError) as exc:
        raise CheckpointError(f"refiner: expected weights with a MobileNetV2 backbone to start from: {exc}") from exc
    return refiner


@dataclass(frozen=True)
class RefinerSettings:
    steps: int  #: in all
    batch: int = 8
    seed: int = 0


def as_batch(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """What `Refiner.forward` takes."""
    rgb = torch.from_numpy(np.stack([e.rgb for e in examples])).permute(0, 3, 1, 2)
    hints = torch.from_numpy(np.stack([hint_maps(e.logits, e.clicks) for e in examples]))
    logits = torch.from_numpy(np.stack([e.logits for e in examples]))[:, None]
    return rgb, hints.contiguous(memory_format=torch.channels_last), logits


def refiner_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Normalised focal loss plus dice, mean over the batch. logits (B, 1, H, W), wanted the same of 0 and 1."""
    probability = torch.sigmoid(logits)
    right = torch.where(wanted > 0, probability, 1 - probability)
    focus = (1 - right) ** GAMMA
    share = focus / focus.mean((1, 2, 3), keepdim=True).clamp(min=1e-4).detach()
    focal = (share.clamp(max=20) * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).mean()
    both = (probability * wanted).sum((1, 2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum((1, 2, 3)) + wanted.sum((1, 2, 3)) + 1)
    return focal + dice.mean()


class RefinerRun:
    """A run between two steps."""

    def __init__(self, refiner: Refiner, settings: RefinerSettings, out: Path) -> None:
        self.refiner, self.settings, self.out, self.step = refiner, settings, out, 0
        refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [(n, p) for n, p in refiner.named_parameters() if p.requires_grad]
        pretrained = [p for n, p in trained if n.startswith("blocks.")]
        new = [p for n, p in trained if not n.startswith("blocks.")]
        groups = [{"params": new, "lr": RATE}, {"params": pretrained, "lr": BACKBONE_RATE}]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=DECAY)

    def train_step(self, material: Material) -> float:
        """One step on examples that seed and step decide; returns the loss."""
        rng = np.random.default_rng([self.settings.seed, self.step])
        examples = [material.draw(rng) for _ in range(self.settings.batch)]
        for _ in range(int(rng.choice(len(ITERATIONS), p=ITERATIONS))):
            with torch.inference_mode():
                after = self.refiner(*as_batch(examples))[:, 0].numpy()
            examples = [e.corrected(a) for e, a in zip(examples, after, strict=True)]
        wanted = torch.from_numpy(np.stack([e.wanted for e in examples]))[:, None].float()
        loss = refiner_loss(self.refiner(*as_batch(examples)), wanted)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.refiner.parameters(), LARGEST_GRADIENT)
        for group, rate in zip(self.optimiser.param_groups, (RATE, BACKBONE_RATE), strict=True):
            group["lr"] = rate * self._share_of_rate()
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _share_of_rate(self) -> float:
        """Linear at first, then half a cosine down to a fiftieth."""
        progress = min(1.0, self.step / self.settings.steps)
        return min(1.0, (self.step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress))))

    def save(self) -> None:
        state = {"model": self.refiner.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        save_state(state, self.out / STATE)
        save_weights(self.refiner, self.out / WEIGHTS)

    def load(self) -> None:
        """Go on where `save` left off. Raises CheckpointError."""
        path = self.out / STATE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; resume expects the folder of an earlier run")
        try:
            state = torch.load(path, weights_only=True)
            self.refiner.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = int(state["step"])
        except Exception as exc:  # torch raises many kinds, all of which mean: not this run's state
            raise CheckpointError(f"{path}: expected the saved state of a refiner: {exc}") from exc


def train_refiner(
    run: RefinerRun,
    material: Material,
    *,
    minutes: float | None = None,
    console: Console | None = None,
    should_stop: ShouldStop = never_stop,
) -> int:
    """Train until the run's steps are done, or pause after so many minutes; returns the steps done in all.

    With the same material a resumed run goes on exactly. Raises DataError.
    """
    began, console = time.monotonic(), console or Console()
    run.out.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    while run.step < run.settings.steps:
        over = minutes is not None and time.monotonic() - began >= 60 * minutes
        if over or should_stop():
            break
        losses.append(run.train_step(material))
        if run.step % SAVE_EVERY == 0:
            seconds = (time.monotonic() - began) / len(losses)
            mean = float(np.mean(losses[-SAVE_EVERY:]))
            console.print(
                f"step {run.step}: loss {mean:.4f}, {seconds:.2f} s a step, {len(material.answers)} photos answered"
            )
            run.save()
    run.save()
    return run.step
