"""Matched queries of all decoder layers beside the masks they are held to, so that one call looks at all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semsam_model.network.decoder import LayerOutput
from semsam_model.training.losses.matching import Match, TargetMasks


class MatchedPairs:
    """The n matched queries of L layers, over the whole batch, beside the masks they are held to.

    One product an image makes the logits of all layers, so these are ordered by image, then layer, then pair.
    """

    def __init__(
        self,
        layers: Sequence[LayerOutput],
        mask_features: Sequence[Tensor],
        truth: TargetMasks,
        matches: Sequence[Match],
    ) -> None:
        """layers: the last one first."""
        self.layers, self.mask_features, self.matches = layers, mask_features, matches
        each = layers[0].predicted_iou[0].numel()
        query = torch.cat([match.query + b * each for b, match in enumerate(matches)])
        rows = [match.target + truth.start[b] for b, match in enumerate(matches)]
        counts = [len(of_image) for of_image in rows]
        embedding = _queries([layer.mask_embedding for layer in layers], query).split(counts, 1)
        by_image = zip(embedding, mask_features, strict=True)
        self.logits = torch.cat([pair_logits(own.flatten(0, 1), features) for own, features in by_image])
        self.ious = _queries([layer.predicted_iou[..., None] for layer in layers], query).squeeze(2).float()
        self.boxes = _queries([layer.boxes for layer in layers], query).float()
        self.rows = torch.cat(rows)  #: (n,)
        self.rows_of_logits = torch.cat([of_image.repeat(len(layers)) for of_image in rows])  #: (L * n,)
        places = torch.arange(len(self.logits), device=query.device).split([len(layers) * n for n in counts])
        #: (L, n), where a pair's logits are
        self.places = torch.cat([of_image.unflatten(0, (len(layers), -1)) for of_image in places], 1)


def _queries(of_layers: Sequence[Tensor], query: Tensor) -> Tensor:
    """L of (B, N, T, C), and n queries of the whole batch -> (L, n, C)"""
    return torch.stack(list(of_layers)).flatten(1, 3)[:, query]


def pair_logits(embedding: Tensor, features: Tensor) -> Tensor:
    """(n, C) and (C, h, w) -> float32 (n, h, w)"""
    return (embedding.to(features.dtype) @ features.flatten(1)).float().unflatten(1, features.shape[-2:])
