"""The mean of a map inside parts of a box: what SAM 3 reads where a box is an example of what is looked for.

The library takes `roi_align` from torchvision, which cannot be used beside every build of torch; this is the same mean
in torch alone. `provide` lends it to the library where torchvision is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(maps: Tensor, boxes: Sequence[Tensor], size: int) -> Tensor:
    """maps (B, C, h, w); boxes of each, (n, 4) x0, y0, x1, y1 in cells -> (all n, C, size, size).

    Each box, at least a cell wide and high, is cut into size x size parts. The value of a part is the mean of the map
    at points in it, evenly spaced, one a cell and side. The middle of the first cell is at (0, 0).
    """
    return torch.cat([_means(one, box, size) for one, of in zip(maps, boxes, strict=True) for box in of])


def _means(one: Tensor, box: Tensor, size: int) -> Tensor:
    """one (C, h, w), box (4,) -> (1, C, size, size)."""
    starts, sides = box[:2].double(), (box[2:] - box[:2]).double().clamp(min=1)
    points = [max(1, int(torch.ceil(side / size))) for side in sides]  # of a part, along x and y
    height, width = one.shape[1:]
    at = []
    for start, side, count, cells in zip(starts, sides, points, (width, height), strict=True):
        steps = (torch.arange(size * count, device=one.device) + 0.5) / count
        at.append((start + steps * side / size, cells))
    grid = torch.stack(torch.meshgrid(_shares(*at[0]), _shares(*at[1]), indexing="xy"), -1)[None].float()
    values = F.grid_sample(one[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    outside_x, outside_y = ((where < -1) | (where > cells) for where, cells in at)
    values = values.masked_fill(outside_y[:, None] | outside_x, 0)
    return values.reshape(1, len(one), size, points[1], size, points[0]).mean((3, 5)).to(one.dtype)


def _shares(cells: Tensor, count: int) -> Tensor:
    """Places in cells -> -1..1 from the middle of the first cell to that of the last."""
    return cells * 2 / max(count - 1, 1) - 1


def provide(library: Any) -> None:
    """library: a module of `transformers` that calls torchvision.ops.roi_align, whose name it lacks without it."""
    if not hasattr(library, "torchvision"):
        library.torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))
