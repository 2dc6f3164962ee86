"""One click on an annotated mask, and its proposals compared with the masks under the click.

What `evaluate clicks` and the gate have in common:

    oracle   IoU of the best of the six levels with the clicked mask (as published); where a crop was predicted too, or
             regions proposed, of the best of the at most six candidates that a user is offered
    first    IoU of the candidate ranked first with the best annotated mask that contains the click: on nested masks a
             click has several right answers, and only the annotator knows which one is meant
    max      IoU of the proposal with the highest predicted IoU with the clicked mask (as published)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_model.evaluation.encoded_photos import EncodedPhoto
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.engine import Model
from semsam_model.inference.predict import draw_proposal, rank_proposals
from semsam_model.inference.proposals import Proposals, predict_proposals_batch
from semsam_model.inference.zoom import CropEncoder
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou
from semsam_model.types import Click, Prompt

OPTIONS = CandidateOptions()


class ProposalIous:
    """IoU of a click's proposals with annotated masks, 0..1. Each proposal is drawn once, when it is asked for."""

    def __init__(self, proposals: Proposals, clicked: np.ndarray, containing: Sequence[np.ndarray]) -> None:
        """clicked: the mask in whose middle the click is. containing: all masks that contain the click, bool (H, W)."""
        self.proposals = proposals
        self.predicted = np.array([proposal.predicted_iou for _, proposal in proposals.pairs])
        self._clicked, self._containing = clicked, containing
        self._drawn: dict[int, tuple[int, float, list[float]]] = {}

    def area(self, index: int) -> int:
        """Photo pixels of a proposal."""
        return self._draw(index)[0]

    def with_clicked(self, index: int) -> float:
        """IoU of a proposal with the clicked mask."""
        return self._draw(index)[1]

    def with_containing(self, index: int) -> list[float]:
        """IoU of a proposal with each mask that contains the click."""
        return self._draw(index)[2]

    def with_best(self, index: int) -> float:
        """The largest of `with_containing`."""
        return max(self.with_containing(index))

    def rank(self, scores: np.ndarray | None) -> list[int]:
        """The proposals that become candidates, best first; by predicted IoU without scores. Empty masks are left out.

        scores: one for each proposal, 0..1.
        """
        return [index for index in rank_proposals(self.proposals, OPTIONS, scores) if self.area(index)]

    def measure(self, scores: np.ndarray | None) -> ClickIous:
        """oracle, first and max of this click, its candidates ranked by `scores` as in `rank`."""
        ranked = self.rank(scores)
        more = len(self.proposals.crops) > 1 or self.proposals.embedding.hierarchy is not None
        pool = ranked if more else range(len(self.proposals.pairs))
        best = max(pool, key=self.with_clicked, default=0)
        return ClickIous(
            oracle=self.with_clicked(best),
            first=self.with_best(ranked[0]) if ranked else 0.0,
            max=self.with_clicked(int(self.predicted.argmax())),
            ranked=ranked,
            pool=pool,
            best=best,
        )

    def _draw(self, index: int) -> tuple[int, float, list[float]]:
        if index not in self._drawn:
            crop, bbox = draw_proposal(*self.proposals.pairs[index], OPTIONS)
            ious = [crop_iou(crop, bbox, mask) for mask in self._containing]
            self._drawn[index] = int(np.count_nonzero(crop)), crop_iou(crop, bbox, self._clicked), ious
        return self._drawn[index]


@dataclass(frozen=True)
class ClickIous:
    """What one click reached, see the module's first lines; IoU is 0..1."""

    oracle: float
    first: float
    max: float
    ranked: Sequence[int]  #: proposals that become candidates, best first; may be empty
    pool: Sequence[int]  #: proposals that `oracle` chooses from
    best: int  #: the proposal that `oracle` is of


def click_targets(model: Model, photo: EncodedPhoto, encode_crop: CropEncoder) -> Iterator[tuple[int, ProposalIous]]:
    """Click each target of a photo once, at the point farthest from its border -> its region and proposals."""
    clicks = [innermost(photo.masks[index]) for index in photo.targets]
    prompts = [Prompt((click,)) for click in clicks]
    batch = predict_proposals_batch(model, photo.embedding, prompts, OPTIONS, encode_crop)
    for index, click, proposals in zip(photo.targets, clicks, batch, strict=True):
        yield index, ProposalIous(proposals, photo.masks[index], masks_under(photo.masks.values(), click))


def masks_under(masks: Iterable[np.ndarray], click: Click) -> list[np.ndarray]:
    """The masks, bool (H, W), that contain a click."""
    return [mask for mask in masks if mask[int(click.y), int(click.x)]]
