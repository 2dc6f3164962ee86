"""Correction rounds in training: a prompt is answered, clicked where the answer is wrong, and answered again.

The simulated annotator sees the best of the levels, as a person takes the nearest candidate before correcting it, and
clicks the deepest wrong place or any wrong place by turns of chance (RITM, Sofiiuk et al. 2022, section 3.2; Semantic-
SAM's own training has one click a prompt). All but the last answer are made without gradients.
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
from semsam_model.types import Click


def correct(
    model: SemanticSAM,
    features: Features,
    boxes: Tensor,
    kinds: Tensor,
    targets: Targets,
    first: LayerOutput,
    config: SimulatedCorrectionsConfig,
    count: int,
    rngs: Sequence[np.random.Generator],
) -> tuple[list[LayerOutput], Targets]:
    """Some prompts of a batch once more, with clicks where the answer was wrong.

    boxes (B, N, 4) and kinds (B, N) as drawn, `first` the last layer's answer to them. Returns the answers of every
    layer to at most `config.prompts` prompts an image, with gradients, and what they are held to: of the masks that a
    prompt may mean those that agree with all its clicks, the wanted one among them.
    count: at most this many further clicks; rngs: one for each image, so that its clicks depend on no other.
    """
    chosen = np.stack([np.sort(rng.permutation(boxes.shape[1])[: config.prompts]) for rng in rngs])
    row, column = torch.arange(len(rngs), device=boxes.device)[:, None], torch.from_numpy(chosen).to(boxes.device)
    boxes, kinds, of_prompt = boxes[row, column], kinds[row, column], targets.of_prompt[row, column]
    size = (features.mask_features.shape[-2], features.mask_features.shape[-1])
    small = [F.adaptive_avg_pool2d(masks[:, None].float(), size).squeeze(1) > 0.5 for masks in targets.masks]
    wanted = torch.stack([masks[rows] for masks, rows in zip(small, of_prompt[:, :, 0], strict=True)])
    right = wanted.cpu().numpy()
    points, signs = torch.zeros(*kinds.shape, count, 2), torch.full((*kinds.shape, count), ABSENT)
    with torch.no_grad():
        embedding = first.mask_embedding[row, column]
        for number in range(count):
            if number:
                so_far = FurtherClicks(points[:, :, :number].to(boxes.device), signs[:, :, :number].to(boxes.device))
                embedding = model.prompt(features, boxes, kinds, further=so_far)[-1].mask_embedding
            answers = _nearest(model.mask_logits(features, embedding) > 0, wanted).cpu().numpy()
            for image, rng in enumerate(rngs):
                at = _clicks(right[image], answers[image], points[image, :, :number], config, rng)
                points[image, :, number], signs[image, :, number] = at
    points, signs = points.to(boxes.device), signs.to(boxes.device)
    allowed = torch.stack([_agreeing(small[b], of_prompt[b], points[b], signs[b]) for b in range(len(small))])
    layers = model.prompt(features, boxes, kinds, all_layers=True, further=FurtherClicks(points, signs))
    return layers, replace(targets, of_prompt=allowed)


def _nearest(answers: Tensor, wanted: Tensor) -> Tensor:
    """bool (B, N, T, h, w) and (B, N, h, w) -> of each prompt the level of highest IoU, (B, N, h, w)."""
    inner = (answers & wanted[:, :, None]).sum((3, 4))
    union = (answers | wanted[:, :, None]).sum((3, 4)).clamp(min=1)
    best = (inner / union).argmax(2)
    return answers.take_along_dim(best[:, :, None, None, None], 2)[:, :, 0]


def _clicks(
    right: np.ndarray, given: np.ndarray, before: Tensor, config: SimulatedCorrectionsConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One more click for each of N prompts, bool (N, h, w) wanted and given, `before` (N, clicks, 2) as shares: places
    (N, 2) as shares, kinds (N,), ABSENT where nothing is wrong.
    """
    h, w = right.shape[-2:]
    places, kinds = torch.zeros(len(right), 2), torch.full((len(right),), ABSENT)
    earlier = (before.numpy() * (w, h)).tolist()
    for n in range(len(right)):
        if rng.random() < config.deepest:
            click = next_click(right[n], given[n], [Click(x, y) for x, y in earlier[n]])
        else:
            click = _anywhere(right[n], given[n], rng)
        if click is not None:
            places[n] = torch.tensor([click.x / w, click.y / h])
            kinds[n] = POSITIVE if click.positive else NEGATIVE
    return places, kinds


def _anywhere(wanted: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> Click | None:
    wrong = np.flatnonzero(wanted ^ answer)
    if not wrong.size:
        return None
    i, j = divmod(int(rng.choice(wrong)), wanted.shape[1])
    return Click(j + 0.5, i + 0.5, bool(wanted[i, j]))


def _agreeing(masks: Tensor, of_prompt: Tensor, points: Tensor, kinds: Tensor) -> Tensor:
    """`of_prompt` (N, K) without the masks that contradict a click; the first, which is the wanted one, stays.

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
