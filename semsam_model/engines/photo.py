"""How a published model wants to see a photo: its preprocessor_config.json, read without the library's image code.

The library's own processors of newer models need torchvision. What they do is little: resize, scale to 0..1, subtract
the mean, divide by the standard deviation, pad at the bottom and right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semsam_model.errors import CheckpointError, ImageError
from semsam_model.network.frame import Window

#: Which of them a folder has says the age of the library that wrote it; the second holds more than the image's part.
FILES = ("preprocessor_config.json", "processor_config.json")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_THINNEST = 32  #: times as long as wide, at most


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the input of a network."""

    longest: int | None  #: the longer side is brought to so many pixels, the rest is padding; None: see `stretched`
    stretched: tuple[int, int] | None  #: (h, w) that the photo is brought to, whatever its shape; None: see `longest`
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    resample: Image.Resampling = Image.Resampling.BILINEAR
    shortest: int | None = None  #: the shorter side is brought to so many pixels, the longer to `longest` at most
    black: bool = False  #: padding is black, not the mean colour

    @classmethod
    def read(cls, folder: Path, side: int) -> Preprocessing:
        """side: of the network's input, for what the file does not say. Raises CheckpointError."""
        path = next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
        try:
            content = json.loads(path.read_text("utf-8"))
            return cls.of(content.get("image_processor", content), side)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}; it comes with the weights") from None

    @classmethod
    def of(cls, content: Mapping[str, Any], side: int) -> Preprocessing:
        """What the file holds. Raises ValueError, KeyError."""
        size = content.get("size", {"height": side, "width": side})
        longest = stretched = None
        if "longest_edge" in size:
            longest = int(size["longest_edge"])
        else:
            stretched = int(size["height"]), int(size["width"])
        normalised = content.get("do_normalize", True)
        return cls(
            longest,
            stretched,
            tuple(content.get("image_mean", _IMAGENET_MEAN)) if normalised else (0.0, 0.0, 0.0),
            tuple(content.get("image_std", _IMAGENET_STD)) if normalised else (1.0, 1.0, 1.0),
            float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0,
            Image.Resampling(int(content.get("resample", Image.Resampling.BILINEAR))),
            int(size["shortest_edge"]) if "shortest_edge" in size else None,
        )

    def size(self, shown: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the photo, or a window of it -> (h, w) of it in the input. Raises ImageError."""
        height, width = shown
        if max(shown) > _THINNEST * min(shown):
            raise ImageError(f"photo of {width}x{height} pixels: expected an aspect ratio of at most {_THINNEST}:1")
        if self.stretched is not None:
            return self.stretched
        assert self.longest is not None
        if self.shortest is not None:
            return _at_least(shown, self.shortest, self.longest)
        scale = self.longest / max(shown)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def pixels(self, rgb: np.ndarray, window: Window, padded: int) -> Tensor:
        """uint8 RGB (H, W, 3), the whole photo -> float32 (1, 3, h, w) of the window, both at least `padded`.

        Raises ImageError.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ImageError(f"image array: expected uint8 RGB of shape (H, W, 3), got {rgb.dtype} {rgb.shape}")
        x0, y0, x1, y1 = window
        height, width = self.size((y1 - y0, x1 - x0))
        resized = np.array(Image.fromarray(rgb[y0:y1, x0:x1]).resize((width, height), self.resample))
        values = torch.from_numpy(resized).permute(2, 0, 1).float() * self.rescale
        mean, std = (torch.tensor(of)[:, None, None] for of in (self.mean, self.std))
        out = torch.zeros(1, 3, max(padded, height), max(padded, width))
        if self.black:
            out[0] = -mean / std
        out[0, :, :height, :width] = (values - mean) / std
        return out


def _at_least(shown: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """(h, w) with the shorter side of `shortest`, or less where the longer one would exceed `longest`."""
    fewest, most = min(shown), max(shown)
    side: float = shortest
    if most / fewest * shortest > longest:
        side = longest * fewest / most
    short = max(1, round(side))
    long = most if short == fewest else max(1, int(side * most / fewest))
    return (short, long) if shown[0] <= shown[1] else (long, short)
