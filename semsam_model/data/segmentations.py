"""Where a region's mask comes from: decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from semsam_model.masks.codecs import decode_coco_rle, encode_coco_rle
from semsam_model.masks.geometry import Size, crop_mask

#: What a mask can raise besides DataError while it is read from someone else's file.
BAD_ENTRY = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class Segmentation(Protocol):
    """Where a mask comes from."""

    def decode(self, size: Size) -> np.ndarray:
        """bool (H, W) of a photo of `size` (H, W). Raises DataError, or one of BAD_ENTRY for a malformed entry."""


@dataclass(frozen=True, eq=False)
class CocoMask:
    """A COCO segmentation as it stands in a file: compressed or plain RLE, or polygons."""

    segmentation: Mapping[str, Any] | Sequence[Any]

    @classmethod
    def of(cls, mask: np.ndarray) -> CocoMask:
        """Exactly this bool (H, W) mask."""
        height, width = mask.shape
        return cls(encode_coco_rle(*crop_mask(mask), (height, width)))

    def decode(self, size: Size) -> np.ndarray:
        if isinstance(self.segmentation, Mapping):
            return np.ascontiguousarray(decode_coco_rle(dict(self.segmentation), size))
        if not isinstance(self.segmentation, Sequence) or not self.segmentation:
            raise ValueError("neither RLE nor polygons")
        rings = [np.asarray(ring, np.float64) for ring in self.segmentation]
        # pycocotools takes four numbers for a box, and does not ask whether points are finite.
        if any(ring.ndim != 1 or ring.size < 6 or ring.size % 2 or not np.isfinite(ring).all() for ring in rings):
            raise ValueError("a polygon is not x, y, x, y, x, y, ...")
        reach = 4.0 * max(size)
        rle = coco_mask.frPyObjects([ring.clip(-reach, reach).tolist() for ring in rings], *size)
        return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(rle))).view(bool)
