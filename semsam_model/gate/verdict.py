"""The gate: whether a fine-tuned model may take its parent's place. Measured, then judged by plain statistics.

Both models click the same masks (`gate.clicks`): those of corrections held out by photo, and of a guard set that never
changes. The value of a click is the mean of `oracle` and `first`, percent: the IoU of the best candidate, and of the
one ranked first. The child is promoted when

    the masks agree with their own photos (`gate.photo_agreement`), which is measured before anything is learned;
    the mean gain on the held-out corrections is at least `margin`, and the lower end of its bootstrap interval, which
    resamples photos, as clicks of one photo are alike, lies above zero; and so does that of Student's interval, which
    is the wider one with few photos;
    the value on the guard set has not fallen by more than `tolerance`, nor has its `oracle`;
    names: the child's are not worse than the parent's by more than `name_tolerance` on the held-out corrections, nor on
    the guard set, and they follow the labels more than chance would (a permutation test). Labels that nothing can be
    learned from are a sign that they are wrong.

`max` is reported and not judged. It is the proposal of highest predicted IoU, which no user is offered where the model
has a ranker, compared with the mask that was wanted: on nested masks every other right answer counts as wrong. A child
that is surer of the car at a click on its door loses in `max` what it gains in `first` (docs/run/fine-tuning.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semsam_model.data.folder import evenly
from semsam_model.data.samples import Sample
from semsam_model.errors import DataError
from semsam_model.gate.clicks import GateClick, guard_samples, measure_clicks
from semsam_model.gate.config import GateConfig
from semsam_model.gate.interval import Interval, bootstrap, widened
from semsam_model.gate.photo_agreement import PhotoAgreement
from semsam_model.gate.verdict_table import CLICK_MEASURES
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import ShouldStop, never_stop


@dataclass(frozen=True)
class Verdict:
    """What the gate decides, and why."""

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
    agreement: PhotoAgreement | None = None,
) -> Verdict:
    """Parent and child on the held-out corrections and on the guard set, click by click the same masks.

    agreement: what `measure_agreement` found about the corrections. Raises DataError when the masks are not the same.
    """
    for before, after in ((parent, child), (guard_parent, guard_child)):
        if [(c.photo, c.region) for c in before] != [(c.photo, c.region) for c in after]:
            raise DataError("gate: expected the same clicks of parent and child")
    photos = [c.photo for c in child]
    gains = [c.value - p.value for p, c in zip(parent, child, strict=True)]
    gain = widened(bootstrap(gains, photos, config), gains, photos, config)
    reasons = [
        *([agreement.reason] if agreement is not None and agreement.reason else []),
        *_gain_reasons(gain, len(set(photos)), len(child), config),
        *_name_reasons(parent, child, "the held-out corrections", config),
        *_name_reasons(guard_parent, guard_child, "the guard set", config),
    ]
    for what in ("value", "oracle"):
        change = _change(guard_parent, guard_child, what)
        if change < -config.tolerance:
            reasons.append(
                f"worse on the guard set: {what} {change:+.1f} points, expected no less than {-config.tolerance:+.1f}"
            )
    if _labels_are_noise(child, config):
        reasons.append(
            "names do not follow the labels of the held-out corrections more than chance would: are the labels right?"
        )
    figures = {
        "held_out": compared(parent, child),
        "guard": compared(guard_parent, guard_child),
        "photos": len(set(photos)),
        "pictures": None if agreement is None else agreement.to_dict(),
        "by_level": _grouped(parent, child, lambda c: str(c.level)),
        "by_label": _grouped(parent, child, lambda c: c.label or "no label"),
    }
    return Verdict(not reasons, tuple(reasons), gain, _change(guard_parent, guard_child, "value"), figures)


def _gain_reasons(gain: Interval, photos: int, masks: int, config: GateConfig) -> list[str]:
    if photos < config.min_photos or masks < config.min_masks:
        return [
            f"too few held-out corrections to judge by: {masks} masks on {photos} photos, expected "
            f"{config.min_masks} on {config.min_photos}; correct more photos"
        ]
    lowest = min(0.0, config.margin)
    if gain.mean >= config.margin and gain.low > lowest:
        return []
    return [
        f"no clear gain on the held-out corrections: {gain.mean:+.1f} points, {100 * config.confidence:.0f} % "
        f"interval {gain.low:+.1f} to {gain.high:+.1f}; expected at least {config.margin:+.1f}, and the interval "
        f"above {lowest:+.1f}"
    ]


def _change(parent: Sequence[GateClick], child: Sequence[GateClick], measure: str) -> float:
    """Of the mean, points of percent."""
    scale = 1 if measure == "value" else 100
    return scale * (_mean(child, measure) - _mean(parent, measure))


def compared(parent: Sequence[GateClick], child: Sequence[GateClick]) -> dict[str, Any]:
    """Means before and after, percent: the measures, label top-1 where names were predicted, and how many masks."""
    found: dict[str, Any] = {"masks": len(child)}
    for name in CLICK_MEASURES:
        found[name] = [round(100 * _mean(clicks, name), 2) for clicks in (parent, child)]
    named = [[c for c in clicks if c.predicted_label is not None] for clicks in (parent, child)]
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
    return 100 * float(np.mean([c.predicted_label == c.label for c in clicks])) if clicks else 0.0


def _name_reasons(parent: Sequence[GateClick], child: Sequence[GateClick], where: str, config: GateConfig) -> list[str]:
    before, after = ([c for c in clicks if c.predicted_label is not None] for clicks in (parent, child))
    change = _top1(after) - _top1(before)
    if len(after) < config.min_masks or change >= -config.name_tolerance:
        return []
    return [
        f"names are worse on {where}: top-1 {change:+.1f} points, expected no less than {-config.name_tolerance:+.1f}"
    ]


def _labels_are_noise(clicks: Sequence[GateClick], config: GateConfig) -> bool:
    """Whether names are right no more often than after the labels are permuted among the masks.

    False where nearly all masks have one label, which leaves nothing to permute.
    """
    labelled = [c for c in clicks if c.predicted_label is not None]
    labels = np.array([c.label for c in labelled], dtype=object)
    _, counts = np.unique(labels.astype(str), return_counts=True)
    if len(labelled) < config.min_masks or max(counts) > 0.8 * len(labelled):
        return False
    named = np.array([c.predicted_label for c in labelled], dtype=object)
    rng = np.random.default_rng(config.seed)
    right = int((named == labels).sum())
    by_chance = [int((named == rng.permutation(labels)).sum()) for _ in range(config.resamples)]
    return float(np.mean([count >= right for count in by_chance])) > 1 - config.confidence


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the gate measured; its report is made from it."""

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
    agreement: PhotoAgreement | None = None,
    encoder: TextEncoder | None = None,
    lists: Sequence[Sample] | None = None,
    should_stop: ShouldStop = never_stop,
) -> Comparison:
    """Measure both models and judge. held_out: corrections of photos that the child has not learned from.

    agreement: of all corrections, measured before anything was learned. lists: samples that label lists are taken from,
    those learned from among them. should_stop: asked before each photo. Raises Stopped.
    """
    chosen, guard = evenly(held_out, config.photos), guard_samples(config.scenes)
    before, after = (measure_clicks(m, chosen, encoder, lists=lists, should_stop=should_stop) for m in (parent, child))
    guards = [measure_clicks(m, guard, encoder, should_stop=should_stop) for m in (parent, child)]
    return Comparison(chosen, before, after, judge(before, after, guards[0], guards[1], config, agreement))
