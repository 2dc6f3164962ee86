"""Proposals in the order that a project's accepted masks suggest: the `Reranker` of `inference.predict`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from semsam_model.adaptation.kernel_ridge import Preference, preference_vectors
from semsam_model.adaptation.region_features import region_features
from semsam_model.inference.proposals import Proposals


@dataclass(frozen=True, eq=False)
class PreferenceReranker:
    """Adds to each expected IoU what the preference says about proposals like it."""

    preference: Preference

    def rerank(self, proposals: Proposals, expected: np.ndarray) -> tuple[Proposals, np.ndarray]:
        """See `Reranker.rerank`."""
        described = with_region_features(proposals)
        return described, self.preference.scores(rerank_features(described), expected)


def with_region_features(proposals: Proposals) -> Proposals:
    """The proposals with the `region` of each; those that have it come back as they are."""
    if all(p.region is not None for _, p in proposals.pairs):
        return proposals
    cells = context_masks(proposals)
    vectors = iter(region_features(proposals.embedding, np.array(cells), cells))
    crops = (
        replace(crop, proposals=tuple(replace(p, region=next(vectors)) for p in crop.proposals))
        for crop in proposals.crops
    )
    return replace(proposals, crops=tuple(crops))


def context_masks(proposals: Proposals) -> list[np.ndarray]:
    """Every proposal as bool (h, w) cells of the whole photo's frame."""
    frame = proposals.embedding.frame
    return [p.cells if crop.frame == frame else crop.frame.onto(p.logits, frame) > 0 for crop, p in proposals.pairs]


def rerank_features(proposals: Proposals) -> np.ndarray:
    """A row for each proposal, see `preference_vectors`. The proposals have their `region`."""
    return preference_vectors(np.array([p.region for _, p in proposals.pairs]), proposals.features)
