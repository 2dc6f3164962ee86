"""Average precision and recall of masks as COCO counts them, by pycocotools: the reference implementation itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: Name of a figure -> its place in COCOeval.stats, with 100 masks a photo at most.
STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar1": 6, "ar10": 7, "ar100": 8}


class Truth(NamedTuple):
    """One annotated mask."""

    mask: np.ndarray  #: bool (H, W)
    label: int  #: its label's index
    crowd: bool = False  #: several things, not told apart: what lies in it counts neither for nor against
    area: float | None = None  #: pixels, that tell small from large; those of the mask when None


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
        wanted: Sequence[Truth],
        predicted: Sequence[tuple[np.ndarray, int, float]],
    ) -> None:
        """A photo of size (H, W), annotated or not: predicted masks bool (H, W) with their label's index and score."""
        number = len(self._images) + 1
        self._images.append({"id": number, "height": size[0], "width": size[1]})
        for mask, label, crowd, area in wanted:
            rle = _rle(mask)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "segmentation": rle,
                    "area": float(np.count_nonzero(mask)) if area is None else area,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": int(crowd),
                }
            )
        for mask, label, score in predicted:
            self._results.append(
                {"image_id": number, "category_id": label + 1, "segmentation": _rle(mask), "score": score}
            )

    def percent(self) -> dict[str, float | int | None]:
        """COCO's figures in percent, None where there is nothing of that size; `n` annotated masks without crowds."""
        n = sum(not annotation["iscrowd"] for annotation in self._annotations)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            truth = self._indexed(self._annotations)
            # An empty list of results is nothing to pycocotools; it writes into the others.
            results = truth.loadRes([dict(r) for r in self._results]) if self._results else self._indexed([])
            evaluation = COCOeval(truth, results, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = evaluation.stats
        figures = {name: None if stats[at] < 0 else round(100 * float(stats[at]), 2) for name, at in STATS.items()}
        return figures | {"n": n}

    def _indexed(self, annotations: list[dict[str, Any]]) -> COCO:
        found = COCO()
        found.dataset = {
            "info": {},
            "images": self._images,
            "categories": self._categories,
            "annotations": annotations,
        }
        found.createIndex()
        return found


def _rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
