"""Multi-scale deformable attention (Zhu et al. 2021, eq. 3) in plain PyTorch.

Each query reads a few points of every memory level: bilinear, zero outside the map, weights from a softmax over all
points of all levels. Every point is four taps, so the output of a head is one weighted sum of rows of a table. That sum
is written as one `embedding_bag`, which is several times faster on CPU than grid_sample and copies nothing.

Two exact forms, chosen by cost:
  dense   project the whole memory, then sum rows of the projection: for as many queries as memory tokens (the pixel
          decoder)
  sparse  sum raw memory rows, then project the sums, W (sum a_i x_i) + b sum a_i: for few queries (the prompt decoder)
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from semsam_model.network.ringed_maps import RingedMaps, Shapes, of_points

CHUNK = 1024  #: queries that are processed together when no gradients are wanted


class DeformableAttention(nn.Module):
    """Parameters: offsets and weights are laid out [head, level, point, (x, y)]."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, chunk: int = CHUNK) -> None:
        super().__init__()
        self.chunk = chunk
        self.dim, self.heads, self.levels, self.points = dim, heads, levels, points
        self.value_proj = nn.Linear(dim, dim)
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.output_proj = nn.Linear(dim, dim)
        self._reset()

    def _reset(self) -> None:
        """Points start on eight compass directions, one step further for each point; equal weights."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        step = torch.arange(1, self.points + 1.0)
        bias = direction[:, None, None, :] * step[None, None, :, None]  # (heads, 1, points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).reshape(-1))
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes) -> Tensor:
        """query (B, Q, C); reference (1 or B, Q, 2) points x, y or (.., 4) boxes cx, cy, w, h, shares of the image;
        memory (B, S, C), levels one after another, each row-major; shapes of the levels. Returns (B, Q, C). Q may be 0.
        """
        q = query.shape[1]
        if not q:
            return query
        # a GPU projects the whole memory sooner than it reads taps as wide as the memory
        dense = q * self.heads * 2 > memory.shape[1] or memory.device.type != "cpu"
        table = self.value_proj(memory) if dense else memory
        if torch.is_grad_enabled() or memory.device.type != "cpu":
            return self._read(query, reference, table, shapes, dense)
        ringed = RingedMaps(shapes, self.heads, self.points) if dense else None
        if ringed is not None:
            table = ringed.table(table)
        # Without gradients, a few thousand queries at a time: taps and weights stay in the processor's cache.
        parts = [
            self._read(query[:, i : i + self.chunk], reference[:, i : i + self.chunk], table, shapes, dense, ringed)
            for i in range(0, q, self.chunk)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _read(
        self,
        query: Tensor,
        reference: Tensor,
        table: Tensor,
        shapes: Shapes,
        dense: bool,
        ringed: RingedMaps | None = None,
    ) -> Tensor:
        """table (B, S, C): the projected memory in the dense form, `RingedMaps.table` of it with `ringed`; else the
        memory itself.
        """
        b, s, _ = table.shape
        if ringed is not None:
            rows, weights = ringed.taps(*self._points(query, reference, shapes)[:3])
            value = _weighted_rows(table.view(-1, self.dim // self.heads), rows, weights)
            return self.output_proj(value.view(b, -1, self.dim).to(query.dtype))
        rows, weights = self._taps(query, reference, shapes)  # (B, Q, heads, taps)
        rows = rows + torch.arange(b, device=query.device, dtype=rows.dtype).view(b, 1, 1, 1) * s
        if dense:
            head = torch.arange(self.heads, device=query.device, dtype=rows.dtype).view(1, 1, -1, 1)
            table = table.view(b * s * self.heads, self.dim // self.heads)
            value = _weighted_rows(table, rows * self.heads + head, weights)
        else:  # W (sum a_i x_i) + b sum a_i, each head with its own rows of W and b
            sums = _weighted_rows(table.reshape(b * s, self.dim), rows, weights).view(b, -1, self.heads, self.dim)
            weight = self.value_proj.weight.view(self.heads, -1, self.dim)
            bias = self.value_proj.bias.view(self.heads, -1)
            value = torch.einsum("bqhc,hdc->bqhd", sums.to(weight.dtype), weight)
            value = value + bias * weights.sum(-1, keepdim=True).to(bias.dtype)
        return self.output_proj(value.reshape(b, -1, self.dim).to(query.dtype))

    def _taps(self, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Rows of the flat memory and their weights, both (B, Q, heads, 4 * levels * points); rows int32.

        Taps outside a map keep a valid row and get weight 0.
        """
        x, y, share, width, height = self._points(query, reference, shapes)
        start = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
        first = of_points(start, self.heads, self.points).to(query.device)
        rows, weights = _Taps.apply(x, y, share, width, height, first, self.heads)
        return rows, weights

    def _points(self, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, ...]:
        """Places x, y, in cells of their map, and shares of the points, (B, Q, heads * levels * points); width and
        height of their maps, (heads * levels * points,).
        """
        b, q, _ = query.shape
        share = self.attention_weights(query).float().view(b, q, self.heads, -1).softmax(-1).flatten(2)
        # Everything about a point lies in one row of heads * levels * points numbers, x and y apart: operations along
        # rows that long are vectorised, along pairs of x and y they are not.
        x, y = self._offsets(query).float().view(b, q, 2, -1).unbind(2)
        height, width = (
            of_points(sides, self.heads, self.points).to(query.device) for sides in zip(*shapes, strict=True)
        )
        ref = reference.float()
        if reference.shape[-1] == 4:
            x, y = x * (ref[..., 2:3] * (0.5 / self.points) * width), y * (ref[..., 3:] * (0.5 / self.points) * height)
        # location * size - 0.5, in memory cells
        return x + (ref[..., :1] * width - 0.5), y + (ref[..., 1:2] * height - 0.5), share, width, height

    def _offsets(self, query: Tensor) -> Tensor:
        """As `sampling_offsets`, but all x before all y."""
        weight, bias = self.sampling_offsets.weight, self.sampling_offsets.bias
        weight = weight.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        return F.linear(query, weight, bias.unflatten(0, (-1, 2)).t().flatten())


class _Taps(torch.autograd.Function):
    """Places x, y and shares of points, (B, Q, M), M = heads * points of a head -> `DeformableAttention._taps`.

    width, height, first (M,): of the map of each point its size, and its first row in the memory; floats, exact up to
    2^24. By hand, for what autograd would keep and go through again is many times the size of the input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, share: Tensor, width: Tensor, height: Tensor, first: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        across, down = _Axis.of(x, width), _Axis.of(y, height)
        shape = (*x.shape[:2], heads, 4, x.shape[2] // heads)
        rows, weights = x.new_empty(shape, dtype=torch.int32), x.new_empty(shape)
        for i in range(2):
            start, weight = down.cells[i].mul_(width).add_(first), down.weights[i] * share
            for j in range(2):
                rows[..., 2 * i + j, :] = (start + across.cells[j]).unflatten(2, (heads, -1))
                weights[..., 2 * i + j, :] = (weight * across.weights[j]).unflatten(2, (heads, -1))
        rows.clamp_(min=0)  # what is not a number must reach the check of the loss, not end in an index
        ctx.mark_non_differentiable(rows)
        ctx.save_for_backward(x, y, share, width, height)
        return rows.flatten(3), weights.flatten(3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, share, width, height = ctx.saved_tensors
        across, down = _Axis.of(x, width), _Axis.of(y, height)
        of_tap = [grad.flatten(2) for grad in grads[1].unflatten(3, (4, -1)).unbind(3)]
        (left, right), (top, bottom) = across.weights, down.weights
        upper, lower = left * of_tap[0] + right * of_tap[1], left * of_tap[2] + right * of_tap[3]
        before, after = top * of_tap[0] + bottom * of_tap[2], top * of_tap[1] + bottom * of_tap[3]
        of_x = (after * across.inside[1] - before * across.inside[0]) * share
        of_y = (lower * down.inside[1] - upper * down.inside[0]) * share
        return of_x, of_y, top * upper + bottom * lower, None, None, None, None


@dataclass(frozen=True)
class _Axis:
    """Of points along one axis, the cells on both sides of each: nearest ones in the map, weights, 1 inside, else 0."""

    cells: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    inside: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, at: Tensor, count: Tensor) -> _Axis:
        """at: in cells, 0 the centre of the first; count: of the map's cells."""
        low = at.floor()
        part, high = at - low, low + 1
        cells = low.clamp(min=0).minimum(count - 1), high.clamp(min=0).minimum(count - 1)
        inside = (cells[0] == low).to(at.dtype), (cells[1] == high).to(at.dtype)
        return cls(cells, ((1 - part) * inside[0], part * inside[1]), inside)


def _weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights[..., k] * table[rows[..., k]] over k, (bags, table width) in bag order; in float32."""
    taps = rows.shape[-1]
    rows, weights, table = rows.reshape(-1, taps), weights.reshape(-1, taps), table.float()
    if torch.is_grad_enabled() and table.requires_grad and table.device.type in ("cpu", "cuda"):
        return _WeightedRows.apply(table, rows, weights)
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


class _WeightedRows(torch.autograd.Function):
    """embedding_bag with a faster backward pass: PyTorch's own sorts millions of rows to sum the table's gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        table, rows, weights = ctx.saved_tensors
        if table.device.type == "cpu":
            table_grad, weight_grad = _backward_on_cpu(grads[0].contiguous(), table, rows, weights)
        else:
            # Triton is not in PyTorch's CPU builds
            from semsam_model.network.deformable_cuda import weighted_rows_backward

            table_grad, weight_grad = weighted_rows_backward(grads[0], table, rows, weights)
        return table_grad, None, weight_grad


def _backward_on_cpu(grad: Tensor, table: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of table and weights. That of the table is the transposed sparse matrix (bags x table rows) times the
    incoming gradient, and SciPy multiplies by a transpose without building it.
    """
    bags, taps = rows.shape
    starts = np.arange(0, bags * taps + 1, taps, dtype=np.int32)
    matrix = sparse.csr_matrix(
        (weights.detach().reshape(-1).numpy(), rows.reshape(-1).numpy(), starts), shape=(bags, table.shape[0])
    )
    table_grad = torch.from_numpy(matrix.T @ grad.numpy())
    # That of a weight is the product of its bag's gradient and its row: a product of matrices at a few places.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        pattern = torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            rows.reshape(-1),
            weights.detach().reshape(-1),
            (bags, len(table)),
            check_invariants=False,
        )
    weight_grad = torch.sparse.sampled_addmm(pattern, grad, table.detach().t(), beta=0).values()
    return table_grad, weight_grad.view(bags, taps)
