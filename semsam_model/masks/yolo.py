"""Masks as lines of YOLO segmentation: CLASS X Y X Y ..., one outline, in shares of the photo's sides.

Such an outline has neither holes nor pieces: `join_rings` reaches them over a bridge of zero width, there and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from semsam_model.masks.geometry import BBox, Size
from semsam_model.masks.polygons import encode_polygon

#: Points of an outline; below them it is exact.
MAX_VERTICES = 2000
#: Endings of photos that the tool's users cannot train on.
YOLO_UNREAD = ("gif", "avif")


def yolo_line(number: int, crop: np.ndarray, bbox: BBox, size: Size) -> str | None:
    """The line of a mask, given as its crop and box in a photo of `size` (H, W); None for an empty one."""
    ring = encode_polygon(crop, bbox, MAX_VERTICES)
    if len(ring) < 3:
        return None
    shares = ring / (size[1], size[0])
    return " ".join([str(number), *(f"{share:.6f}" for share in shares.ravel())])


def yolo_yaml(names: Sequence[str], folders: Mapping[Any, str]) -> str:
    """`data.yaml` beside `images/FOLDER` and `labels/FOLDER`. folders: of train and val."""
    content: dict[str, Any] = {split: f"images/{folder}" for split, folder in folders.items()}
    content["names"] = dict(enumerate(names))
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
