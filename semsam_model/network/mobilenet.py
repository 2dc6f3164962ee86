"""MobileNetV2 1.0 features (Sandler et al. 2018, table 2), batch norm folded into the convolutions.

Taps: after 24 channels stride 4, 32 stride 8, 96 stride 16, 320 stride 32. Stride-2 convolutions pad zeros on the right
and bottom only (the convention of the ImageNet weights we start from).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from semsam_model.errors import CheckpointError

# (expansion, channels, repeats, stride of the first)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
TAPS = {2: 24, 5: 32, 12: 96, 16: 320}  # block index -> channels


def padded(x: Tensor) -> Tensor:
    """Zeros beside maps (B, C, H, W), as a 3 x 3 convolution of stride 2 needs them."""
    return F.pad(x, (0, 1, 0, 1))


class Block(nn.Module):
    """Inverted residual: 1x1 expand, 3x3 depthwise, 1x1 linear projection."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = nn.Conv2d(channels_in, hidden, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=stride % 2, groups=hidden)
        self.project = nn.Conv2d(hidden, channels_out, 1)
        self.stride = stride
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x), inplace=True) if self.expand is not None else x
        y = self.depthwise(padded(y) if self.stride == 2 else y)
        y = self.project(F.relu6(y, inplace=True))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """(B, 3, H, W) -> four maps at strides 4, 8, 16, 32; H and W multiples of 32."""

    channels = tuple(TAPS.values())

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        blocks, width = [], 32
        for expansion, channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(Block(width, channels, expansion, stride if i == 0 else 1))
                width = channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        if not torch.is_grad_enabled():  # half the processor time: most of the work is 1x1 and depthwise
            images = images.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(padded(images)), inplace=True)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps

    def load_imagenet(self, path: Path) -> None:
        """Start from ImageNet weights: safetensors, our key names, classifier ignored. Raises CheckpointError."""
        weights = {k: v.float() for k, v in load_file(path).items() if not k.startswith(("head.", "classifier."))}
        expected = {k: tuple(v.shape) for k, v in self.state_dict().items()}
        found = {k: tuple(v.shape) for k, v in weights.items()}
        if expected != found:
            wrong = sorted(expected.items() ^ found.items())[0]
            raise CheckpointError(f"{path}: not MobileNetV2 1.0 features, first difference at {wrong[0]} {wrong[1]}")
        with torch.no_grad():
            self.load_state_dict(weights)
