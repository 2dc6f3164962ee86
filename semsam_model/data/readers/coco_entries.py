"""Values of COCO-style entries as tools write them -> values that can be compared: ids, crowd flags, segmentations.

Only forms with one meaning are read; what could mean two things raises ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from semsam_model.data.samples import CocoMask

_CROWD = {"1": True, "true": True, "0": False, "false": False, "none": False, "": False}


def same_id(value: Any) -> Any:
    """An id that others may write as text or with a fraction: "7" and 7.0 are 7. Raises TypeError for a list."""
    if isinstance(value, str):
        digits = value.strip()
        return int(digits) if digits.isascii() and digits.isdigit() and str(int(digits)) == digits else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    hash(value)
    return value


def is_crowd(entry: Mapping[str, Any]) -> bool:
    """`iscrowd` as a number, text or flag. Raises ValueError for another value."""
    value = entry.get("iscrowd")
    found = _CROWD.get(str(int(value) if isinstance(value, bool | float) else value).strip().lower())
    if found is None:
        raise ValueError(f"iscrowd: expected 0 or 1, got {value!r}"[:200])
    return found


def coco_mask(segmentation: Any, size: tuple[int, int] | None) -> tuple[CocoMask, int]:
    """A segmentation as tools write it -> the mask, and how many of its rings are no polygon and left out.

    Read are RLE, also alone in a list; rings `[[x, y, x, y, ...], ...]`; one ring without the outer list; points
    `[[x, y], ...]`; and each of these as JSON in a text. size: (H, W) of the photo where it is known. Raises ValueError
    when nothing is left, or the RLE is of another size.
    """
    if isinstance(segmentation, str):
        segmentation = json.loads(segmentation)
    if isinstance(segmentation, Sequence) and len(segmentation) == 1 and isinstance(segmentation[0], Mapping):
        segmentation = segmentation[0]
    if isinstance(segmentation, Mapping):
        declared = segmentation.get("size")
        if size is not None and isinstance(declared, list | tuple) and tuple(declared) != size:
            raise ValueError(f"RLE of height, width {list(declared)}, the photo's is {list(size)}"[:200])
        return CocoMask(segmentation), 0
    if not isinstance(segmentation, Sequence) or not segmentation:
        raise ValueError("no mask")
    rings = [ring for ring in map(_ring, _listed_rings(segmentation)) if ring is not None]
    if not rings:
        raise ValueError("a polygon is not x, y, x, y, x, y, ...")
    return CocoMask(rings), len(_listed_rings(segmentation)) - len(rings)


def _listed_rings(segmentation: Sequence[Any]) -> Sequence[Any]:
    if not any(isinstance(each, Sequence) and not isinstance(each, str) for each in segmentation):
        return [segmentation]  # numbers: one ring
    points = all(isinstance(each, Sequence) and len(each) == 2 and not _nested(each) for each in segmentation)
    return [segmentation] if points else segmentation


def _nested(value: Sequence[Any]) -> bool:
    return any(isinstance(each, Sequence) and not isinstance(each, str) for each in value)


def _ring(values: Any) -> list[float] | None:
    """x, y, x, y, ... of at least three points; None for anything else. Points may be pairs."""
    try:
        ring = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None
    if ring.ndim == 2 and ring.shape[1] == 2:
        ring = ring.reshape(-1)
    # pycocotools takes four numbers for a box, and does not ask whether points are finite
    if ring.ndim != 1 or ring.size < 6 or ring.size % 2 or not np.isfinite(ring).all():
        return None
    return [float(value) for value in ring]
