"""Prompts drawn from annotated masks, and the masks that each of them may mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semsam_model.network.frame import BOX, CLICK
from semsam_model.training.config import SamplingConfig
from semsam_model.training.losses.matching import NO_TARGET, Targets
from semsam_model.types import GRANULARITIES

#: Of the prompts of an image with masks that nobody annotated: so many are drawn from these.
ADDED_SHARE = 0.5


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """bool (G, H, W), none empty -> float32 (G, 4), cx, cy, w, h as shares of (W, H), tight."""
    spans = []
    for axis, length in ((1, masks.shape[2]), (2, masks.shape[1])):
        line = np.asarray(masks.any(axis))
        spans.append((line.argmax(1) / length, 1 - line[:, ::-1].argmax(1) / length))
    (x0, x1), (y0, y1) = spans
    return np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DrawnPrompts:
    """N prompts of one image: `boxes` float32 (N, 4), `kinds` int (N,), `targets` int (N, K) as `Targets.of_prompt`."""

    boxes: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """N prompts for each of B images, with what their predictions are held to. Coordinates are shares of the image."""

    boxes: Tensor  #: float (B, N, 4), cx, cy, w, h
    kinds: Tensor  #: long (B, N), click or box
    targets: Targets
    labels: list[Tensor]  #: long (G_b,) for each image: the masks' rows in the vocabulary, or NO_LABEL

    @classmethod
    def of(
        cls,
        prompts: Sequence[DrawnPrompts],
        masks: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        partial: list[bool],
        supervised: Sequence[np.ndarray] | None = None,
    ) -> PromptBatch:
        """Of images one by one. masks bool (G_b, S, S), labels long (G_b,), supervised (G_b, 3); see `Targets`."""
        targets = Targets(
            [torch.from_numpy(of_image) for of_image in masks],
            [torch.from_numpy(mask_boxes(of_image)) for of_image in masks],
            torch.from_numpy(np.stack([drawn.targets for drawn in prompts])),
            partial,
            None if supervised is None else [torch.from_numpy(of_image) for of_image in supervised],
        )
        return cls(
            torch.from_numpy(np.stack([drawn.boxes for drawn in prompts])),
            torch.from_numpy(np.stack([drawn.kinds for drawn in prompts])),
            targets,
            [torch.from_numpy(of_image) for of_image in labels],
        )

    def to(self, device: torch.device | str) -> PromptBatch:
        labels = [of_image.to(device) for of_image in self.labels]
        return PromptBatch(self.boxes.to(device), self.kinds.to(device), self.targets.to(device), labels)


def draw_prompts(
    masks: np.ndarray,
    granularity: Sequence[str],
    config: SamplingConfig,
    click_box: float,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
    added: np.ndarray | None = None,
) -> DrawnPrompts:
    """Draw prompts from bool (G, S, S) masks, none empty: a granularity, a mask of it, then a pixel of it or its box.

    The granularity is drawn uniformly, so that one house counts as much as its three hundred windows. Within a
    granularity every mask is drawn before any is drawn again, or, with `weights` of the masks, in proportion to them. A
    click may mean every mask that contains it (at most `max_targets`, the drawn one first), a box only its own.
    added: bool (G,), masks that nobody annotated; where there are some, ADDED_SHARE of the prompts are drawn from them.
    """
    of_model = np.zeros(len(masks), bool) if added is None else added
    of_kinds = [np.asarray(granularity) == kind for kind in GRANULARITIES]
    annotated, found = (
        [np.flatnonzero(side & kind) for kind in of_kinds if (side & kind).any()] for side in (~of_model, of_model)
    )
    queues: dict[int, list[int]] = {}  # by the first mask of a group
    tight = mask_boxes(masks)
    height, width = masks.shape[1:]
    boxes = np.zeros((config.prompts, 4), np.float32)
    kinds = np.full(config.prompts, CLICK)
    targets = np.full((config.prompts, config.max_targets), NO_TARGET)
    for row in range(config.prompts):
        groups = found if found and (not annotated or rng.random() < ADDED_SHARE) else annotated
        group = groups[int(rng.choice(len(groups)))]
        if weights is not None:
            chances = np.asarray(weights, float)[group]
            target = int(rng.choice(group, p=chances / chances.sum()))
        else:
            queue = queues.setdefault(int(group[0]), [])
            if not queue:
                queue += rng.permutation(group).tolist()
            target = queue.pop()
        targets[row, 0] = target
        if rng.random() < config.box_share:
            kinds[row] = BOX
            half = np.array([0.5, 0.5, 1, 1]) * tight[target][[2, 3, 2, 3]]
            box = tight[target] + rng.uniform(-config.box_noise, config.box_noise, 4) * half
            boxes[row] = np.clip(box, 0, 1)
            continue
        pixels = np.flatnonzero(masks[target])
        i, j = divmod(int(rng.choice(pixels)), width)
        boxes[row] = ((j + 0.5) / width, (i + 0.5) / height, click_box, click_box)
        others = rng.permutation(np.flatnonzero(masks[:, i, j]))
        others = others[others != target][: config.max_targets - 1]
        targets[row, 1 : 1 + len(others)] = others
    return DrawnPrompts(boxes, kinds, targets)
