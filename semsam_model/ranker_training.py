"""Trains the ranker on the proposals of a network that stays as it is.

Every annotated mask is clicked; some are corrected with further clicks, some asked for with a box. Each list of
proposals is used three times, because different things may be known:

    nothing           a proposal is worth its IoU with the best annotated mask that agrees with the clicks
    the granularity   its IoU with the mask that was meant
    accepted levels   the same, with levels drawn from those that were best for other masks of that source and name, as
                      a project's history would show them; with or without the granularity

The loss is the cross entropy of score and IoU, which is least where the score is the expected IoU. Sources weigh alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam_model.candidates import Options, crop_iou
from semsam_model.corrections import innermost, next_click
from semsam_model.data import Sample, evenly
from semsam_model.errors import DataError
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.predict import Answers, ask, rank
from semsam_model.ranker import FEATURES, LEVELS, Ranker, wanted_features
from semsam_model.types import Box, Click, Prompt, Wanted
from semsam_model.zoom import Look, looker

MIN_AREA = 64  #: photo pixels; smaller masks are not asked for
MASKS = 12  #: of a photo, at most
CORRECTIONS = 2  #: clicks that follow the first, where any do
CORRECTED, BOXED = 1 / 3, 1 / 4  #: shares of the masks that are also corrected, also asked for with a box
ACCEPTED = (1, 5, 20)  #: how many accepted masks a made history holds
HIDDEN = 16
STEPS = 600
RATE = 0.02
DECAY = 3e-4


@dataclass(frozen=True, eq=False)
class ProposalList:
    """What one prompt gave and what it was worth. n proposals."""

    rows: np.ndarray  #: float32 (n, len(OF_PROPOSAL))
    levels: tuple[int, ...]
    wanted_iou: np.ndarray  #: float32 (n,), with the mask that was meant
    any_iou: np.ndarray  #: float32 (n,), with the best annotated mask that agrees with the clicks
    source: str
    granularity: str
    name: str

    @property
    def best_level(self) -> int:
        return self.levels[int(self.wanted_iou.argmax())]


def fit_ranker(
    model: SemanticSAM,
    samples: Sequence[Sample],
    *,
    per_source: int | None = 60,
    seed: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> Ranker:
    """A ranker for this model, the same for the same seed. `on_photo` is called after each photo.

    per_source: photos of each source, evenly spaced. Raises DataError when no mask could be asked for.
    """
    return learn(collect(model, evenly(samples, per_source), seed=seed, on_photo=on_photo), seed=seed)


def collect(
    model: SemanticSAM, samples: Iterable[Sample], *, seed: int = 0, on_photo: Callable[[], None] = lambda: None
) -> list[ProposalList]:
    """Ask for masks of every sample. A photo or mask that cannot be read gives nothing."""
    found: list[ProposalList] = []
    for number, sample in enumerate(samples):
        rng = np.random.default_rng([seed, number])
        try:
            masks = [sample.mask(i) for i in range(len(sample.regions))]
            wanted = [
                i
                for i, mask in enumerate(masks)
                if np.count_nonzero(mask) >= MIN_AREA and not sample.regions[i].box_only
            ]
            if wanted:
                rgb = sample.image()
                embedding, look = model.encode(rgb), looker(model, rgb)
                for i in sorted(rng.permutation(wanted)[:MASKS]):
                    found += _lists(model, embedding, look, sample, masks, int(i), rng)
        except DataError:
            pass
        on_photo()
    return found


def _lists(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    look: Look,
    sample: Sample,
    masks: Sequence[np.ndarray],
    index: int,
    rng: np.random.Generator,
) -> Iterator[ProposalList]:
    wanted, options = masks[index], Options()
    clicks = [_near_middle(wanted, rng) if rng.random() < 0.5 else innermost(wanted)]
    corrections = CORRECTIONS if rng.random() < CORRECTED else 0
    for left in range(corrections, -1, -1):
        answers = ask(model, embedding, Prompt(tuple(clicks)), options, look)
        yield _list(answers, sample, masks, index, clicks)
        offered = rank(answers, options) if left else []
        click = next_click(wanted, offered[0].mask, clicks) if offered else None
        if click is None:
            break
        clicks.append(click)
    if rng.random() < BOXED:
        answers = ask(model, embedding, Prompt((), (_loose_box(wanted, rng),)), options, look)
        yield _list(answers, sample, masks, index, ())


def _near_middle(mask: np.ndarray, rng: np.random.Generator) -> Click:
    """A pixel of the mask, drawn from its inner part: the square of half its height and width, or anywhere."""
    rows, cols = np.nonzero(mask)
    middle = innermost(mask)
    near = (abs(rows - middle.y) <= np.ptp(rows) / 4) & (abs(cols - middle.x) <= np.ptp(cols) / 4)
    at = rng.choice(np.flatnonzero(near)) if near.any() else rng.integers(len(rows))
    return Click(float(cols[at]) + 0.5, float(rows[at]) + 0.5)


def _loose_box(mask: np.ndarray, rng: np.random.Generator) -> Box:
    """The mask's box, each side moved by up to a tenth of its length."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] + 1 - rows[0], cols[-1] + 1 - cols[0]
    x0, y0, x1, y1 = rng.uniform(-0.1, 0.1, 4) * (width, height, width, height)
    return Box(cols[0] + x0, rows[0] + y0, cols[-1] + 1 + x1, rows[-1] + 1 + y1)


def _list(
    answers: Answers, sample: Sample, masks: Sequence[np.ndarray], index: int, clicks: Sequence[Click]
) -> ProposalList:
    agreeing = [
        mask
        for i, mask in enumerate(masks)
        if i == index or (clicks and all(mask[int(c.y), int(c.x)] == c.positive for c in clicks))
    ]
    wanted_iou, any_iou = [], []
    for view, proposal in answers.proposals:
        crop, bbox = view.frame.mask(proposal.logits)
        wanted_iou.append(crop_iou(crop, bbox, masks[index]))
        any_iou.append(max(crop_iou(crop, bbox, mask) for mask in agreeing))
    region = sample.regions[index]
    return ProposalList(
        answers.rows,
        tuple(answers.levels),
        np.array(wanted_iou, np.float32),
        np.array(any_iou, np.float32),
        sample.source,
        region.granularity,
        region.name or "",
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """All lists, all that may be known, as one table of rows."""

    rows: Tensor  #: (R, len(FEATURES))
    target: Tensor  #: (R,)
    weight: Tensor  #: (R,), sums to 1; a list's weight is spread over its rows


def learn(lists: Sequence[ProposalList], *, seed: int = 0) -> Ranker:
    """Fit to lists of proposals. Raises DataError when there is none."""
    if not lists:
        raise DataError("ranker: expected at least one annotated mask to learn from, got none")
    generator = torch.Generator().manual_seed(seed)
    table = _table(lists, np.random.default_rng(seed))
    spread = table.rows.std(0, correction=0)
    scale = torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0)  # what never changes teaches nothing
    mean = table.rows.mean(0)
    rows = (table.rows - mean) * scale
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
        loss = F.binary_cross_entropy_with_logits(value, table.target, reduction="none") @ table.weight
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


def _table(lists: Sequence[ProposalList], rng: np.random.Generator) -> _Table:
    of_source = Counter(entry.source for entry in lists)
    best_levels: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    for entry in lists:
        best_levels[_kind(entry)][entry.best_level] += 1
    rows, targets, weights = [], [], []
    for entry in lists:
        others = best_levels[_kind(entry)] - Counter([entry.best_level])
        for wanted, target in _known(entry, others, rng):
            wants = np.array([wanted_features(level, wanted) for level in entry.levels], np.float32)
            rows.append(np.concatenate([entry.rows, wants], 1))
            targets.append(target)
            weights.append(np.full(len(target), 1 / len(target) / of_source[entry.source]))
    weight = torch.from_numpy(np.concatenate(weights)).float()
    return _Table(
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate(targets)),
        weight / weight.sum(),
    )


def _kind(entry: ProposalList) -> tuple[str, str, str]:
    return entry.source, entry.granularity, entry.name


def _known(entry: ProposalList, others: Counter[int], rng: np.random.Generator) -> Iterator[tuple[Wanted, np.ndarray]]:
    """What may be known when this list is ranked, and what the proposals are then worth."""
    yield Wanted(), entry.any_iou
    granularity = cast(Literal["object", "part"], entry.granularity) if entry.granularity != "region" else None
    if granularity is not None:
        yield Wanted(granularity), entry.wanted_iou
    if others:
        chance = np.array([others[level] for level in LEVELS]) / others.total()
        counts = tuple(int(n) for n in rng.multinomial(rng.choice(ACCEPTED), chance))
        yield Wanted(granularity if rng.random() < 0.5 else None, counts), entry.wanted_iou
