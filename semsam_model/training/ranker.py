"""Fits the ranker to the proposals of a network that stays as it is.

Every annotated mask is clicked; some get further clicks as corrections, some a box. Each list of proposals is used
several times, because different things may be known of the project:

    nothing           the target of a proposal is its IoU with the best annotated mask that agrees with the clicks
    the granularity   the target is its IoU with the mask that was meant
    accepted levels   the same target; the levels are drawn from those that were best for other masks of that source and
                      granularity, half of the time of the same name; the granularity is known or not
    labels            of objects and parts: the target is the IoU with the best annotated mask under the clicks whose
                      label is one of them; of one kind: with the mask that was meant
    the label         chosen before the prompt, out of such a list: with the mask that was meant

The loss is the cross-entropy of score and IoU, which is least where the score is the expected IoU. All sources have the
same weight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample, clickable
from semsam_model.data.vocabulary import NO_LABEL, SourceLabels
from semsam_model.errors import DataError, Stopped
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.engine import EngineEmbedding, Model, described
from semsam_model.inference.predict import to_candidates
from semsam_model.inference.proposals import Proposals, predict_proposals
from semsam_model.inference.ranking import ranker_features
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.masks.clicker import innermost, near_middle, next_click
from semsam_model.masks.geometry import crop_iou, tight_bbox
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import KINDS, LEVELS, Box, Click, Kind, Prompt, PromptContext, ShouldStop, never_stop

MASKS = 12  #: of a photo, at most
CORRECTIONS = 2  #: clicks that follow the first, where any do
CORRECTED, BOXED = 1 / 3, 1 / 4  #: shares of the masks that are also corrected, also given a box
ACCEPTED = (1, 5, 20)  #: how many accepted masks a drawn history holds
HIDDEN = 16
STEPS = 600
RATE = 0.02
DECAY = 3e-4


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


def fit_ranker(
    model: Model,
    samples: Sequence[Sample],
    *,
    per_source: int | None = 60,
    encoder: TextEncoder | None = None,
    seed: int = 0,
    workers: int = 0,
    on_photo: Callable[[], None] = lambda: None,
    should_stop: ShouldStop = never_stop,
) -> Ranker:
    """A ranker for this model, or for an engine with its describer, the same for the same seed.

    on_photo, should_stop: called after each photo.

    workers: processes that click beside each other, whose number changes nothing; 0: this one clicks.
    per_source: photos of each source, evenly spaced. encoder: embeds the labels of the sources, for a model with
    names; without one, names are no features. Raises DataError when no mask could be clicked, TextEncoderError,
    Stopped.
    """
    describer, labels = described(model).describer, None
    if encoder is not None and describer.name_head is not None:
        labels = SourceLabels.of(samples, encoder, describer.config.text_dim, least=1)
    chosen = evenly(samples, per_source)
    lists: list[ProposalList] = []
    clicked = ClickedPhotos(model, chosen, labels, seed)
    context = "spawn" if workers else None  # a fork would inherit threads of the arithmetic that are not there
    for of_photo in DataLoader(
        clicked, batch_size=None, collate_fn=_as_is, num_workers=workers, multiprocessing_context=context
    ):
        lists += of_photo
        on_photo()
        if should_stop():
            raise Stopped("ranker: stopped before all photos were clicked")
    return fit(lists, seed=seed)


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


def _as_is(lists: list[ProposalList]) -> list[ProposalList]:
    return lists


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


def fit(lists: Sequence[ProposalList], *, seed: int = 0) -> Ranker:
    """Fit to lists of proposals. Raises DataError when there is none."""
    if not lists:
        raise DataError("ranker: expected at least one annotated mask to learn from, got none")
    generator = torch.Generator().manual_seed(seed)
    rows, target, weight = _table(lists, np.random.default_rng(seed))
    spread = rows.std(0, correction=0)
    scale = torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0)  # what never changes has no weight
    mean = rows.mean(0)
    rows = (rows - mean) * scale
    hidden = (torch.randn(len(FEATURES), HIDDEN, generator=generator) * len(FEATURES) ** -0.5).requires_grad_()
    hidden_bias = torch.zeros(HIDDEN, requires_grad=True)
    output = (torch.randn(HIDDEN, generator=generator) * HIDDEN**-0.5).requires_grad_()
    output_bias = torch.zeros((), requires_grad=True)
    network = [hidden, hidden_bias, output, output_bias]

    optimizer = torch.optim.Adam(network, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = torch.tanh(rows @ hidden + hidden_bias) @ output + output_bias
        loss = F.binary_cross_entropy_with_logits(value, target, reduction="none") @ weight
        (loss + DECAY * (hidden.square().sum() + output.square().sum())).backward()
        optimizer.step()
        schedule.step()
    scaled = hidden.detach() * scale[:, None]
    return Ranker(
        scaled.numpy(),
        (hidden_bias.detach() - mean @ scaled).numpy(),
        output.detach().numpy(),
        output_bias.detach().numpy(),
    )


def _table(lists: Sequence[ProposalList], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """All lists, with all that may be known: rows (R, len(FEATURES)), their IoU (R,), their weights (R,), which sum to
    1; the weight of a list is spread over its rows.
    """
    of_source = Counter(entry.source for entry in lists)
    best_levels: dict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
    for entry in lists:
        for kind in _kinds(entry):
            best_levels[kind][entry.best_level] += 1
    rows, targets, weights = [], [], []
    for entry in lists:
        kind = _kinds(entry)[int(rng.integers(2))]
        others = best_levels[kind] - Counter([entry.best_level])
        for context, names, target in _known_contexts(entry, others, rng):
            rows.append(ranker_features(entry.rows, entry.levels, context, names))
            targets.append(target)
            weights.append(np.full(len(target), 1 / len(target) / of_source[entry.source]))
    weight = torch.from_numpy(np.concatenate(weights)).float()
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(targets)), weight / weight.sum()


def _kinds(entry: ProposalList) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a project may be about: a label, a granularity."""
    return (entry.source, entry.granularity, entry.name), (entry.source, entry.granularity)


def _known_contexts(
    entry: ProposalList, others: Counter[int], rng: np.random.Generator
) -> Iterator[tuple[PromptContext, np.ndarray | None, np.ndarray]]:
    """What may be known when this list is ranked, of the project and from its labels; what proposals are then worth."""
    yield PromptContext(), None, entry.any_iou
    granularity = next((kind for kind in KINDS if kind == entry.granularity), None)
    if granularity is not None:
        yield PromptContext(granularity), None, entry.wanted_iou
    if others:
        chance = np.array([others[level] for level in LEVELS]) / others.total()
        counts = tuple(int(n) for n in rng.multinomial(rng.choice(ACCEPTED), chance))
        given = granularity if rng.random() < 0.5 else None
        named = [known.names for known in entry.labels if known.granularity is not None]
        names = named[int(rng.integers(len(named)))] if named and rng.random() < 0.5 else None
        yield PromptContext(given, counts), names, entry.wanted_iou
    for known in entry.labels:
        yield PromptContext(known.granularity), known.names, known.target
