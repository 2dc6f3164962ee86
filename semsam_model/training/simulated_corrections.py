"""Simulated corrections in training: a prompt is predicted, clicked where the mask is wrong, and predicted again.

The simulated annotator sees the best of the levels, as a person takes the nearest candidate before correcting it, and
clicks the deepest wrong place or, drawn by chance, any wrong place (RITM, Sofiiuk et al. 2022, section 3.2; Semantic-
SAM's own training has one click a prompt). All but the last prediction are made without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.masks.clicker import next_click
from semsam_model.network.decoder import ABSENT, NEGATIVE, POSITIVE, FurtherClicks, LayerOutput
from semsam_model.network.model import SemanticSAM
from semsam_model.network.pixel_decoder import Features
from semsam_model.training.config import SimulatedCorrectionsConfig
from semsam_model.training.losses.matching import NO_TARGET, Targets
from semsam_model.training.prompts import PromptBatch
from semsam_model.types import Click


def simulate_corrections(
    model: SemanticSAM,
    features: Features,
    prompts: PromptBatch,
    first: LayerOutput,
    config: SimulatedCorrectionsConfig,
    count: int,
    rngs: Sequence[np.random.Generator],
) -> tuple[list[LayerOutput], Targets]:
    """Predict some prompts of a batch once more, with clicks where the prediction was wrong.

    prompts as drawn, `first` the last layer's output for them. Returns the outputs of every layer for at most
    `config.prompts` prompts an image, with gradients, and what they are held to: of the masks that a prompt may mean
    those that agree with all its clicks, the one it was drawn from among them.
    count: at most this many further clicks; rngs: one for each image, so that its clicks depend on no other.
    """
    device, total = prompts.boxes.device, prompts.boxes.shape[1]
    chosen = np.stack([np.sort(rng.permutation(total)[: config.prompts]) for rng in rngs])
    row, column = torch.arange(len(rngs), device=device)[:, None], torch.from_numpy(chosen).to(device)
    boxes, kinds = prompts.boxes[row, column], prompts.kinds[row, column]
    of_prompt = prompts.targets.of_prompt[row, column]
    size = (features.mask_features.shape[-2], features.mask_features.shape[-1])
    masks = [F.adaptive_avg_pool2d(m[:, None].float(), size).squeeze(1) > 0.5 for m in prompts.targets.masks]
    target = torch.stack([of_image[rows] for of_image, rows in zip(masks, of_prompt[:, :, 0], strict=True)])
    expected = target.cpu().numpy()
    clicks = FurtherClicks(torch.zeros(*kinds.shape, count, 2), torch.full((*kinds.shape, count), ABSENT))
    with torch.no_grad():
        embedding = first.mask_embedding[row, column]
        for number in range(count):
            if number:
                earlier = FurtherClicks(clicks.points[:, :, :number].to(device), clicks.kinds[:, :, :number].to(device))
                embedding = model.decoder(features, boxes, kinds, further=earlier)[-1].mask_embedding
            predicted = _nearest(model.mask_logits(features, embedding) > 0, target).cpu().numpy()
            for b, rng in enumerate(rngs):
                new = _next_clicks(expected[b], predicted[b], clicks.points[b, :, :number], config, rng)
                clicks.points[b, :, number], clicks.kinds[b, :, number] = new
    clicks = FurtherClicks(clicks.points.to(device), clicks.kinds.to(device))
    allowed = [_agreeing(masks[b], of_prompt[b], clicks.points[b], clicks.kinds[b]) for b in range(len(masks))]
    layers = model.decoder(features, boxes, kinds, all_layers=True, further=clicks)
    return layers, replace(prompts.targets, of_prompt=torch.stack(allowed))


def _nearest(masks: Tensor, target: Tensor) -> Tensor:
    """bool (B, N, T, h, w) and (B, N, h, w) -> of each prompt the level of highest IoU, (B, N, h, w)."""
    inner = (masks & target[:, :, None]).sum((3, 4))
    union = (masks | target[:, :, None]).sum((3, 4)).clamp(min=1)
    best = (inner / union).argmax(2)
    return masks.take_along_dim(best[:, :, None, None, None], 2)[:, :, 0]


def _next_clicks(
    expected: np.ndarray,
    predicted: np.ndarray,
    before: Tensor,
    config: SimulatedCorrectionsConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """One more click for each of N prompts, bool (N, h, w) expected and predicted, `before` (N, clicks, 2) as shares:
    places (N, 2) as shares, kinds (N,), ABSENT where nothing is wrong.
    """
    h, w = expected.shape[-2:]
    places, kinds = np.zeros((len(expected), 2), np.float32), np.full(len(expected), ABSENT)
    earlier = (before.numpy() * (w, h)).tolist()
    for n in range(len(expected)):
        if rng.random() < config.deepest:
            click = next_click(expected[n], predicted[n], [Click(x, y) for x, y in earlier[n]])
        else:
            click = _any_wrong_cell(expected[n], predicted[n], rng)
        if click is not None:
            places[n] = click.x / w, click.y / h
            kinds[n] = POSITIVE if click.positive else NEGATIVE
    return torch.from_numpy(places), torch.from_numpy(kinds)


def _any_wrong_cell(expected: np.ndarray, predicted: np.ndarray, rng: np.random.Generator) -> Click | None:
    wrong = np.flatnonzero(expected ^ predicted)
    if not wrong.size:
        return None
    i, j = divmod(int(rng.choice(wrong)), expected.shape[1])
    return Click(j + 0.5, i + 0.5, bool(expected[i, j]))


def _agreeing(masks: Tensor, of_prompt: Tensor, points: Tensor, kinds: Tensor) -> Tensor:
    """`of_prompt` (N, K) without the masks that contradict a click; the first, from which the prompt was drawn, stays.

    masks bool (G, h, w), points (N, clicks, 2) as shares, kinds (N, clicks).
    """
    h, w = masks.shape[-2:]
    row = (points[..., 1] * h).long().clamp(0, h - 1)
    column = (points[..., 0] * w).long().clamp(0, w - 1)
    inside = masks[:, row, column]  # (G, N, clicks)
    agrees = ((inside == (kinds == POSITIVE)) | (kinds == ABSENT)).all(2)  # (G, N)
    kept = agrees.T.gather(1, of_prompt.clamp(min=0))
    kept[:, 0] = True
    return of_prompt.where(kept, torch.full_like(of_prompt, NO_TARGET))
