"""What it costs to merge two regions that touch: how much the border between them looks like one of a thing. NumPy.

`PLAIN` needs no training: distance in colour and in the network's mask features, and the contrast along the border. A
`LearnedCost` was fitted to the borders of annotated masks (`training.borders`) and is stored with the weights.

Both compare regions by sums over their pixels, because those of a merged region are the sums of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

AREA, LAB, FEATURES = 0, slice(1, 4), slice(4, None)  #: columns of the sums of a region: pixels; colours; features
LENGTH, CONTRAST = 0, 1  #: columns of a border, see `Touching`
SMALL_FIRST = 0.35  #: power of the smaller region's area that a cost is multiplied with
MEASURED = 8  #: what is known of two regions beside their features


class PlainCost:
    """The cost without training."""

    def features_of(self, mask_features: np.ndarray) -> np.ndarray:
        """Mask features of the network, float32 (C, h, w) -> what regions are compared by, float32 (K, h, w)."""
        return mask_features

    def __call__(self, one: np.ndarray, other: np.ndarray, borders: np.ndarray) -> np.ndarray:
        """Sums (E, 4 + K) of two regions, borders (E, 2) -> (E,), at least 0; about 1 where a border is as likely as
        none.
        """
        colours = one[:, LAB] / one[:, [AREA]] - other[:, LAB] / other[:, [AREA]]
        colour = np.sqrt(np.einsum("ec,ec->e", colours, colours))
        ours, theirs = one[:, FEATURES], other[:, FEATURES]
        lengths = np.sqrt(np.einsum("ek,ek->e", ours, ours) * np.einsum("ek,ek->e", theirs, theirs))
        apart = np.maximum(1 - np.einsum("ek,ek->e", ours, theirs) / np.maximum(lengths, 1e-9), 0)
        cost: np.ndarray = colour / 30 + 2 * apart + borders[:, CONTRAST] / borders[:, LENGTH] / 15
        return cost


PLAIN = PlainCost()


@dataclass(frozen=True, eq=False)
class LearnedCost:
    """The mean of the plain cost and of one hidden layer of tanh over the distance of two regions.

    Alone, the learned half knows best what the network knows already, and adds less to it. Arrays are float32.
    """

    principal: np.ndarray  #: (C, P), directions of mask features that the plain half compares
    projection: np.ndarray  #: (C, K), of mask features
    hidden: np.ndarray  #: (K + MEASURED, H)
    hidden_bias: np.ndarray  #: (H,)
    output: np.ndarray  #: (H,)
    output_bias: np.ndarray  #: ()

    def features_of(self, mask_features: np.ndarray) -> np.ndarray:
        """See `PlainCost.features_of`."""
        channels, height, width = mask_features.shape
        both = np.concatenate([self.principal, self.projection], 1)
        # cells first in memory, as `region_sums` reads them
        return (mask_features.reshape(channels, -1).T @ both).T.reshape(-1, height, width)

    def __call__(self, one: np.ndarray, other: np.ndarray, borders: np.ndarray) -> np.ndarray:
        """See `PlainCost.__call__`. The learned half is minus the logarithm of the chance that there is no border."""
        own = FEATURES.start + self.principal.shape[1]
        plain = PLAIN(one[:, :own], other[:, :own], borders)
        features = one[:, own:] / one[:, [AREA]] - other[:, own:] / other[:, [AREA]]
        seen = np.concatenate([np.abs(features), measured(one, other, borders)], 1).astype(np.float32)
        logits = np.tanh(seen @ self.hidden + self.hidden_bias) @ self.output + self.output_bias
        cost: np.ndarray = (plain + np.logaddexp(0, logits)) / 2
        return cost

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Name -> float32, as stored with the weights."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], channels: int) -> LearnedCost:
        """The reverse of `to_arrays`, for mask features of so many channels. Raises ValueError naming what is missing,
        unknown or of another shape.
        """
        names = [field.name for field in fields(cls)]
        wrong = sorted(set(names) ^ set(arrays))
        if wrong:
            raise ValueError(f"borders: {wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
        width, seen = arrays["output"].shape, arrays["projection"].shape[-1:]
        shapes = {
            "principal": (channels, *arrays["principal"].shape[-1:]),
            "projection": (channels, *seen),
            "hidden": (sum(seen) + MEASURED, *width),
            "hidden_bias": width,
            "output": width,
            "output_bias": (),
        }
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"borders: {name} has shape {arrays[name].shape}, expected {shape}")
        return cls(**arrays)


def measured(one: np.ndarray, other: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """What is known of two regions beside their features, (E, MEASURED): how far their colours are apart, contrast
    along their border, sizes, and how long the border is for the smaller one.
    """
    known = np.empty((len(one), MEASURED))
    colours = known[:, :3]
    colours[:] = np.abs(one[:, LAB] / one[:, [AREA]] - other[:, LAB] / other[:, [AREA]])
    known[:, 3] = np.sqrt(np.einsum("ec,ec->e", colours, colours))
    known[:, 4] = borders[:, CONTRAST] / borders[:, LENGTH]
    known[:, 5] = np.minimum(one[:, AREA], other[:, AREA])
    known[:, 6] = np.maximum(one[:, AREA], other[:, AREA])
    known[:, 7] = borders[:, LENGTH] / np.sqrt(known[:, 5])
    np.log1p(known[:, :5], out=known[:, :5])
    np.log(known[:, 5:], out=known[:, 5:])
    return known
