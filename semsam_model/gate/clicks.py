"""What the gate measures: every mask clicked once, and answered as the service does, after a closer look if need be.

`oracle`, `first` and `max` are those of `evaluate`; beside them which level was best, and the name it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from semsam_model.data.samples import Sample, clickable
from semsam_model.data.synthetic import made_samples
from semsam_model.data.vocabulary import HEAD_OF, Vocabulary, encode_vocabulary
from semsam_model.errors import DataError, ImageError
from semsam_model.evaluation.clicks import Seen
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.naming import label_scores
from semsam_model.inference.predict import Proposals, expected_iou, predict_proposals_batch
from semsam_model.inference.zoom import crop_encoder
from semsam_model.masks.clicker import innermost
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import KINDS, LabelSet, Prompt

MEASURES = ("oracle", "first", "max")
GUARD = 1_000_003  #: seed of the made scenes of the guard set: never trained on


@dataclass(frozen=True)
class GateClick:
    """One click on one mask, by one model. IoU is 0..1."""

    photo: int  #: index among the samples
    region: int
    granularity: str
    label: str | None
    oracle: float  #: of the best of the six levels with the wanted mask; after a closer look, of the best offered
    first: float  #: of the candidate ranked first with the best annotated mask under the click
    max: float  #: of the answer with the highest predicted IoU with the wanted mask
    level: int  #: 1..6, that `oracle` is of
    named: str | None = None  #: which label of its kind the model gives to the best level; None where it was not asked

    @property
    def value(self) -> float:
        """What the gate compares, percent."""
        return 50 * (self.oracle + self.first)


def guard_samples(scenes: int) -> Sequence[Sample]:
    """The guard set: made scenes that are the same for ever, and that fine-tuning's own scenes do not have."""
    return made_samples(scenes, seed=GUARD, source="guard")


def measure(
    model: SemanticSAM,
    samples: Sequence[Sample],
    encoder: TextEncoder | None = None,
    *,
    lists: Sequence[Sample] | None = None,
    on_photo: Callable[[], None] = lambda: None,
) -> list[GateClick]:
    """Click every mask that is `clickable`. What cannot be read is passed over. `on_photo`: after each photo.

    encoder: for names, held against the labels of the same source and kind; lists: samples that those labels are taken
    from, when they are more than `samples`.
    """
    labels = _Labels(model, samples if lists is None else lists, encoder)
    clicks: list[GateClick] = []
    for number, sample in enumerate(samples):
        try:
            masks, rgb = sample.masks(), sample.image()
            wanted = clickable(sample.regions, masks)
        except (DataError, ImageError):
            wanted = []
        if wanted:
            clicks += _clicks(model, rgb, sample, masks, number, wanted, labels)
        on_photo()
    return clicks


class _Labels:
    """The label lists that names are held against."""

    def __init__(self, model: SemanticSAM, samples: Sequence[Sample], encoder: TextEncoder | None) -> None:
        self.vocabulary = Vocabulary((), ())
        if encoder is not None and model.name_head is not None:
            self.vocabulary = Vocabulary.of(samples)
        self.lists: dict[tuple[str, int], LabelSet] = {}
        if self.vocabulary.rows:
            assert encoder is not None
            vectors = encode_vocabulary(self.vocabulary, encoder, model.config.text_dim).numpy()
            for key in sorted({row[:2] for row in self.vocabulary.rows}):
                rows = [i for i, row in enumerate(self.vocabulary.rows) if row[:2] == key]
                values = tuple(self.vocabulary.rows[i][2] for i in rows)
                self.lists[key] = LabelSet(values, (KINDS[key[1]],) * len(rows), vectors[rows])

    def of(self, sample: Sample, index: int) -> tuple[str | None, LabelSet | None]:
        """The label of a region as the list has it, and the list; None where its name is not one of several."""
        region = sample.regions[index]
        row = self.vocabulary.row(sample.source, region.granularity, region.name)
        if row < 0:
            return region.name, None
        return self.vocabulary.rows[row][2], self.lists[sample.source, HEAD_OF[region.granularity]]


def _clicks(
    model: SemanticSAM,
    rgb: np.ndarray,
    sample: Sample,
    masks: Sequence[np.ndarray],
    number: int,
    wanted: Sequence[int],
    labels: _Labels,
) -> Iterator[GateClick]:
    clicks = [innermost(masks[index]) for index in wanted]
    prompts = [Prompt((click,)) for click in clicks]
    every = predict_proposals_batch(model, model.encode(rgb), prompts, CandidateOptions(), crop_encoder(model, rgb))
    for index, click, answers in zip(wanted, clicks, every, strict=True):
        under = [mask for mask in masks if mask[int(click.y), int(click.x)]]
        label, among = labels.of(sample, index)
        yield _scored(
            model, answers, masks[index], under, (number, index, sample.regions[index].granularity), label, among
        )


def _scored(
    model: SemanticSAM,
    answers: Proposals,
    wanted: np.ndarray,
    under: Sequence[np.ndarray],
    place: tuple[int, int, str],
    label: str | None,
    among: LabelSet | None,
) -> GateClick:
    """place: photo, region, granularity."""
    seen = Seen(answers, wanted, under)
    offered = seen.offered(None if model.ranker is None else expected_iou(answers, model.ranker))
    levels = offered if len(answers.views) > 1 else range(len(answers.proposals))
    best = max(levels, key=seen.wanted, default=0)
    surest = int(np.argmax([p.predicted_iou for _, p in answers.proposals]))
    level, embedded = answers.levels[best], answers.proposals[best][1].name_embedding
    named = None if among is None or embedded is None else label_scores(embedded, level, among)[0][0]
    first = seen.any(offered[0]) if offered else 0.0
    return GateClick(*place, label, seen.wanted(best), first, seen.wanted(surest), level, named)
