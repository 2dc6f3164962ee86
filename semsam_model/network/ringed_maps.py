"""Maps of a memory with a ring of zeros around each, where deformable attention reads without looking for the edge.

For inference on a processor: less work than to look for taps that are outside, and the same sums, bit for bit. Rows
are computed in float32, exact up to 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]  #: (H, W) of each memory level


def of_points(values: Sequence[int], heads: int, points: int) -> Tensor:
    """float32 (heads * levels * points,): of each point of each head the value of its level."""
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(points).repeat(heads)


class RingedMaps:
    """Cells of a map are numbered along its rows, with one cell of the ring between two of them. A point beyond the
    ring is moved to it, and reads zeros there: one row of them above a map, two below.
    """

    def __init__(self, shapes: Shapes, heads: int, points: int) -> None:
        self._shapes, self._heads = shapes, heads
        sizes = [(h + 3) * (w + 2) for h, w in shapes]
        self._starts = [sum(sizes[:level]) for level in range(len(shapes))]
        self._count = sum(sizes) + 1  # what lies right of the last cell
        height, width = (of_points(sides, heads, points) for sides in zip(*shapes, strict=True))
        self._last = width, height
        self._row = (width + 2) * heads  #: rows of the table from a cell to the one below it
        head = torch.arange(heads).repeat_interleave(len(shapes) * points)
        self._first = of_points(self._starts, heads, points) * heads + self._row + heads + head
        row = self._row.int()
        self._steps = torch.zeros_like(row), torch.full_like(row, heads), row, row + heads

    def table(self, projected: Tensor) -> Tensor:
        """(B, S, C), levels one after another, each row-major -> (B, S', C), with the rings."""
        ringed = projected.new_zeros(projected.shape[0], self._count, projected.shape[2])
        of_levels = projected.split([h * w for h, w in self._shapes], 1)
        for (h, w), start, of_level in zip(self._shapes, self._starts, of_levels, strict=True):
            cells = ringed[:, start : start + (h + 3) * (w + 2)].unflatten(1, (h + 3, w + 2))
            cells[:, 1 : h + 1, 1 : w + 1] = of_level.unflatten(1, (h, w))
        return ringed

    def taps(self, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Places x, y of points, in cells of their maps with 0 the centre of the first, and their shares, all
        (B, Q, heads * levels * points) -> rows of the table as (B * S' * heads, C / heads), int32, and their weights,
        both (B, Q, heads, 4 * levels * points).
        """
        x, y = (at.clamp(min=-1).minimum(last) for at, last in zip((x, y), self._last, strict=True))
        left, top = x.floor(), y.floor()
        right_share, lower_share = x.sub_(left), y.sub_(top)
        across = 1 - right_share, right_share
        down = (1 - lower_share).mul_(share), lower_share.mul_(share)
        first = torch.addcmul(self._first, top, self._row).add_(left, alpha=self._heads).int()
        first.clamp_(min=0)  # of what is not a number
        if len(x) > 1:
            first += torch.arange(len(x), dtype=torch.int32).view(-1, 1, 1) * (self._count * self._heads)
        rows = self._by_head([first + step for step in self._steps])
        return rows, self._by_head([one * other for one, other in product(down, across)])

    def _by_head(self, of_taps: Sequence[Tensor]) -> Tensor:
        """Four (B, Q, heads * n) -> (B, Q, heads, 4 * n)."""
        return torch.cat([each.unflatten(2, (self._heads, -1)) for each in of_taps], 3)
