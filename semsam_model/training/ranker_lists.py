"""Lists of proposals for the ranker to learn from: every annotated mask is clicked, some are corrected, some boxed.

With each list stands what its proposals are worth, and what names say of them where a project's labels are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from semsam_model.data.samples import Sample, clickable
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels
from semsam_model.errors import DataError
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.engine import EngineEmbedding, Model
from semsam_model.inference.predict import to_candidates
from semsam_model.inference.proposals import Proposals, predict_proposals
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.masks.clicker import innermost, near_middle, next_click
from semsam_model.masks.geometry import crop_iou, tight_bbox
from semsam_model.types import KINDS, Box, Click, Kind, Prompt

MASKS = 12  #: of a photo, at most
CORRECTIONS = 2  #: clicks that follow the first, where any do
CORRECTED, BOXED = 1 / 3, 1 / 4  #: shares of the masks that are also corrected, also given a box


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """One way in which a project's labels may be known when n proposals are ranked."""

    granularity: Kind | None  #: that is known with them
    names: np.ndarray  #: float32 (n, len(EVIDENCE)), see `Proposals.evidence`
    target: np.ndarray  #: float32 (n,), what the proposals are worth then


@dataclass(frozen=True, eq=False)
class ProposalList:
    """The n proposals for one prompt, and their IoUs."""

    rows: np.ndarray  #: float32 (n, len(OF_PROPOSAL))
    levels: tuple[int, ...]
    wanted_iou: np.ndarray  #: float32 (n,), with the mask that was meant
    any_iou: np.ndarray  #: float32 (n,), with the best annotated mask that agrees with the clicks
    source: str
    granularity: str
    name: str
    labels: tuple[KnownLabels, ...] = ()  #: none where the mask has no label

    @property
    def best_level(self) -> int:
        return self.levels[int(self.wanted_iou.argmax())]


class ClickedPhotos(Dataset[list[ProposalList]]):
    """Number of a sample -> the lists of its masks, each clicked and some boxed; none where it cannot be read.

    The same for the same seed, whichever process reads it.
    """

    def __init__(
        self, model: Model, samples: Sequence[Sample], labels: SourceLabels | None = None, seed: int = 0
    ) -> None:
        self.model, self.samples, self.labels, self.seed = model, samples, labels, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> list[ProposalList]:
        sample, rng = self.samples[number], np.random.default_rng([self.seed, number])
        found: list[ProposalList] = []
        with suppress(DataError):
            masks = sample.masks()
            clicked = clickable(sample.regions, masks)
            if clicked:
                rgb = sample.image()
                embedding, encode_crop = self.model.encode(rgb), crop_encoder(self.model, rgb)
                for i in sorted(rng.permutation(clicked)[:MASKS]):
                    for proposals, clicks in _predictions(self.model, embedding, encode_crop, masks[i], rng):
                        found.append(_proposal_list(proposals, sample, masks, int(i), clicks, self.labels, rng))
        return found


def _predictions(
    model: Model,
    embedding: EngineEmbedding,
    encode_crop: CropEncoder,
    target: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[tuple[Proposals, Sequence[Click]]]:
    """The proposals for a click, for corrections, for a box; with the clicks."""
    options = CandidateOptions()
    clicks = [near_middle(target, rng) if rng.random() < 0.5 else innermost(target)]
    corrections = CORRECTIONS if rng.random() < CORRECTED else 0
    for left in range(corrections, -1, -1):
        proposals = predict_proposals(model, embedding, Prompt(tuple(clicks)), options, encode_crop)
        yield proposals, tuple(clicks)
        candidates = to_candidates(proposals, options) if left else []
        click = next_click(target, candidates[0].mask, clicks) if candidates else None
        if click is None:
            break
        clicks.append(click)
    if rng.random() < BOXED:
        yield predict_proposals(model, embedding, Prompt((), (_loose_box(target, rng),)), options, encode_crop), ()


def _loose_box(mask: np.ndarray, rng: np.random.Generator) -> Box:
    """The mask's box, each side moved by up to a tenth of its length."""
    left, top, right, bottom = tight_bbox(mask)
    width, height = right - left, bottom - top
    x0, y0, x1, y1 = rng.uniform(-0.1, 0.1, 4) * (width, height, width, height)
    return Box(left + x0, top + y0, right + x1, bottom + y1)


def _proposal_list(
    proposals: Proposals,
    sample: Sample,
    masks: Sequence[np.ndarray],
    index: int,
    clicks: Sequence[Click],
    labels: SourceLabels | None,
    rng: np.random.Generator,
) -> ProposalList:
    agreeing = [
        i
        for i, mask in enumerate(masks)
        if i == index or (clicks and all(mask[int(c.y), int(c.x)] == c.positive for c in clicks))
    ]
    drawn = [(view.frame.mask(proposal.logits)) for view, proposal in proposals.pairs]
    ious = {i: np.array([crop_iou(crop, bbox, masks[i]) for crop, bbox in drawn], np.float32) for i in agreeing}
    region = sample.regions[index]
    known: tuple[KnownLabels, ...] = ()
    if labels is not None:
        rows = {i: labels.row(sample.source, sample.regions[i]) for i in agreeing}
        if rows[index] != NO_LABEL:
            known = tuple(_known_labels(proposals, labels, rows, index, ious, rng))
    return ProposalList(
        proposals.features,
        tuple(proposals.levels),
        ious[index],
        np.max(list(ious.values()), 0),
        sample.source,
        region.granularity,
        region.name or "",
        known,
    )


def _known_labels(
    proposals: Proposals,
    labels: SourceLabels,
    rows: Mapping[int, int],
    index: int,
    ious: Mapping[int, np.ndarray],
    rng: np.random.Generator,
) -> Iterator[KnownLabels]:
    """rows: of each mask that agrees with the clicks its row of the vocabulary, or NO_LABEL; ious: of each
    such mask with the proposals (n,).

    Nothing for a model without names.
    """
    every, of_kind = _draw_lists(labels, rows[index], rng)
    kind = KINDS[labels.vocabulary.rows[rows[index]][1]]
    listed = np.max([ious[i] for i, row in rows.items() if row in every], 0)
    without_kinds = replace(labels.of_rows(every), kinds=(None,) * len(every))
    for granularity, shown, wanted, target in (
        (None, labels.of_rows(every), None, listed),
        (kind, labels.of_rows(of_kind), None, ious[index]),
        (kind, labels.of_rows(every), 0, ious[index]),
        (None, without_kinds, 0, ious[index]),
    ):
        names = proposals.evidence(shown, granularity, wanted)
        if names is not None:
            yield KnownLabels(granularity, names, target)


def _draw_lists(labels: SourceLabels, row: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Rows of two lists that a project might have, this row first: of both kinds, and of its kind alone.

    Labels of its own source, and half of the time some of other sources, which are not on the photo or not annotated.
    """
    of_all = labels.vocabulary.rows
    source, head, _ = of_all[row]
    same = [i for i, of in enumerate(of_all) if of[0] == source and i != row]
    share = rng.choice((0.3, 1.0))
    chosen = [i for i in same if rng.random() < share] or same[:1]
    if rng.random() < 0.5:
        taken = {of_all[i][2] for i in (row, *chosen)}
        others = [i for i, of in enumerate(of_all) if of[0] != source and of[2] not in taken]
        chosen += rng.permutation(others)[: int(rng.integers(1, 8))].tolist()
    return [row, *chosen], [row, *(i for i in chosen if of_all[i][1] == head)]
