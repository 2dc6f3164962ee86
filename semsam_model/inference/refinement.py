"""Further clicks correct the mask that the first one gave, one after the other, each near where it was made.

A prompt carries all clicks in the order made and nothing is kept between answers, so the corrections are made again for
each answer: the first click (or the boxes) gives a mask, and each further click corrects the mask so far. Where the
first of them contradicts the mask, the network is asked again with it, before it corrects.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from semsam_model.network.merge import merge, obeying
from semsam_model.network.refiner import Refiner
from semsam_model.network.refiner_frame import OUTSIDE, Square, hint_maps
from semsam_model.types import Click, Prompt

DEEP = 0.1  #: of the square root of the mask's area, a negative click that deep says that another mask is meant


def first_and_further(prompt: Prompt) -> tuple[Prompt, tuple[Click, ...]]:
    """What gives the first mask, the boxes or the first positive click; and the clicks that correct it, in order."""
    if prompt.boxes:
        return Prompt((), prompt.boxes), prompt.clicks
    first = prompt.positives[0]
    return Prompt((first,)), tuple(click for click in prompt.clicks if click is not first)


def contradicts(logits: np.ndarray, click: Click) -> bool:
    """Whether a negative click lies so deep in the mask, float32 (h, w), that another level must be meant.

    Annotators click where the error is deepest, so the error is at least as wide as the click is deep.
    """
    mask, at = logits > 0, (int(click.y), int(click.x))
    if click.positive or not mask[at]:
        return False
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return float(depth[at]) > DEEP * float(np.sqrt(np.count_nonzero(mask)))


def refine(refiner: Refiner, pixels: np.ndarray, logits: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """Correct a mask where the newest click is.

    pixels: uint8 (h, w, 3), the resized photo. logits: float32 (h, w), of the mask so far. clicks: all so far, in these
    pixels, the newest last. Returns float32 (h, w), which obeys every click; what is far from the newest click and
    from what changed at it is the same bit for bit.
    """
    square = Square.around(logits > 0, clicks)
    before, inside = square.crop(logits, OUTSIDE), [square.click(click) for click in clicks]
    device = refiner.pixel_mean.device
    with torch.inference_mode():
        rgb = torch.from_numpy(square.crop(pixels, np.nan)).permute(2, 0, 1)[None]
        hints = torch.from_numpy(hint_maps(before, inside))[None].contiguous(memory_format=torch.channels_last)
        after = refiner(rgb.to(device), hints.to(device), torch.from_numpy(before)[None, None].to(device))
    merged = merge(before, after[0, 0].cpu().numpy(), inside)
    return obeying(square.paste(merged, logits, merged != before), clicks)
