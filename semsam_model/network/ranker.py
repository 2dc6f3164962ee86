"""Which candidate first: a small learned model over what is known at the moment of the click. NumPy, no torch.

For each proposal a row of features (`FEATURES`), from the proposal, from the others of the same prompt, and from what
the project is known to want; one hidden layer; a score, the expected IoU (0..1) with the mask the annotator means. The
features look at the others as a set, so the order in which proposals come does not matter.

Published weights rank by predicted IoU, which says how well a mask follows some border and nothing about which of the
nested masks under the click is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from semsam_model.types import LEVELS

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
    "outside_box",  # share of the mask that lies outside the box prompt
    "has_box",
    "doublings",  # of the magnification at which it was seen
    "looks",  # at the photo
    "from_regions",  # a node of the photo's hierarchy of regions
    "persistence",  # of such a node; 0 for the network's
    "border",  # mean strength of the borders of regions along its outline, 0..1
    "other_kind",  # of the best: IoU with a node for the network's, with one of the network's for a node
)
OF_CONTEXT = ("wants_object", "wants_part", "own_level", "near_levels", "accepted")
#: What names say about which of several masks is meant. Zeros where no labels are known.
EVIDENCE = (
    "name_score",  # the best label's share
    "has_name_score",
    "name_part",  # the share of all part labels, 0.5 where the labels are not of both kinds
    "name_logit",  # the best label's logit, in tens
    "name_below_best",  # distance of that logit to the largest of the prompt
    "has_wanted",  # the annotator chose a label before the prompt; zeros in what follows where none was
    "wanted_score",  # its share
    "wanted_logit",  # its logit, in tens
    "wanted_below_best",  # distance of that logit to the largest of the prompt
)
FEATURES = OF_PROPOSAL + OF_CONTEXT + EVIDENCE
#: What rankers of earlier weights were not trained with: it has no say in them.
ADDED = (
    *("doublings", "looks", "outside_box", "from_regions", "persistence", "border", "other_kind"),
    *EVIDENCE[2:],
)


def logistic(logits: np.ndarray) -> np.ndarray:
    """Logits -> probabilities, without overflow; of float32 maps in two thirds of the time of scipy's `expit`."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits)


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
        return logistic(value)

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
