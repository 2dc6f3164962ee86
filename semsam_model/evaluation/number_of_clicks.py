"""How many clicks a mask takes, with simulated corrections (NoC80, NoC90)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semsam_model.masks.clicker import innermost, next_click
from semsam_model.masks.geometry import iou
from semsam_model.types import Prompt

MAX_CLICKS = 20  #: a mask that is not right by then counts as this many
TARGET_IOU = 0.9  #: IoU at which correcting stops


@dataclass(frozen=True)
class CorrectedMask:
    """One mask, corrected until its prediction is right."""

    source: str
    ious: tuple[float, ...]  #: of the first-ranked candidate after 1, 2, ... clicks

    def clicks_to(self, threshold: float) -> int:
        """Clicks until the IoU reaches the threshold (at most TARGET_IOU), MAX_CLICKS if it never does."""
        return next((n for n, value in enumerate(self.ious, 1) if value >= threshold), MAX_CLICKS)

    def after(self, clicks: int) -> float:
        """Best IoU seen within so many clicks: what an annotator who stops there has."""
        return max(self.ious[:clicks])


def iou_after_clicks(predict: Callable[[Prompt], np.ndarray], wanted: np.ndarray) -> list[float]:
    """IoU after each click: first in the middle of `wanted`, bool (H, W), then where the prediction is wrong.

    predict: all clicks so far -> bool (H, W). Stops at TARGET_IOU, after MAX_CLICKS clicks, or when no pixel is left to
    click.
    """
    clicks = [innermost(wanted)]
    ious: list[float] = []
    while True:
        mask = predict(Prompt(tuple(clicks)))
        ious.append(iou(mask, wanted))
        click = next_click(wanted, mask, clicks)
        if ious[-1] >= TARGET_IOU or len(clicks) == MAX_CLICKS or click is None:
            return ious
        clicks.append(click)
