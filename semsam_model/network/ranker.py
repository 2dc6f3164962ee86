"""Which candidate first: a small learned model over what is known at the moment of the click. NumPy, no torch.

For each proposal a row of features (`FEATURES`), from the proposal, from the others of the same prompt, and from what
the project is known to want; one hidden layer; a score, the expected IoU (0..1) with the mask the annotator means. The
features look at the others as a set, so the order in which proposals come does not matter.

Published weights rank by predicted IoU, which says how well a mask follows some border and nothing about which of the
nested masks under the click is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from semsam_model.inference.candidates import CropPrediction, PromptCells, Proposal
from semsam_model.inference.naming import EVIDENCE
from semsam_model.types import LEVEL_TOKENS, PromptContext, level_tokens

LEVELS = tuple(range(1, len(LEVEL_TOKENS) + 1))

#: What a proposal is like, alone and among the others; then what the project wants. The weights are stored by these
#: names: weights trained on other features are refused, not misread.
OF_PROPOSAL = (
    "predicted_iou",  # raw; unusable extremes cut off
    "predicted_iou_clipped",
    "below_best",  # predicted IoU, distance to the best of the prompt
    "stability",
    "soft_iou",  # IoU that the logits themselves expect, read as independent probabilities
    *(f"level_{level}" for level in LEVELS),
    "log_area",  # share of the photo, powers of ten
    "box_area",  # share of the photo that the bounding box covers
    "fill",  # share of its bounding box that the mask fills
    "sides",  # share of the photo's four sides that the mask touches
    "obeys",  # share of the clicks
    "clicks",  # how many, in doublings
    "negatives",  # share of the clicks
    "depth",  # distance of the nearest positive click to the border, by the mask's size
    "contains",  # share of the others that lie in it
    "contained",  # share of the others that it lies in
    "to_parent",  # log of the smallest containing area by its own
    "to_child",  # log of its own area by the largest contained
    "agreement",  # mean IoU with the others
    "doubles",  # share of the others with IoU over 0.9
    "larger",  # share of the others that are larger
    "box_fit",  # IoU of the bounding box with the box prompt
    "has_box",
    "doublings",  # of the magnification at which it was seen
    "looks",  # at the photo
)
OF_CONTEXT = ("wants_object", "wants_part", "own_level", "near_levels", "accepted")
FEATURES = OF_PROPOSAL + OF_CONTEXT + EVIDENCE
#: What rankers of earlier weights were not trained with: it has no say in them.
ADDED = ("doublings", "looks", "name_part", "name_logit")

_CONTAINS = 0.9  #: share of a mask inside a larger one that counts as contained
_SAME = 0.9


@dataclass(frozen=True, eq=False)
class Ranker:
    """One hidden layer of tanh, then a logistic unit. Arrays are float32; `hidden` has a row a feature."""

    hidden: np.ndarray  #: (len(FEATURES), H)
    hidden_bias: np.ndarray  #: (H,)
    output: np.ndarray  #: (H,)
    output_bias: np.ndarray  #: ()

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """(n, len(FEATURES)) -> float32 (n,), expected IoU, 0..1."""
        value = np.tanh(rows.astype(np.float32) @ self.hidden + self.hidden_bias) @ self.output + self.output_bias
        return 0.5 + 0.5 * np.tanh(0.5 * value)  # the logistic function, without overflow

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Name -> float32, as stored with the weights."""
        by_feature = {f"hidden.{name}": self.hidden[i] for i, name in enumerate(FEATURES)}
        return by_feature | {
            "hidden_bias": self.hidden_bias,
            "output": self.output,
            "output_bias": self.output_bias,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Ranker:
        """The reverse of `to_arrays`. Raises ValueError naming what is missing, unknown or of another shape.

        Features of ADDED may be missing.
        """
        if "output" in arrays:
            without = {f"hidden.{name}": np.zeros(arrays["output"].shape, np.float32) for name in ADDED}
            arrays = without | dict(arrays)
        expected = [*(f"hidden.{name}" for name in FEATURES), "hidden_bias", "output", "output_bias"]
        wrong = sorted(set(expected) ^ set(arrays))
        if wrong:
            raise ValueError(f"ranker: {wrong[0]} is {'missing' if wrong[0] in expected else 'unknown'}")
        width = arrays["output"].shape
        for name in expected:
            wanted = () if name == "output_bias" else width
            if len(width) != 1 or arrays[name].shape != wanted:
                raise ValueError(f"ranker: {name} has shape {arrays[name].shape}, expected {wanted}")
        hidden = np.stack([arrays[f"hidden.{name}"] for name in FEATURES])
        return cls(hidden, arrays["hidden_bias"], arrays["output"], arrays["output_bias"])


def features(
    rows: np.ndarray, levels: Sequence[int], context: PromptContext | None = None, names: np.ndarray | None = None
) -> np.ndarray:
    """What `proposal_features` returned and the proposals' levels -> float32 (n, len(FEATURES)).

    names: the proposals' EVIDENCE, float32 (n, 4); zero where nothing is known of the project's labels.
    """
    wants = np.array([context_features(level, context or PromptContext()) for level in levels], np.float32)
    said = np.zeros((len(levels), len(EVIDENCE)), np.float32) if names is None else names
    return np.concatenate([rows, wants.reshape(len(levels), len(OF_CONTEXT)), said], 1)


def context_features(level: int, context: PromptContext) -> list[float]:
    """OF_WANTED for a proposal of one level."""
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


def proposal_features(views: Sequence[CropPrediction], tokens: int, shared: np.ndarray) -> np.ndarray:
    """Cleaned proposals of all views in turn -> OF_PROPOSAL, float32 (n, len(OF_PROPOSAL)).

    tokens: level tokens of the model. shared: the `overlaps` of the views.
    """
    seen = [view for view in views if view.proposals]
    if not seen:
        return np.zeros((0, len(OF_PROPOSAL)), np.float32)
    alone = [_alone(view, tokens) for view in seen]
    columns = {name: np.concatenate([np.asarray(of[name], np.float32) for of in alone]) for name in alone[0]}
    predicted = columns["predicted_iou"]
    columns |= {
        "below_best": predicted.max() - predicted,
        "looks": np.full(len(predicted), len(views), np.float32),
        **_among(shared),
    }
    return np.stack([columns[name] for name in OF_PROPOSAL], 1).astype(np.float32)


def _alone(view: CropPrediction, tokens: int) -> dict[str, np.ndarray | list[float]]:
    """What the proposals of a view, one at least, are like without the others."""
    proposals, prompt = view.proposals, view.prompt
    predicted = np.clip([p.predicted_iou for p in proposals], -0.5, 1.5)
    levels = np.array([level_tokens(tokens).index(p.token) + 1 for p in proposals])
    cells = np.stack([p.cells for p in proposals])
    height, width = view.frame.photo
    return {
        "predicted_iou": predicted,
        "predicted_iou_clipped": np.clip(predicted, 0, 1),
        "stability": [p.stability for p in proposals],
        "soft_iou": _soft_iou(np.stack([p.logits for p in proposals]), cells),
        **{f"level_{level}": levels == level for level in LEVELS},
        **_extent(cells, view.cell_pixels / (height * width)),
        **_clicks(proposals, cells, prompt),
        "box_fit": [prompt.fit(p) for p in proposals],
        "has_box": np.full(len(proposals), bool(prompt.boxes)),
        "doublings": np.full(len(proposals), view.doublings),
    }


def _soft_iou(logits: np.ndarray, cells: np.ndarray) -> np.ndarray:
    probability = 0.5 + 0.5 * np.tanh(0.5 * logits)
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
    inside = [at for at in positives if cells[at]]
    if not inside:
        return 0.0
    distance = cv2.distanceTransform(np.pad(cells.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    return min(float(distance[at]) for at in inside) / float(np.sqrt(np.count_nonzero(cells)))


def _among(both: np.ndarray) -> dict[str, np.ndarray]:
    """Each mask against the others that are not empty. both (n, n): see `overlaps`."""
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
