"""Weights by rule, not by file: what the parity records were made with, so that no checkpoint has to be shipped.

A tensor is offset + scale * n, n standard normal from PCG64 seeded with the name's sha256. Tied names share one draw.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np
import torch
from torch import Tensor

PREDICTOR = "sem_seg_head.predictor."
#: (end of the name, scale, offset), first match wins; what matches none is a gain, a bias, or scaled by its fan-in
SPECIAL = (
    ("relative_position_bias_table", 0.5, 0.0),
    ("sampling_offsets.bias", 2.0, 0.0),
    ("iou_prediction_head.layers.2.bias", 0.02, 0.88),
    ("iou_prediction_head.layers.2.weight", 0.2 / 16, 0.0),
    (PREDICTOR + "bbox_embed.0.layers.2.weight", 0.5 / 16, 0.0),
    (PREDICTOR + "bbox_embed.0.layers.2.bias", 0.3, 0.0),
    ("mask_tokens.weight", 3.0, 0.0),
    ("mask_features.weight", 6 / 16, 0.0),
    ("pb_embedding.weight", 1.0, 0.0),
    ("label_enc.weight", 1.0, 0.0),
    ("level_embed", 1.0, 0.0),
)
WEAK = ("self_attn.out_proj.weight", "cross_attn.output_proj.weight", "linear2.weight")
TRANSPOSED = ("lang_mapper", "class_embed", "class_embed_part")


def one_name(name: str) -> str:
    """The name that stands for all names of a tied tensor."""
    name = re.sub(r"predictor\.((decoder\.)?bbox_embed\.\d+|_bbox_embed)\.", "predictor.bbox_embed.0.", name)
    return name.replace(PREDICTOR + "decoder.norm.", PREDICTOR + "decoder_norm.")


def scale_and_offset(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    for end, scale, offset in SPECIAL:
        if name.endswith(end):
            return scale, offset
    if name.endswith(TRANSPOSED):
        return shape[0] ** -0.5, 0.0
    if len(shape) == 1:
        return 0.02, 1.0 if name.endswith(".weight") else 0.0
    scale = math.prod(shape[1:]) ** -0.5
    return (0.4 * scale if name.startswith(PREDICTOR + "decoder.layers.") and name.endswith(WEAK) else scale), 0.0


def rule_weights(shapes: dict[str, tuple[int, ...]], window: int) -> dict[str, Tensor]:
    """A published state: every name with the `model.` prefix, tied names sharing one tensor."""
    from semsam_model.network.swin import relative_position_index

    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        key = one_name(name)
        if key.endswith("relative_position_index"):
            made[key] = relative_position_index(window)
        elif key not in made:
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
            drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
            scale, offset = scale_and_offset(key, shape)
            made[key] = torch.from_numpy(np.float32(offset) + np.float32(scale) * drawn)
    return {f"model.{name}": made[one_name(name)] for name in shapes}


def picture() -> np.ndarray:
    """The uint8 RGB photo (427, 640, 3) of the parity records: gradients, waves, discs, boxes, a faint checker."""
    y, x = np.mgrid[0:427, 0:640].astype(float)
    rgb = np.stack([x * 255 / 639, y * 255 / 426, 127.5 + 127.5 * np.sin(x / 37) * np.cos(y / 29)], -1)
    discs = (
        (320, 213, 120, (220, 60, 40)),
        (320, 213, 55, (250, 230, 80)),
        (160, 128, 70, (30, 120, 220)),
        (512, 299, 80, (40, 190, 90)),
    )
    for cx, cy, radius, colour in discs:
        rgb[np.hypot(x - cx, y - cy) <= radius] = colour
    boxes = (
        (60, 110, 400, 600, (90, 20, 140)),
        (330, 400, 40, 250, (240, 240, 240)),
        (345, 385, 60, 120, (10, 10, 10)),
    )
    for top, bottom, left, right, colour in boxes:
        rgb[top:bottom, left:right] = colour
    checker = (x // 8 + y // 8) % 2 - 0.5
    return np.clip(np.rint(rgb + 12 * checker[..., None]), 0, 255).astype(np.uint8)


#: Clicks of the parity records, shares of the photo
CLICKS = ((0.5, 0.5), (0.25, 0.3), (0.8, 0.7))
