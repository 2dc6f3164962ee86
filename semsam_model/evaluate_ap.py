"""Average precision and recall of masks as COCO counts them, by pycocotools: the reference implementation itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: Name of a figure -> its place in COCOeval.stats, with 100 masks a photo at most.
STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar1": 6, "ar10": 7, "ar100": 8}


class MaskAp:
    """Collects annotated and predicted masks of photos; `percent` evaluates them."""

    def __init__(self, labels: Sequence[str]) -> None:
        """labels: one category each; a single one where labels do not matter."""
        self._categories = [{"id": i + 1, "name": label} for i, label in enumerate(labels)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def add(
        self,
        size: tuple[int, int],
        wanted: Sequence[tuple[np.ndarray, int]],
        predicted: Sequence[tuple[np.ndarray, int, float]],
    ) -> None:
        """A photo of size (H, W): masks bool (H, W) with their label's index, and score where predicted."""
        number = len(self._images) + 1
        self._images.append({"id": number, "height": size[0], "width": size[1]})
        for mask, label in wanted:
            rle, area = _rle(mask), int(np.count_nonzero(mask))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "segmentation": rle,
                    "area": area,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
        for mask, label, score in predicted:
            self._results.append(
                {"image_id": number, "category_id": label + 1, "segmentation": _rle(mask), "score": score}
            )

    def percent(self) -> dict[str, float | int | None]:
        """COCO's figures in percent, None where there is nothing of that size; `n` annotated masks."""
        n = len(self._annotations)
        if not self._results:
            return {**dict.fromkeys(STATS, 0.0), "n": n}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            truth = COCO()
            truth.dataset = {
                "info": {},
                "images": self._images,
                "categories": self._categories,
                "annotations": self._annotations,
            }
            truth.createIndex()
            results = truth.loadRes([dict(result) for result in self._results])  # it writes into them
            evaluation = COCOeval(truth, results, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = evaluation.stats
        figures = {name: None if stats[at] < 0 else round(100 * float(stats[at]), 2) for name, at in STATS.items()}
        return figures | {"n": n}


def _rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
