"""Annotated masks as the losses read them: bilinear values at points, and areas at stride 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.training.losses.matching import Targets


class TargetMasks:
    """The annotated masks of a batch in one stack, at full size for the points and at stride 4 for areas."""

    def __init__(self, targets: Targets, size: tuple[int, int]) -> None:
        """size: (h, w) at stride 4."""
        self.targets = targets
        self.masks = torch.cat(targets.masks)
        self.bordered = F.pad(self.masks.view(torch.uint8), (1, 1, 1, 1))
        self.boxes = torch.cat(targets.boxes).float()
        counts = [len(masks) for masks in targets.masks]
        self.start = [sum(counts[:image]) for image in range(len(counts))]
        everything = self.boxes.new_ones(len(self.masks), 3)
        #: (G, 3), 1 or 0
        self.supervised = everything if targets.supervised is None else torch.cat(targets.supervised).to(everything)
        self.small = F.adaptive_avg_pool2d(self.masks[:, None].float(), size).squeeze(1) > 0.5

    def at(self, rows: Tensor, points: Tensor) -> Tensor:
        """Bilinear values of masks `rows` (n,) at `points` (n, P, 2): (n, P).

        By hand, because n pairs share few masks and grid_sample would need a float copy of the mask for every pair.
        """
        height, width = self.masks.shape[-2:]
        x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, bottom_share = x - left, y - top
        # Flat index of the upper left of four neighbours; the border of zeros shifts rows and columns by one.
        corner = ((rows[:, None] * (height + 2) + top.long() + 1) * (width + 2)) + left.long() + 1
        value = torch.zeros_like(x)
        for down, row_share in ((0, 1 - bottom_share), (1, bottom_share)):
            for right, column_share in ((0, 1 - right_share), (1, right_share)):
                value += self.bordered.take(corner + (down * (width + 2) + right)) * (row_share * column_share)
        return value
