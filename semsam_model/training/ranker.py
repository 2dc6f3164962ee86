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
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample
from semsam_model.data.vocabulary import SourceLabels
from semsam_model.errors import DataError, Stopped
from semsam_model.inference.engine import Model, described
from semsam_model.inference.ranking import ranker_features
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.ranker_lists import ClickedPhotos, ProposalList
from semsam_model.types import KINDS, LEVELS, PromptContext, ShouldStop, never_stop

ACCEPTED = (1, 5, 20)  #: how many accepted masks a drawn history holds
HIDDEN = 16
STEPS = 600
RATE = 0.02
DECAY = 3e-4


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


def _as_is(lists: list[ProposalList]) -> list[ProposalList]:
    return lists


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
