"""What every format of the export says about a region: plain values, no files, no store.

Frame: pixels of the EXIF-oriented photo. What only we write beside a format's own fields is the same everywhere:
`granularity`, `parent_id`, `level`, `labels`, `provenance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from backend.corrections.tasks import parents
from backend.records import StoredRegion
from semsam_model.masks.codecs import decode_coco_rle


def provenance(region: StoredRegion) -> dict[str, Any]:
    """Where a region comes from and what became of the suggestion; a field that is not known is left out."""
    known = {
        "annotation": region.key.annotation,
        "region": region.key.region,
        "outcome": region.outcome,
        "annotator": region.annotator,
        "updated_at": region.updated_at.isoformat(),
        "ground_truth": region.ground_truth or None,
        "model_version": region.model_version,
        "rank": region.rank,
        "score": region.score,
        "iou_with_offer": region.iou_with_offer,
        "seconds": region.seconds,
        "click": region.click,
        "preannotated": region.preannotated or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def mask_fields(region: StoredRegion) -> dict[str, Any]:
    """The mask as COCO and SA-1B write it: compressed RLE, area, and box x, y, width, height."""
    rle = {"size": [region.height, region.width], "counts": str(region.mask["counts"])}
    encoded = rle | {"counts": str(region.mask["counts"]).encode("ascii")}
    box = [int(side) for side in coco_mask.toBbox(encoded).tolist()]
    return {"segmentation": rle, "area": int(coco_mask.area(encoded)), "bbox": box}


def own_fields(region: StoredRegion) -> dict[str, Any]:
    """Fields that no format has itself."""
    return {"level": region.level, "labels": list(region.labels), "provenance": provenance(region)}


def parent_ids(regions: Sequence[StoredRegion], first: int) -> list[int | None]:
    """`parent_id` of each region, whose ids count from `first`; None where the one that contains it is not there."""
    return [None if index is None else first + index for index in parents(regions)]


def decoded(region: StoredRegion) -> np.ndarray:
    """The mask, bool (H, W)."""
    return np.ascontiguousarray(decode_coco_rle(dict(region.mask), (region.height, region.width)))
