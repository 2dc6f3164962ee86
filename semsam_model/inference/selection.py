"""Which proposals of a prompt become candidates, and which is shown after which. NumPy, no torch.

The first candidate is the best. Were the others simply the next best, most would be much like it, and the annotator
whose mask it is not would see it again and again. So each further candidate is the one that adds most to the IoU that
the best of those shown is expected to have: proposals are the masks that may be meant, each as likely as its score to
the power of SHARPNESS, and a candidate covers a proposal by their IoU. Taking the largest gain each time is the greedy
algorithm of facility location (Nemhauser, Wolsey and Fisher 1978), within 1 - 1/e of the best choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semsam_model.inference.candidates import CandidateOptions, CropPrediction
from semsam_model.masks.geometry import greedy_nms

SHARPNESS = 1.5  #: docs/results/training-log.md, "Which six are shown"


def select(
    crops: Sequence[CropPrediction],
    shared: np.ndarray,
    options: CandidateOptions,
    scores: Sequence[float] | np.ndarray | None = None,
) -> list[int]:
    """Indices of all crops' proposals that become candidates, in the order in which they are shown; at most
    `options.most`.

    shared: their `intersections`. scores (n,), 0..1, the IoU that each is expected to have with what is meant; None:
    the next best, by predicted IoU, times the fit to the boxes where there are any.
    """
    ordered = order(crops, scores)
    if scores is not None:
        areas, agree = np.diagonal(shared), agreeing(ordered, crops, replace(options, least=0))
        covering = _covering([i for i in agree if areas[i] > 0], np.asarray(scores, float), shared, options)
        ordered = [*covering, *(i for i in ordered if i not in covering)]
    return agreeing(distinct(ordered, shared, options), crops, options)


def order(crops: Sequence[CropPrediction], scores: Sequence[float] | np.ndarray | None = None) -> list[int]:
    """Indices of all crops' proposals, best first: by the number of clicks that they agree with, then by their scores.

    scores (n,); None: predicted IoU, times the fit to the boxes where there are any.
    """
    keys: list[tuple[int, float]] = []
    for crop in crops:
        for p in crop.proposals:
            expected = p.predicted_iou * (crop.prompt.fit(p) if crop.prompt.boxes else 1.0)
            keys.append((crop.prompt.obeyed(p), expected if scores is None else float(scores[len(keys)])))
    return sorted(range(len(keys)), key=lambda index: keys[index], reverse=True)


def distinct(ordered: Sequence[int], shared: np.ndarray, options: CandidateOptions) -> list[int]:
    """Of ordered masks those that are not empty and not the same as a better one; at most options.most.

    ordered: indices, best first, into `shared`, what `intersections` returned.
    """
    areas = np.diagonal(shared)
    same = shared > options.same_iou * (areas[:, None] + areas - shared)
    return greedy_nms((at for at in ordered if areas[at] > 0), len(areas), same.__getitem__, options.most)


def agreeing(ordered: Sequence[int], crops: Sequence[CropPrediction], options: CandidateOptions) -> list[int]:
    """Of ordered proposals those that agree with as many clicks as the first; others only to reach options.least."""
    counts = [crop.prompt.obeyed(p) for crop in crops for p in crop.proposals]
    return [at for i, at in enumerate(ordered) if i < options.least or counts[at] == counts[ordered[0]]]


def _covering(ordered: Sequence[int], scores: np.ndarray, shared: np.ndarray, options: CandidateOptions) -> list[int]:
    """Of ordered masks, none of them empty, the first, then each time the one that covers most of what is not covered.

    None is the same as one before it. Equal gains: the better one.
    """
    if not ordered:
        return []
    both = shared[np.ix_(ordered, ordered)]
    areas = np.diagonal(both)
    iou = both / (areas[:, None] + areas - both)
    likely = scores[list(ordered)].clip(min=0) ** SHARPNESS
    chosen, covered = [0], iou[0]
    while len(chosen) < options.most:
        gain = np.where(covered > options.same_iou, -1, likely @ (iou - covered[:, None]).clip(min=0))
        gain[chosen] = -1
        best = int(gain.argmax())
        if gain[best] < 0:
            break
        chosen.append(best)
        covered = np.maximum(covered, iou[best])
    return [ordered[i] for i in chosen]
