"""Fits the projections of the name head to a network that stays as it is otherwise: masks and their order do not move.

A run that learns masks sees a name a few times a minute, most of the time being spent on outlines. What names depend on
(the state of the query, the features pooled inside the mask) is small, so it is collected once, a click for each named
mask, on the photo and on a magnified window of it, and the projections learn from it for many epochs, with dropout.
Object queries are collected beside clicks, as one head names both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from semsam_model.data.mixture import Mixture
from semsam_model.data.samples import MIN_AREA, Sample
from semsam_model.data.vocabulary import NO_LABEL, NameTable, Vocabulary, encode_vocabulary
from semsam_model.errors import ConfigError, DataError
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import crop_iou, tight_bbox
from semsam_model.network.frame import Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.name_head import NameHead
from semsam_model.text_encoder import TextEncoder
from semsam_model.training.losses.names import name_loss
from semsam_model.training.refiner_answers import drawn_samples

MASKS = 16  #: of a photo, at most
ROOM = (1.3, 4.0)  #: side of a magnified window, by the longer side of the mask in its middle
STEPS, BATCH = 1500, 256
RATE, DECAY = 1e-3, 0.5
DROPPED, HIDDEN_DROPPED = 0.5, 0.3


@dataclass(frozen=True, eq=False)
class NamedMasks:
    """n masks as the network drew them, and what they are called."""

    queries: np.ndarray  #: float16 (n, 2, E), class embeddings of the query alone, of both heads
    pooled: np.ndarray  #: float16 (n, D), see `NameHead.pool`
    rows: np.ndarray  #: int64 (n,), of the vocabulary

    @classmethod
    def joined(cls, parts: Sequence[NamedMasks]) -> NamedMasks:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("queries", "pooled", "rows")))


class NamedPhotos(Dataset[list[NamedMasks]]):
    """Number of a sample -> its named masks: on the photo, and on a window of it; [] where it cannot be read.

    Half of the photos are mirrored. The same for the same seed, whichever process reads it.
    """

    def __init__(self, model: SemanticSAM, samples: Sequence[Sample], vocabulary: Vocabulary, seed: int = 0) -> None:
        self.model, self.samples, self.vocabulary, self.seed = model, samples, vocabulary, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> list[NamedMasks]:
        sample, rng = self.samples[number], np.random.default_rng([self.seed, number])
        rows = [self.vocabulary.row(sample.source, r.granularity, r.name) for r in sample.regions]
        chosen = [i for i, row in enumerate(rows) if row != NO_LABEL and not sample.regions[i].box_only]
        found: list[NamedMasks] = []
        if not chosen:
            return found
        with suppress(DataError):
            rgb, turn = sample.image(), -1 if rng.random() < 0.5 else 1
            masks = {i: sample.mask(i)[:, ::turn] for i in rng.permutation(chosen)[:MASKS].tolist()}
            masks = {i: mask for i, mask in masks.items() if np.count_nonzero(mask) >= MIN_AREA}
            if masks:
                rgb = np.ascontiguousarray(rgb[:, ::turn])
                window = _window_around(masks[int(rng.choice(list(masks)))], rng)
                x0, y0, x1, y1 = window
                inside = {i: m for i, m in masks.items() if m[y0:y1, x0:x1].sum() == m.sum() and m.sum() < m.size / 4}
                found.append(self._named(self.model.encode(rgb), masks, rows, rng))
                if inside:
                    found.append(self._named(self.model.encode(rgb, window), inside, rows, rng))
        return found

    @torch.inference_mode()
    def _named(
        self, embedding: ImageEmbedding, masks: dict[int, np.ndarray], rows: Sequence[int], rng: np.random.Generator
    ) -> NamedMasks:
        """Click every mask and take the level that is nearest to it."""
        model, frame, head = self.model, embedding.frame, self.model.name_head
        assert head is not None
        clicks = [innermost(mask) for mask in masks.values()]
        boxes, kinds = frame.prompts(clicks, model.config)
        (last,) = model.decoder(embedding.features, boxes[None], kinds[None])
        every = model.mask_logits(embedding.features, last.mask_embedding)[0].float()
        height, width = frame.logits
        taken: list[tuple[int, int, int]] = []
        for n, (i, mask) in enumerate(masks.items()):
            drawn = [frame.mask(logits) for logits in every[n, :, :height, :width].numpy()]
            level = int(np.argmax([crop_iou(*of_level, mask) for of_level in drawn]))
            taken.append((n, level, rows[i]))
        at, levels, of = np.array(taken, np.int64).reshape(-1, 3).T
        queries = torch.stack((last.object_embedding[0, at, levels], last.part_embedding[0, at, levels]), 1)
        pooled = head.pool(embedding.features, 0, every[at, levels])
        return NamedMasks(queries.half().numpy(), pooled.half().numpy(), of)


def _window_around(mask: np.ndarray, rng: np.random.Generator) -> Window:
    """A square round the mask, kept inside the photo where it can be."""
    x0, y0, x1, y1 = tight_bbox(mask)
    height, width = mask.shape
    side = min(max(32, round(max(x1 - x0, y1 - y0) * rng.uniform(*ROOM))), max(mask.shape))
    spans = []
    for low, high, length in ((x0, x1, width), (y0, y1, height)):
        own = min(side, length)
        start = round((low + high - own) / 2 + rng.uniform(-0.2, 0.2) * own)
        start = min(max(start, 0), length - own)
        spans.append((start, start + own))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def collect_named_masks(
    model: SemanticSAM,
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    workers: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> NamedMasks:
    """Click the named masks of samples. workers: processes that click, whose number changes nothing.

    Raises DataError when there is none.
    """
    photos = NamedPhotos(model, samples, vocabulary, seed)
    parts: list[NamedMasks] = []
    context = "spawn" if workers else None  # a fork would inherit threads of the arithmetic that are not there
    for of_photo in DataLoader(
        photos, batch_size=None, collate_fn=_as_is, num_workers=workers, multiprocessing_context=context
    ):
        parts += [part for part in of_photo if len(part.rows)]
        on_photo()
    if not parts:
        raise DataError("names: expected at least one mask with a label that the network can draw, got none")
    return NamedMasks.joined(parts)


def _as_is(found: list[NamedMasks]) -> list[NamedMasks]:
    return found


def fit_names(
    model: SemanticSAM,
    mixture: Mixture,
    encoder: TextEncoder,
    *,
    photos: int,
    seed: int = 0,
    workers: int = 0,
    on_photo: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """The changed tensors of the model's name head, by their names in its state; the same for the same seed.

    photos: at most so many of those with a name to learn, drawn from the sources by their shares. Raises ConfigError
    for a model without names and as `encode_vocabulary`, DataError, TextEncoderError.
    """
    if model.name_head is None:
        raise ConfigError(f"model {model.config.name}: it cannot name masks, expected one trained with name_features")
    vocabulary = Vocabulary.of(mixture.named)
    named = (s for s in drawn_samples(mixture, seed) if s.supervision.names and _has_name(s, vocabulary))
    chosen = list(islice(named, photos))
    table = NameTable.of(vocabulary, encode_vocabulary(vocabulary, encoder, model.config.text_dim))
    masks = collect_named_masks(model, chosen, vocabulary, seed=seed, workers=workers, on_photo=on_photo)
    return fit(model.name_head, masks, table, seed=seed)


def _has_name(sample: Sample, vocabulary: Vocabulary) -> bool:
    return any(vocabulary.row(sample.source, r.granularity, r.name) != NO_LABEL for r in sample.regions)


def fit(head: NameHead, masks: NamedMasks, table: NameTable, *, seed: int = 0, steps: int = STEPS) -> dict[str, Tensor]:
    """See `fit_names`. Masks are drawn alike: what is seldom on photos is seldom learned from."""
    generator = torch.Generator().manual_seed(seed)
    queries, pooled = torch.from_numpy(masks.queries), torch.from_numpy(masks.pooled)
    rows = torch.from_numpy(masks.rows)
    first, second = (_copies(head, layer) for layer in (0, 2))
    log_scale = head.log_scale.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([*first.parameters(), *second.parameters(), log_scale], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        at = torch.randint(len(rows), (BATCH,), generator=generator)
        x = _dropped(pooled[at].float(), DROPPED, generator)
        embeddings = []
        for kind in range(len(first)):
            hidden = _dropped(first[kind](x).relu(), HIDDEN_DROPPED, generator)
            embeddings.append(queries[at, kind].float() + second[kind](hidden))
        loss = name_loss(embeddings[0], embeddings[1], rows[at], table, log_scale.exp()).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    found = {"name_head.log_scale": log_scale.detach()}
    for kind, layers in enumerate(zip(first, second, strict=True)):
        for place, layer in zip((0, 2), layers, strict=True):
            for name, value in layer.state_dict().items():
                found[f"name_head.projections.{kind}.{place}.{name}"] = value
    return found


def _copies(head: NameHead, layer: int) -> nn.ModuleList:
    """One layer of both projections, to be trained."""
    copies = nn.ModuleList()
    for projection in head.projections:
        of = projection.get_submodule(str(layer))
        assert isinstance(of, nn.Linear)
        copy = nn.Linear(of.in_features, of.out_features)
        copy.load_state_dict(of.state_dict())
        copies.append(copy)
    return copies


def _dropped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Dropout of a generator of its own."""
    kept = torch.rand(x.shape, generator=generator) >= share
    return x * kept / (1 - share)
