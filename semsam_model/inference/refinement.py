"""Further clicks correct the mask that the first one gave, one after the other, each near where it was made.

A prompt carries all clicks in the order made and nothing is kept between answers, so the corrections are made again for
each answer: the first click (or the boxes) gives a mask, and each further click corrects the mask so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from semsam_model.network.merge import merge, obeying
from semsam_model.network.refiner import Refiner
from semsam_model.network.refiner_frame import OUTSIDE, Square, hint_maps
from semsam_model.types import Click, Prompt


def first_and_further(prompt: Prompt) -> tuple[Prompt, tuple[Click, ...]]:
    """What gives the first mask, the boxes or the first positive click; and the clicks that correct it, in order."""
    if prompt.boxes:
        return Prompt((), prompt.boxes), prompt.clicks
    first = prompt.positives[0]
    return Prompt((first,)), tuple(click for click in prompt.clicks if click is not first)


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
