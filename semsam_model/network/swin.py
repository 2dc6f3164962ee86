"""Swin transformer features (Liu et al. 2021), as Semantic-SAM uses it.

Two conventions of the published code are kept because trained weights depend on them: windows are padded with zeros
*after* the norm and padded positions are not masked out of attention, and a map smaller than the window is padded up,
the window never shrinks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -100.0  #: added to attention logits between regions that the cyclic shift made neighbours


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, window * window, C); H and W multiples of window, windows row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def window_merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of window_partition: (B * windows, window * window, C) -> (B, height, width, C)."""
    rows, cols = height // window, width // window
    x = windows.view(-1, rows, cols, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) long: row of the bias table for each (query, key) pair of a window."""
    at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = at[:, :, None] - at[:, None, :] + window - 1  # (2, w^2, w^2), from 0
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """(windows, window^2, window^2): MASKED between positions that were not neighbours before the cyclic shift."""
    region = torch.zeros(1, height, width, 1, device=like.device)
    for row, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
        for col, cols in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            region[:, rows, cols] = 3 * row + col
    flat = window_partition(region, window)[..., 0]
    return ((flat[:, None, :] != flat[:, :, None]) * MASKED).to(like.dtype)


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.index: Tensor
        self.register_buffer("index", relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B * windows, n, C), mask (windows, n, n) or None -> like x."""
        bw, n, c = x.shape
        q, k, v = self.qkv(x).view(bw, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # (heads, n, n)
        if mask is not None:
            windows = mask.shape[0]
            bias = (bias + mask[:, None]).repeat(bw // windows, 1, 1, 1)
        else:
            bias = bias[None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(bw, n, c))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C); mask is the shift mask of the padded map, used by shifted blocks."""
        _, h, w, _ = x.shape
        y = F.pad(self.norm1(x), (0, 0, 0, -w % self.window, 0, -h % self.window))
        padded = y.shape[1:3]
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = self.attn(window_partition(y, self.window), mask if self.shift else None)
        y = window_merge(y, self.window, *padded)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + self._drop(y[:, :h, :w])
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: a sample's branch is left out with probability drop_path, the rest scaled up."""
        if not self.training or not self.drop_path:
            return branch
        keep = 1.0 - self.drop_path
        coin = branch.new_empty(branch.shape[0], *(1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * coin / keep


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        even, odd = x[:, 0::2], x[:, 1::2]
        return self.reduction(
            self.norm(torch.cat((even[:, :, 0::2], odd[:, :, 0::2], even[:, :, 1::2], odd[:, :, 1::2]), -1))
        )


class Stage(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, drop_path: list[float], merge: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, window // 2 if i % 2 else 0, rate) for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        mask = shift_mask(h + -h % self.window, w + -w % self.window, self.window, self.window // 2, x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, C)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """(B, 3, H, W) -> four maps at strides 4, 8, 16, 32; H and W multiples of 32."""

    def __init__(
        self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.channels = tuple(dim * 2**i for i in range(len(depths)))
        self.patch_embed = PatchEmbed(dim)
        rates = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            mine, rates = rates[:depth], rates[depth:]
            self.layers.append(Stage(self.channels[i], heads[i], window, mine, merge=i < len(depths) - 1))
            self.add_module(f"norm{i}", nn.LayerNorm(self.channels[i]))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        maps = []
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps
