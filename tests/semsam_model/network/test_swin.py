"""Each part against a slow form that walks pixel by pixel."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semsam_model.network.swin import (
    MASKED,
    PatchMerging,
    Swin,
    SwinBlock,
    relative_position_index,
    shift_mask,
    window_merge,
    window_partition,
)

small = st.integers(1, 4)


@given(batch=small, rows=small, cols=small, window=small)
@settings(max_examples=25, deadline=None)
def test_windows_are_slices_row_by_row_and_merge_back(batch: int, rows: int, cols: int, window: int) -> None:
    x = torch.arange(batch * rows * cols * window * window * 2).view(batch, rows * window, cols * window, 2)
    windows = window_partition(x, window)
    slices = [
        x[b, r * window : (r + 1) * window, c * window : (c + 1) * window].reshape(-1, 2)
        for b, r, c in itertools.product(range(batch), range(rows), range(cols))
    ]
    assert torch.equal(windows, torch.stack(slices))
    assert torch.equal(window_merge(windows, window, rows * window, cols * window), x)


@given(window=st.integers(2, 5), rows=small, cols=small)
@settings(max_examples=25, deadline=None)
def test_the_shift_mask_parts_what_the_cyclic_shift_brought_together(window: int, rows: int, cols: int) -> None:
    height, width, shift = rows * window, cols * window, window // 2
    mask = shift_mask(height, width, window, shift, torch.zeros(1))
    at = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)
    before = window_partition(at.roll((-shift, -shift), (0, 1))[None], window)  # where each position came from
    after = window_partition(at[None], window)
    for w, i, j in itertools.product(range(rows * cols), range(window**2), range(window**2)):
        kept_apart = torch.equal(before[w, i] - before[w, j], after[w, i] - after[w, j])
        assert mask[w, i, j] == (0 if kept_apart else MASKED)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_relative_positions_share_a_row_exactly_when_the_offset_is_the_same(window: int) -> None:
    index = relative_position_index(window)
    row_of: dict[tuple[int, int], int] = {}
    for query, key in itertools.product(range(window**2), repeat=2):
        offset = (query // window - key // window, query % window - key % window)
        assert row_of.setdefault(offset, int(index[query, key])) == index[query, key]
    assert sorted(row_of.values()) == list(range((2 * window - 1) ** 2))


def slow_block(block: SwinBlock, x: Tensor) -> Tensor:
    """One image (H, W, C), one query at a time. Padded positions are zero after the norm, and they are attended to."""
    height, width, channels = x.shape
    window, heads = block.window, block.attn.heads
    tall, wide = -(-height // window) * window, -(-width // window) * window
    padded = torch.zeros(tall, wide, channels)
    padded[:height, :width] = block.norm1(x)
    attended = torch.zeros(tall, wide, channels)
    table = block.attn.relative_position_bias_table
    # a shifted window covers [r * window + shift, ...), cut in two where it leaves the map
    for row, col in itertools.product(range(tall), range(wide)):
        home = ((row - block.shift) // window, (col - block.shift) // window)
        keys = [
            (r, c)
            for r, c in itertools.product(range(tall), range(wide))
            if ((r - block.shift) // window, (c - block.shift) // window) == home
        ]
        q = block.attn.qkv(padded[row, col]).view(3, heads, -1)[0]
        logits, values = [], []
        for r, c in keys:
            _, k, v = block.attn.qkv(padded[r, c]).view(3, heads, -1)
            bias = table[(row - r + window - 1) * (2 * window - 1) + col - c + window - 1]
            logits.append((q * k).sum(-1) * q.shape[-1] ** -0.5 + bias)
            values.append(v)
        share = torch.stack(logits).softmax(0)
        attended[row, col] = block.attn.proj((share[..., None] * torch.stack(values)).sum(0).flatten())
    x = x + attended[:height, :width]
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 3), (4, 5), (2, 2)], ids=str)
@torch.no_grad()
def test_a_block_attends_within_windows_and_to_their_zero_padding(size: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 3, shift, 0.0).eval()
    for parameter in block.parameters():
        parameter.normal_(std=0.5)
    x = torch.randn(2, *size, 8)
    tall, wide = (-(-side // 3) * 3 for side in size)
    found = block(x, shift_mask(tall, wide, 3, 1, x))
    torch.testing.assert_close(found, torch.stack([slow_block(block, image) for image in x]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)], ids=str)
@torch.no_grad()
def test_merging_reads_four_neighbours_column_by_column_and_pads_to_even(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    merging = PatchMerging(2)
    x = torch.randn(1, *size, 2)
    found = merging(x)
    for row, col in itertools.product(range(-(-size[0] // 2)), range(-(-size[1] // 2))):
        order = ((0, 0), (1, 0), (0, 1), (1, 1))  # (row, column) of the neighbour
        parts = []
        for down, right in order:
            r, c = 2 * row + down, 2 * col + right
            parts.append(x[0, r, c] if r < size[0] and c < size[1] else torch.zeros(2))
        torch.testing.assert_close(found[0, row, col], merging.reduction(merging.norm(torch.cat(parts))))


@torch.no_grad()
def test_maps_have_their_strides_and_images_of_a_batch_do_not_meet() -> None:
    torch.manual_seed(0)
    swin = Swin(8, (1, 1, 2, 1), (1, 2, 2, 4), 4).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = swin(images)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    for alone, together in zip(swin(images[1:]), maps, strict=True):
        torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stochastic_depth_drops_or_scales_whole_branches_in_training_only() -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 2, 0, drop_path=0.5)
    x = torch.randn(1, 2, 2, 8).expand(64, -1, -1, -1)
    mask = shift_mask(2, 2, 2, 1, x)
    block.mlp.fc2.weight.zero_()  # leaves attention as the only branch
    block.mlp.fc2.bias.zero_()
    branch = block.eval()(x, mask)[0] - x[0]
    trained = block.train()(x, mask) - x
    dropped = torch.tensor([torch.equal(sample, torch.zeros_like(sample)) for sample in trained])
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(trained[~dropped], (2 * branch).expand(int((~dropped).sum()), -1, -1, -1))


def test_drop_rates_rise_linearly_to_the_last_block() -> None:
    swin = Swin(8, (1, 1, 2, 1), (1, 2, 2, 4), 4, drop_path=0.4)
    rates = [block.drop_path for stage in swin.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
