"""A second network that corrects a mask where the annotator clicks: it sees the photo, the mask and the clicks closely.

After RITM (Sofiiuk et al. 2021, arXiv 2102.06583: the mask so far is an input, beside maps of the clicks) and
FocalClick (Chen et al. 2022, arXiv 2204.02574: a crop around the mask, changes near the newest click alone). It shares
nothing with the network that answers the first click, so either can be trained without the other.

    crop -> MobileNetV2 up to stride 16; what the hints (mask and clicks) say is added to its map at stride 4
    strides 16, 8, 4, 2 -> a light decoder -> what is added to the logits of the mask
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semsam_model.network.mobilenet import TAPS, MobileNetV2, padded

SIDE = 128  #: pixels of the square crop
HINTS = 4  #: channels beside the photo: the mask's probability, positive clicks, negative clicks, the newest click
MOST_LOGIT = 3.0  #: masks that come in are cut off there, so that none is too sure to be corrected
_DEPTH = 13  #: blocks of MobileNetV2, up to stride 16
_EARLY = 3  #: of them, up to stride 4: they see the photo alone
_SKIPS = {0: 16, 2: TAPS[2], 5: TAPS[5], 12: TAPS[12]}  #: block -> channels, at strides 2, 4, 8, 16
_WIDTHS = (16, 32, 64)  #: of the decoder, at strides 2, 4, 8
_FINE = 8  #: channels made from the hints at stride 2
_PIXEL_MEAN, _PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  #: ImageNet's, RGB, 0..255


class Refiner(nn.Module):
    """(B, 3, H, W) RGB 0..255, hints (B, HINTS, H, W), logits (B, 1, H, W) of the mask -> its corrected logits.

    H and W are multiples of 16. What lies outside the photo is NaN in the RGB and counts as the mean colour.
    """

    def __init__(self) -> None:
        super().__init__()
        backbone = MobileNetV2()
        self.stem = backbone.stem
        self.blocks = nn.ModuleList(list(backbone.blocks)[:_DEPTH])
        self.fine = nn.Conv2d(HINTS, _FINE, 3, 2)
        self.hints = nn.ModuleList((nn.Conv2d(_FINE, 32, 3, 2), nn.Conv2d(32, _SKIPS[_EARLY - 1], 1)))
        fine, middle, coarse = _WIDTHS
        channels = list(_SKIPS.values())
        self.laterals = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(channels, (fine, middle, coarse, coarse), strict=True)
        )
        self.reduce = nn.ModuleList((nn.Conv2d(middle, fine, 1), nn.Conv2d(coarse, middle, 1)))
        self.mix = nn.ModuleList(
            (
                nn.Conv2d(fine + _FINE, fine, 3, padding=1),
                nn.Conv2d(middle, middle, 3, padding=1),
                nn.Conv2d(coarse, coarse, 3, padding=1),
            )
        )
        self.change = nn.Conv2d(fine, 1, 3, padding=1)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(_PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(_PIXEL_STD).view(3, 1, 1), persistent=False)
        for parameter in self.change.parameters():
            nn.init.zeros_(parameter)  # an untrained network leaves the mask as it is

    def forward(self, rgb: Tensor, hints: Tensor, logits: Tensor) -> Tensor:
        x = F.relu6(self.stem(padded(torch.nan_to_num((rgb - self.pixel_mean) / self.pixel_std))))
        fine = F.relu(self.fine(padded(hints)))
        skips = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == _EARLY - 1:
                x = x + self.hints[1](F.relu(self.hints[0](padded(fine))))
            if i in _SKIPS:
                skips.append(x)
        at2, at4, at8, at16 = (lateral(skip) for lateral, skip in zip(self.laterals, skips, strict=True))
        y = F.relu(self.mix[2](F.relu(at8 + _doubled(at16))))
        y = F.relu(self.mix[1](F.relu(at4 + _doubled(self.reduce[1](y)))))
        y = F.relu(at2 + _doubled(self.reduce[0](y)))
        y = F.relu(self.mix[0](torch.cat((y, fine), 1)))
        return logits.clamp(-MOST_LOGIT, MOST_LOGIT) + _doubled(self.change(y))

    def start_from(self, backbone: Mapping[str, Tensor]) -> None:
        """Take over the stem and the first blocks of a MobileNetV2, by the names of its state.

        Stem and early blocks, which know edges and colours already, are not trained.
        """
        own = {name for name in self.state_dict() if name.startswith(("stem.", "blocks."))}
        self.load_state_dict({name: backbone[name].float() for name in own}, strict=False)
        self.stem.requires_grad_(False)
        self.blocks[:_EARLY].requires_grad_(False)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
