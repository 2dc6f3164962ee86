"""How many clicks a mask takes, with simulated corrections (NoC80, NoC90)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semsam_model.masks.clicker import innermost, next_click
from semsam_model.masks.geometry import iou
from semsam_model.types import Prompt

MOST = 20  #: clicks; a mask that is not right by then counts as this many
ENOUGH = 0.9  #: IoU at which correcting stops


@dataclass(frozen=True)
class Corrected:
    """One mask, corrected until right."""

    source: str
    ious: tuple[float, ...]  #: of the first-ranked candidate after 1, 2, ... clicks

    def clicks_to(self, threshold: float) -> int:
        """Clicks until the IoU reaches the threshold (at most ENOUGH), MOST if it never does."""
        return next((n for n, value in enumerate(self.ious, 1) if value >= threshold), MOST)

    def after(self, clicks: int) -> float:
        """Best IoU seen within so many clicks: what an annotator who stops there has."""
        return max(self.ious[:clicks])


def correct(answer: Callable[[Prompt], np.ndarray], wanted: np.ndarray) -> list[float]:
    """IoU after each click: first in the middle of `wanted`, bool (H, W), then where the answer is wrong.

    answer: all clicks so far -> bool (H, W). Stops at ENOUGH, after MOST clicks, or when no pixel is left to click.
    """
    clicks = [innermost(wanted)]
    ious: list[float] = []
    while True:
        mask = answer(Prompt(tuple(clicks)))
        ious.append(iou(mask, wanted))
        following = next_click(wanted, mask, clicks)
        if ious[-1] >= ENOUGH or len(clicks) == MOST or following is None:
            return ious
        clicks.append(following)
