"""The gate: whether a fine-tuned model may take its parent's place. Measured, then judged by plain statistics.

Both models click the same masks: those of corrections held out by photo, and of a guard set that never changes. The
value of a click is the mean of `oracle` and `first` (see `evaluate`), percent: what the best candidate is worth, and
the one that is offered first. The child is promoted when

    the mean gain on the held-out corrections is at least `margin`, and the lower end of its bootstrap interval, which
    resamples photos, as clicks of one photo are alike, lies above zero;
    the value on the guard set has not fallen by more than `tolerance`, nor has its `oracle`;
    names: the child's are not worse than the parent's by more than `name_tolerance` on the held-out corrections, nor on
    the guard set, and they follow the labels more than chance would (a permutation test). Labels that nothing can be
    learned from are a sign that they are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semsam_model.candidates import Options, crop_iou
from semsam_model.config import check_fields
from semsam_model.corrections import innermost
from semsam_model.data import evenly
from semsam_model.errors import ConfigError, DataError, ImageError
from semsam_model.model import ImageEmbedding, SemanticSAM
from semsam_model.names import KINDS, LabelSet, label_scores
from semsam_model.predict import ask, rank, raw_levels
from semsam_model.samples import Sample
from semsam_model.synthetic import made_samples
from semsam_model.text import TextEncoder
from semsam_model.types import Prompt
from semsam_model.vocabulary import HEAD_OF, Vocabulary, encode_vocabulary

MEASURES = ("oracle", "first", "max")
MIN_AREA = 64  #: photo pixels; smaller masks are not clicked
GUARD = 1_000_003  #: seed of the made scenes of the guard set: never trained on


@dataclass(frozen=True)
class GateConfig:
    """How much better, and how much worse elsewhere. Figures are points of percent."""

    margin: float = 1.0
    """Least mean gain on the held-out corrections. Below zero: a loss that is put up with, also by the interval"""
    tolerance: float = 1.0
    """Largest loss on the guard set"""
    name_tolerance: float = 3.0
    """Largest loss of label top-1"""
    confidence: float = 0.95
    """Of the bootstrap interval of the gain, and of the test that names follow the labels"""
    resamples: int = 2000
    min_photos: int = 3
    """Held-out photos without which nothing is promoted"""
    min_masks: int = 8
    """Held-out masks without which nothing is promoted"""
    photos: int = 40
    """Held-out photos looked at, at most, evenly spaced"""
    scenes: int = 16
    """Made scenes of the guard set"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1 or min(self.resamples, self.min_photos, self.min_masks, self.photos) < 1:
            raise ConfigError(
                "gate: expected 0.5 <= confidence < 1 and resamples, min_photos, min_masks, photos of at least 1"
            )
        if min(self.tolerance, self.name_tolerance, self.scenes, self.seed) < 0:
            raise ConfigError("gate: tolerance, name_tolerance, scenes, seed: expected at least 0")

    @classmethod
    def from_dict(cls, values: object, where: str = "gate") -> GateConfig:
        """Checked construction from plain values. Raises ConfigError naming the key."""
        return cls(**check_fields(cls, values, where))


@dataclass(frozen=True)
class GateClick:
    """One click on one mask, by one model. IoU is 0..1."""

    photo: int  #: index among the samples
    region: int
    granularity: str
    label: str | None
    oracle: float  #: of the best of the six levels with the wanted mask
    first: float  #: of the candidate ranked first with the best annotated mask under the click
    max: float  #: of the level with the highest predicted IoU with the wanted mask
    level: int  #: 1..6, that `oracle` is of
    named: str | None = None  #: which label of its kind the model gives to the best level; None where it was not asked

    @property
    def value(self) -> float:
        """What the gate compares, percent."""
        return 50 * (self.oracle + self.first)


def guard_samples(config: GateConfig) -> Sequence[Sample]:
    """The guard set: made scenes that are the same for ever, and that fine-tuning's own scenes do not have."""
    return made_samples(config.scenes, seed=GUARD, source="guard")


def measure(
    model: SemanticSAM,
    samples: Sequence[Sample],
    encoder: TextEncoder | None = None,
    *,
    lists: Sequence[Sample] | None = None,
    on_photo: Callable[[], None] = lambda: None,
) -> list[GateClick]:
    """Click every mask of at least MIN_AREA pixels. What cannot be read is passed over. `on_photo`: after each photo.

    encoder: for names, held against the labels of the same source and kind; lists: samples that those labels are taken
    from, when they are more than `samples`.
    """
    labels = _Labels(model, samples if lists is None else lists, encoder)
    clicks: list[GateClick] = []
    for number, sample in enumerate(samples):
        try:
            masks = [sample.mask(i) for i in range(len(sample.regions))]
            wanted = [
                i for i, m in enumerate(masks) if np.count_nonzero(m) >= MIN_AREA and not sample.regions[i].box_only
            ]
            embedding = model.encode(sample.image()) if wanted else None
        except (DataError, ImageError):
            embedding = None
        if embedding is not None:
            clicks += [_click(model, embedding, sample, masks, number, i, labels) for i in wanted]
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


def _click(
    model: SemanticSAM,
    embedding: ImageEmbedding,
    sample: Sample,
    masks: Sequence[np.ndarray],
    number: int,
    index: int,
    labels: _Labels,
) -> GateClick:
    wanted = masks[index]
    click = innermost(wanted)
    prompt, options = Prompt((click,)), Options()
    levels = raw_levels(model, embedding, prompt)  # by predicted IoU
    ious = [crop_iou(c.crop, c.bbox, wanted) for c in levels]
    best = int(np.argmax(ious))
    offered = rank(ask(model, embedding, prompt, options), options, model.ranker)
    under = [mask for mask in masks if mask[int(click.y), int(click.x)]]
    first = max(crop_iou(offered[0].crop, offered[0].bbox, mask) for mask in under) if offered else 0.0
    label, of_kind = labels.of(sample, index)
    embedded = levels[best].name_embedding
    named = None
    if of_kind is not None and embedded is not None:
        named = label_scores(embedded, levels[best].level, of_kind)[0][0]
    return GateClick(
        number, index, sample.regions[index].granularity, label, ious[best], first, ious[0], levels[best].level, named
    )


# ------------------------------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, points of percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and why."""

    promoted: bool
    reasons: tuple[str, ...]  #: why not; empty when promoted
    gain: Interval  #: of the value on the held-out corrections
    guard_gain: float  #: of the value on the guard set; negative: a loss
    figures: Mapping[str, Any]  #: plain JSON values: before and after, on both sets, by level and by label

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "promoted": self.promoted,
            "reasons": list(self.reasons),
            "gain": vars(self.gain),
            "guard_gain": self.guard_gain,
            **self.figures,
        }


def judge(
    parent: Sequence[GateClick],
    child: Sequence[GateClick],
    guard_parent: Sequence[GateClick],
    guard_child: Sequence[GateClick],
    config: GateConfig,
) -> Verdict:
    """Parent and child on the held-out corrections and on the guard set, click by click the same masks.

    Raises DataError when they are not.
    """
    for before, after in ((parent, child), (guard_parent, guard_child)):
        if [(c.photo, c.region) for c in before] != [(c.photo, c.region) for c in after]:
            raise DataError("gate: expected the same clicks of parent and child")
    gain = bootstrap([c.value - p.value for p, c in zip(parent, child, strict=True)], [c.photo for c in child], config)
    guard_gain = _mean(guard_child, "value") - _mean(guard_parent, "value")
    guard_oracle = 100 * (_mean(guard_child, "oracle") - _mean(guard_parent, "oracle"))
    photos = len({c.photo for c in child})
    lowest = min(0.0, config.margin)
    reasons = []
    if photos < config.min_photos or len(child) < config.min_masks:
        reasons.append(
            f"too few held-out corrections to judge by: {len(child)} masks on {photos} photos, expected "
            f"{config.min_masks} on {config.min_photos}; correct more photos"
        )
    elif gain.mean < config.margin or gain.low <= lowest:
        reasons.append(
            f"no clear gain on the held-out corrections: {gain.mean:+.1f} points, {100 * config.confidence:.0f} % "
            f"interval {gain.low:+.1f} to {gain.high:+.1f}; expected at least {config.margin:+.1f}, and the interval "
            f"above {lowest:+.1f}"
        )
    for what, change in (("value", guard_gain), ("oracle", guard_oracle)):
        if change < -config.tolerance:
            reasons.append(
                f"worse on the guard set: {what} {change:+.1f} points, expected no less than {-config.tolerance:+.1f}"
            )
    reasons += _name_reasons(parent, child, "the held-out corrections", config)
    reasons += _name_reasons(guard_parent, guard_child, "the guard set", config)
    if _labels_are_noise(child, config):
        reasons.append(
            "names do not follow the labels of the held-out corrections more than chance would: are the labels right?"
        )
    figures = {
        "held_out": compared(parent, child),
        "guard": compared(guard_parent, guard_child),
        "photos": photos,
        "by_level": _grouped(parent, child, lambda c: str(c.level)),
        "by_label": _grouped(parent, child, lambda c: c.label or "no label"),
    }
    return Verdict(not reasons, tuple(reasons), gain, guard_gain, figures)


def bootstrap(gains: Sequence[float], photos: Sequence[int], config: GateConfig) -> Interval:
    """Mean of gains, each of a photo, and its percentile interval when whole photos are drawn again with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Zeros without gains.
    """
    if not gains:
        return Interval(0.0, 0.0, 0.0)
    numbers = np.unique(np.asarray(photos), return_inverse=True)[1]
    sums, counts = np.bincount(numbers, gains), np.bincount(numbers)
    rng = np.random.default_rng(config.seed)
    drawn = rng.integers(len(sums), size=(config.resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = 50 * (1 - config.confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(np.mean(gains)), float(low), float(high))


def compared(parent: Sequence[GateClick], child: Sequence[GateClick]) -> dict[str, Any]:
    """Means before and after, percent: the measures, label top-1 where it was asked, and how many masks."""
    found: dict[str, Any] = {"masks": len(child)}
    for measure in MEASURES:
        found[measure] = [round(100 * _mean(clicks, measure), 2) for clicks in (parent, child)]
    named = [[c for c in clicks if c.named is not None] for clicks in (parent, child)]
    if named[1]:
        found["label_top1"] = [round(_top1(clicks), 2) for clicks in named]
        found["named"] = len(named[1])
    return found


def _grouped(
    parent: Sequence[GateClick], child: Sequence[GateClick], key: Callable[[GateClick], str]
) -> dict[str, Any]:
    """By the parent's click: the level that was best before, or the label."""
    groups: dict[str, tuple[list[GateClick], list[GateClick]]] = {}
    for before, after in zip(parent, child, strict=True):
        pair = groups.setdefault(key(before), ([], []))
        pair[0].append(before)
        pair[1].append(after)
    return {name: compared(*pair) for name, pair in sorted(groups.items())}


def _mean(clicks: Sequence[GateClick], measure: str) -> float:
    return float(np.mean([getattr(c, measure) for c in clicks])) if clicks else 0.0


def _top1(clicks: Sequence[GateClick]) -> float:
    return 100 * float(np.mean([c.named == c.label for c in clicks])) if clicks else 0.0


def _name_reasons(parent: Sequence[GateClick], child: Sequence[GateClick], where: str, config: GateConfig) -> list[str]:
    before, after = ([c for c in clicks if c.named is not None] for clicks in (parent, child))
    change = _top1(after) - _top1(before)
    if len(after) < config.min_masks or change >= -config.name_tolerance:
        return []
    return [
        f"names are worse on {where}: top-1 {change:+.1f} points, expected no less than {-config.name_tolerance:+.1f}"
    ]


def _labels_are_noise(clicks: Sequence[GateClick], config: GateConfig) -> bool:
    """Whether names are right no more often than when the labels are dealt out anew among the masks.

    Not asked where one label is nearly all: there is nothing to follow then.
    """
    asked = [c for c in clicks if c.named is not None]
    labels = np.array([c.label for c in asked], dtype=object)
    if len(asked) < config.min_masks or max(np.unique(labels.astype(str), return_counts=True)[1]) > 0.8 * len(asked):
        return False
    named = np.array([c.named for c in asked], dtype=object)
    rng = np.random.default_rng(config.seed)
    right = int((named == labels).sum())
    by_chance = [int((named == rng.permutation(labels)).sum()) for _ in range(config.resamples)]
    return float(np.mean([count >= right for count in by_chance])) > 1 - config.confidence


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that the gate looked at; what its report is drawn from."""

    samples: Sequence[Sample]  #: held-out corrections
    parent: Sequence[GateClick]
    child: Sequence[GateClick]
    verdict: Verdict


def compare(
    parent: SemanticSAM,
    child: SemanticSAM,
    held_out: Sequence[Sample],
    config: GateConfig,
    *,
    encoder: TextEncoder | None = None,
    lists: Sequence[Sample] | None = None,
    on_photo: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measure both models and judge. held_out: corrections of photos that the child has not learned from.

    lists: samples that label lists are taken from, those learned from among them.
    """
    chosen, guard = evenly(held_out, config.photos), guard_samples(config)
    before, after = (measure(m, chosen, encoder, lists=lists, on_photo=on_photo) for m in (parent, child))
    guards = [measure(m, guard, encoder, on_photo=on_photo) for m in (parent, child)]
    return Comparison(chosen, before, after, judge(before, after, guards[0], guards[1], config))
