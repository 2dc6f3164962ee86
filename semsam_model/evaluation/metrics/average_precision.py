"""Average precision and recall of masks as COCO counts them, by pycocotools: the reference implementation itself.

Photos that were annotated for some labels only are counted as lvis-api does (Gupta et al. 2019, "LVIS", section 2): a
photo has 300 predictions; those of labels that nobody looked for do not count, nor do those that match nothing where
not every instance is annotated. pycocotools does that when the former are left out, and the latter lie in a crowd as
large as the photo.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: Name of a figure -> its place in COCOeval.stats; the last is ar300 where photos have 300 predictions.
STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar1": 6, "ar10": 7, "ar100": 8}
#: Predictions a photo: of COCO, and of data annotated for some labels only.
MAX_PREDICTIONS, MAX_PREDICTIONS_FEDERATED = 100, 300


class AnnotatedMask(NamedTuple):
    """One annotated mask."""

    mask: np.ndarray  #: bool (H, W)
    label: int  #: its label's index
    crowd: bool = False  #: several things in one mask: a prediction that lies in it is neither right nor wrong
    area: float | None = None  #: pixels, for the figures of small, medium and large; those of the mask when None


class EvaluatedLabels(NamedTuple):
    """The labels of a photo that was annotated for some labels only."""

    known: frozenset[int]  #: looked for, found or not
    not_exhaustive: frozenset[int]  #: not every instance is annotated


class MaskAp:
    """Collects annotated and predicted masks of photos; `percent` evaluates them."""

    def __init__(self, labels: Sequence[str]) -> None:
        """labels: one category each; a single one where labels do not matter."""
        self._categories = [{"id": i + 1, "name": label} for i, label in enumerate(labels)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        self._max_predictions = MAX_PREDICTIONS

    def add(
        self,
        size: tuple[int, int],
        annotated: Sequence[AnnotatedMask],
        predicted: Sequence[tuple[np.ndarray, int, float]],
        evaluated: EvaluatedLabels | None = None,
    ) -> None:
        """A photo of size (H, W), annotated or not: predicted masks bool (H, W) with their label's index and score.

        evaluated: None where all labels were looked for. Known labels are at least those of `annotated`.
        """
        number = len(self._images) + 1
        self._images.append({"id": number, "height": size[0], "width": size[1]})
        everywhere = np.ones(size, bool)
        not_exhaustive = () if evaluated is None else sorted(evaluated.not_exhaustive)
        excuses = [AnnotatedMask(everywhere, label, crowd=True) for label in not_exhaustive]
        for mask, label, crowd, area in [*annotated, *excuses]:
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
        if evaluated is not None:
            self._max_predictions = MAX_PREDICTIONS_FEDERATED
            predicted = [prediction for prediction in predicted if prediction[1] in evaluated.known]
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
            evaluation.params.maxDets = [1, 10, self._max_predictions]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats = evaluation.stats.copy()
        # of all sizes; the summary's own AP is that of 100 predictions
        precisions = evaluation.eval["precision"][..., 0, -1]
        known = precisions[precisions > -1]
        stats[STATS["ap"]] = known.mean() if known.size else -1
        figures = {
            name if name != "ar100" else f"ar{self._max_predictions}": None
            if stats[at] < 0
            else round(100 * float(stats[at]), 2)
            for name, at in STATS.items()
        }
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
