"""Gradients of weighted sums of rows on a GPU, in one pass over the taps; Triton comes with PyTorch's CUDA builds.

PyTorch's own backward of `embedding_bag` sorts millions of rows, and gather and scatter of rows of 16 channels, one
after the other, move every tap through memory three times. Gradients of a row are added in whatever order they come, so
the last bits differ from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024  #: of the gradient that a program holds, so a power of two of bags times the channels


@triton.jit
def _backward(
    grad_at,
    table_at,
    rows_at,
    weights_at,
    table_grad_at,
    weight_grad_at,
    bags,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    BAGS: tl.constexpr,
):
    bag = tl.program_id(0) * BAGS + tl.arange(0, BAGS)
    there = bag < bags
    channel = tl.arange(0, WIDTH)
    both = there[:, None] & (channel < CHANNELS)[None]
    grad = tl.load(grad_at + bag[:, None].to(tl.int64) * CHANNELS + channel[None], mask=both, other=0.0)
    first = bag.to(tl.int64) * TAPS
    for tap in range(TAPS):
        row = tl.load(rows_at + first + tap, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights_at + first + tap, mask=there, other=0.0)
        at = row[:, None] * CHANNELS + channel[None]
        read = tl.load(table_at + at, mask=both, other=0.0)
        tl.store(weight_grad_at + first + tap, tl.sum(read * grad, 1), mask=there)
        # a tap outside its map has weight 0 and adds nothing
        tl.atomic_add(table_grad_at + at, weight[:, None] * grad, mask=both & (weight != 0)[:, None], sem="relaxed")


def weighted_rows_backward(grad: Tensor, table: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sums of weights[i, k] * table[rows[i, k]] over k: gradients of table and weights.

    grad (bags, C), table (R, C), rows int32 and weights (bags, taps), all on one GPU; float32.
    """
    grad, table, rows, weights = (x.contiguous() for x in (grad, table, rows, weights))
    table_grad, weight_grad = torch.zeros_like(table), torch.empty_like(weights)
    (bags, taps), channels = rows.shape, table.shape[1]
    width = triton.next_power_of_2(channels)
    each = max(1, ELEMENTS // width)
    sizes = {"TAPS": taps, "CHANNELS": channels, "WIDTH": width, "BAGS": each}
    if bags:
        with torch.cuda.device_of(table):
            _backward[(triton.cdiv(bags, each),)](grad, table, rows, weights, table_grad, weight_grad, bags, **sizes)
    return table_grad, weight_grad
