"""The rows of features that the ranker scores: each proposal alone, among the others, and what the project wants."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from semsam_model.inference.candidates import CropPrediction, PromptCells, Proposal
from semsam_model.network.ranker import EVIDENCE, OF_CONTEXT, OF_PROPOSAL, logistic
from semsam_model.types import LEVELS, PromptContext

_CONTAINS = 0.9  #: share of a mask inside a larger one that counts as contained
_SAME = 0.9  #: masks with a larger IoU are doubles


def ranker_features(
    rows: np.ndarray, levels: Sequence[int], context: PromptContext | None = None, names: np.ndarray | None = None
) -> np.ndarray:
    """What `proposal_features` returned and the proposals' levels -> float32 (n, len(FEATURES)).

    names: the proposals' EVIDENCE, float32 (n, len(EVIDENCE)); zero where nothing is known of the project's labels.
    """
    wants = np.array([context_features(level, context or PromptContext()) for level in levels], np.float32)
    said = np.zeros((len(levels), len(EVIDENCE)), np.float32) if names is None else names
    return np.concatenate([rows, wants.reshape(len(levels), len(OF_CONTEXT)), said], 1)


def context_features(level: int, context: PromptContext) -> list[float]:
    """OF_CONTEXT for a proposal of one level."""
    counts = context.level_counts
    total = sum(counts)
    near = sum(count for at, count in zip(LEVELS, counts, strict=True) if abs(at - level) <= 1)
    return [
        context.granularity == "object",
        context.granularity == "part",
        # two made-up counts: one accepted mask says less than twenty
        counts[level - 1] / (total + 2),
        near / (total + 2),
        total / (total + 2),
    ]


def proposal_features(crops: Sequence[CropPrediction], shared: np.ndarray) -> np.ndarray:
    """Cleaned proposals of all crops in turn -> OF_PROPOSAL, float32 (n, len(OF_PROPOSAL)).

    shared: the `intersections` of the crops.
    """
    seen = [crop for crop in crops if crop.proposals]
    if not seen:
        return np.zeros((0, len(OF_PROPOSAL)), np.float32)
    alone = [_alone(crop) for crop in seen]
    columns = {name: np.concatenate([np.asarray(of[name], np.float32) for of in alone]) for name in alone[0]}
    predicted = columns["predicted_iou"]
    columns |= {
        "below_best": predicted.max() - predicted,
        "looks": np.full(len(predicted), len(crops), np.float32),
        **_among(shared),
        "other_kind": _other_kind(shared, columns["from_regions"] > 0),
    }
    return np.stack([columns[name] for name in OF_PROPOSAL], 1).astype(np.float32)


def _alone(crop: CropPrediction) -> dict[str, np.ndarray | list[float]]:
    """The features that a proposal has whatever the others are, for one crop with at least one proposal."""
    proposals, prompt = crop.proposals, crop.prompt
    predicted = np.clip([p.predicted_iou for p in proposals], -0.5, 1.5)
    levels = np.array([p.level for p in proposals])
    cells = np.stack([p.cells for p in proposals])
    height, width = crop.frame.photo
    return {
        "predicted_iou": predicted,
        "predicted_iou_clipped": np.clip(predicted, 0, 1),
        "stability": [p.stability for p in proposals],
        "soft_iou": _soft_iou(np.stack([p.logits for p in proposals]), cells),
        **{f"level_{level}": levels == level for level in LEVELS},
        **_extent(cells, crop.cell_pixels / (height * width)),
        **_clicks(proposals, cells, prompt),
        "box_fit": [prompt.fit(p) for p in proposals],
        "outside_box": [prompt.outside(p) for p in proposals],
        "has_box": np.full(len(proposals), bool(prompt.boxes)),
        "doublings": np.full(len(proposals), crop.doublings),
        "from_regions": [p.persistence is not None for p in proposals],
        "persistence": [p.persistence or 0.0 for p in proposals],
        "border": [p.border for p in proposals],
    }


def _soft_iou(logits: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(n, h, w) -> (n,): IoU of each mask with one that holds each cell with the probability that its logit says."""
    probability = logistic(logits)
    inside = np.where(cells, probability, 0).sum((1, 2))
    outside = np.where(cells, 0, probability).sum((1, 2))
    return inside / np.maximum(cells.sum((1, 2)) + outside, 1e-6)


def _extent(cells: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Area, bounding box, sides of the photo. share: of the photo, that a cell covers."""
    areas = cells.sum((1, 2))
    box = _span(np.any(cells, 2)) * _span(np.any(cells, 1))
    sides = cells[:, 0].any(1) * 1.0 + cells[:, -1].any(1) + cells[:, :, 0].any(1) + cells[:, :, -1].any(1)
    return {
        "log_area": np.log10(np.maximum(areas, 1) * share),
        "box_area": box * share,
        "fill": areas / np.maximum(box, 1),
        "sides": sides / 4,
    }


def _span(hit: np.ndarray) -> np.ndarray:
    """bool (n, k) -> length from the first to the last that is true."""
    return np.where(hit.any(1), hit.shape[1] - hit[:, ::-1].argmax(1) - hit.argmax(1), 0)


def _clicks(
    proposals: Sequence[Proposal], cells: np.ndarray, prompt: PromptCells
) -> dict[str, np.ndarray | list[float]]:
    clicks = prompt.clicks
    return {
        "obeys": [prompt.obeyed(p) / max(1, clicks) for p in proposals],
        "clicks": np.full(len(cells), np.log2(1 + clicks)),
        "negatives": np.full(len(cells), (clicks - len(prompt.positives)) / max(1, clicks)),
        "depth": [_depth(c, prompt.positives) for c in cells],
    }


def _depth(cells: np.ndarray, positives: Sequence[tuple[int, int]]) -> float:
    """Distance of a click to the border, the least of those inside, by the square root of the area; 0 with none."""
    inside = [at for at in positives if cells[at]]
    if not inside:
        return 0.0
    distance = cv2.distanceTransform(np.pad(cells.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    return min(float(distance[at]) for at in inside) / float(np.sqrt(np.count_nonzero(cells)))


def _among(both: np.ndarray) -> dict[str, np.ndarray]:
    """The features that compare a mask with the others that are not empty. both (n, n): see `intersections`."""
    areas = np.diagonal(both)
    other = (areas[None] > 0) & (areas[:, None] > 0) & ~np.eye(len(both), dtype=bool)
    others = np.maximum(other.sum(1), 1)
    tiny = np.finfo(np.float32).tiny
    iou = np.where(other, both / np.maximum(areas[:, None] + areas[None] - both, tiny), 0)
    larger = other & (areas[None] > areas[:, None])  # [i, j]: j is larger than i
    holds = larger & (both >= _CONTAINS * areas[:, None])  # [i, j]: j contains i
    own = np.where(areas > 0, areas, 1)
    parent = np.where(holds, areas[None], np.inf).min(1)
    child = np.where(holds, areas[:, None], 0).max(0)
    return {
        "contains": holds.sum(0) / others,
        "contained": holds.sum(1) / others,
        "to_parent": np.log(np.where(np.isfinite(parent), parent, own) / own),
        "to_child": np.log(own / np.where(child > 0, child, own)),
        "agreement": iou.sum(1) / others,
        "doubles": (iou > _SAME).sum(1) / others,
        "larger": larger.sum(1) / others,
    }


def _other_kind(both: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(n,): the largest IoU of each proposal with one of the other kind. regions: bool (n,), which are nodes."""
    areas = np.diagonal(both)
    iou = both / np.maximum(areas[:, None] + areas[None] - both, np.finfo(np.float32).tiny)
    best: np.ndarray = np.where(regions[:, None] != regions[None], iou, 0).max(1, initial=0)
    return best
