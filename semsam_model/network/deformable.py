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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

Shapes = tuple[tuple[int, int], ...]  # (H, W) of each memory level
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
        # Without gradients, a few thousand queries at a time: taps and weights stay in the processor's cache.
        parts = [
            self._read(query[:, i : i + self.chunk], reference[:, i : i + self.chunk], table, shapes, dense)
            for i in range(0, q, self.chunk)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _read(self, query: Tensor, reference: Tensor, table: Tensor, shapes: Shapes, dense: bool) -> Tensor:
        """table (B, S, C): the projected memory in the dense form, else the memory itself."""
        b, s, _ = table.shape
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
        """Rows of the flat memory and their weights, both (B, Q, heads, levels * points * 4); rows int32.

        Taps outside a map keep a valid row and get weight 0.
        """
        b, q, _ = query.shape
        size = query.new_tensor([(w, h) for h, w in shapes], dtype=torch.float32)  # (L, 2) as x, y
        offset = self.sampling_offsets(query).float().view(b, q, self.heads, self.levels, self.points, 2)
        share = self.attention_weights(query).float().view(b, q, self.heads, -1).softmax(-1)
        share = share.view(b, q, self.heads, self.levels, self.points)
        ref = reference.float()[:, :, None, None, None, :]
        if reference.shape[-1] == 2:
            at = ref * size[:, None] + offset - 0.5  # location * size - 0.5, in memory cells
        else:
            at = (ref[..., :2] + offset / self.points * ref[..., 2:] * 0.5) * size[:, None] - 0.5
        low = at.detach().floor()
        part = at - low
        cell = low.to(torch.int32)
        limit = size.to(torch.int32)[:, None]
        inside_low = (cell >= 0) & (cell < limit)
        inside_high = (cell >= -1) & (cell < limit - 1)
        low_weight, high_weight = (1 - part) * inside_low, part * inside_high
        low_cell = torch.minimum(cell.clamp(min=0), limit - 1)
        high_cell = torch.minimum((cell + 1).clamp(min=0), limit - 1)
        width = limit[..., 0]
        start = torch.tensor([0, *(h * w for h, w in shapes)], device=query.device, dtype=torch.int32).cumsum(0)
        start = start[:-1, None].to(torch.int32)
        y_low, y_high = low_cell[..., 1] * width + start, high_cell[..., 1] * width + start
        wy_low, wy_high = low_weight[..., 1] * share, high_weight[..., 1] * share
        x_low, x_high = low_cell[..., 0], high_cell[..., 0]
        rows = torch.stack((y_low + x_low, y_low + x_high, y_high + x_low, y_high + x_high), -1)
        wx_low, wx_high = low_weight[..., 0], high_weight[..., 0]
        weights = torch.stack((wy_low * wx_low, wy_low * wx_high, wy_high * wx_low, wy_high * wx_high), -1)
        return rows.flatten(3), weights.flatten(3)


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
    bag_of = torch.arange(bags, dtype=rows.dtype).repeat_interleave(taps)
    weight_grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, rows.reshape(-1), torch.from_numpy(starts[:-1]), bag_of, 0
    )
    return table_grad, weight_grad.view(bags, taps)
