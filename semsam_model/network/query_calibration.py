"""What the scores of object queries are worth: a small monotone curve for each kind, stored with the weights. No torch.

A query's score for a label is a product of what the network says about the mask and about the name. Each factor was
trained alone, so the product is too low where both are sure of the same thing, and too high on scenes that training
never had. A curve turns it into the expected IoU with an annotated mask of that kind and label:

    logit(calibrated) = low * log(score) - high * log(1 - score) + shift        low, high > 0

(beta calibration, Kull et al. 2017, with IoU for the yes or no), so the order within a kind stays as it was. There are
four curves: objects and parts, with the labels of a project and without any. `threshold` is the calibrated score at
which a region is as often right as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from semsam_model.network.ranker import logistic
from semsam_model.types import KINDS, Kind

CLEAR = 1e-4  #: scores are kept so far from 0 and 1, whose logarithms have no end
LEAST_SLOPE = 0.01  #: of `low` and `high`
PRIOR = 2.0  #: how many regions "the score is right as it is" weighs as much as; settles where there are few
HALVINGS = 40  #: of the range in which `Curve.inverse` looks


def logs(scores: np.ndarray) -> np.ndarray:
    """Scores (n,), 0..1 -> (n, 2): log(score) and -log(1 - score), cut off at CLEAR and 1 - CLEAR."""
    clipped = np.clip(np.asarray(scores, np.float64), CLEAR, 1 - CLEAR)
    return np.stack((np.log(clipped), -np.log1p(-clipped)), -1)


@dataclass(frozen=True)
class Curve:
    """One monotone curve of three numbers; (1, 1, 0) leaves scores as they are."""

    low: float  #: slope where scores are near 0
    high: float  #: slope where scores are near 1
    shift: float

    @classmethod
    def fitted(cls, scores: np.ndarray, worth: np.ndarray, weights: np.ndarray) -> Curve:
        """The curve of least cross-entropy between its values and `worth`, 0..1; all (n,), weights add up to 1.

        Scores stay as they are where there is none, and nearly so where there are few: see PRIOR.
        """
        from scipy.optimize import minimize  # half a second to import

        inputs, prior = np.column_stack((logs(scores), np.ones(len(scores)))), PRIOR / max(len(scores), 1)
        plain = np.array((1.0, 1.0, 0.0))

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            logits, away = inputs @ values, values - plain
            entropy = float(weights @ (np.logaddexp(0, logits) - worth * logits))
            gradient = (weights * (logistic(logits) - worth)) @ inputs + 2 * prior * away
            return entropy + prior * float(away @ away), gradient

        slopes = (LEAST_SLOPE, 20.0)
        found = minimize(loss, plain, jac=True, bounds=(slopes, slopes, (None, None)), method="L-BFGS-B")
        return cls(*map(float, found.x))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n,) -> expected IoU (n,), both 0..1."""
        return logistic(logs(scores) @ (self.low, self.high) + self.shift)

    def inverse(self, value: float) -> float:
        """The least score whose expected IoU is `value`, both 0..1; the ends stay the ends."""
        if not 0 < value < 1:
            return float(value)
        below, above = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (below + above) / 2
            below, above = (below, middle) if self(np.array(middle)) >= value else (middle, above)
        return above


@dataclass(frozen=True)
class QueryCalibration:
    """The curves of a network, and the score at which it is as often right as wrong."""

    curves: Mapping[tuple[Kind, bool], Curve]  #: (kind, whether labels were given) -> its curve; all four
    threshold: float  #: calibrated score from which on regions are offered

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Name -> float32, as stored with the weights."""
        curves = {
            _name(kind, named): np.array((curve.low, curve.high, curve.shift), np.float32)
            for (kind, named), curve in self.curves.items()
        }
        return curves | {"threshold": np.array(self.threshold, np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> QueryCalibration:
        """The reverse of `to_arrays`. Raises ValueError naming what is missing, unknown or not as expected."""
        keys = {_name(kind, named): (kind, named) for kind, named in product(KINDS, (True, False))}
        wrong = sorted({*keys, "threshold"} ^ set(arrays))
        if wrong:
            known = wrong[0] in keys or wrong[0] == "threshold"
            raise ValueError(f"query calibration: {wrong[0]} is {'missing' if known else 'unknown'}")
        curves: dict[tuple[Kind, bool], Curve] = {}
        for name, key in keys.items():
            if arrays[name].shape != (3,) or not (arrays[name][:2] > 0).all():
                raise ValueError(
                    f"query calibration: {name} is {arrays[name].tolist()}, expected two slopes > 0 and a shift"
                )
            curves[key] = Curve(*map(float, arrays[name]))
        if arrays["threshold"].shape != ():
            raise ValueError(f"query calibration: threshold has shape {arrays['threshold'].shape}, expected ()")
        return cls(curves, float(arrays["threshold"]))


def _name(kind: Kind, named: bool) -> str:
    return f"{kind}.{'named' if named else 'unnamed'}"
