"""From single clicks to figures: means by source, calibration, clicks needed. Percent, as report.json has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from semsam_model.evaluation.clicks import MEASURES, ClickReport, ClickScore, GrabCutScore
from semsam_model.evaluation.groups import SourceGroups, means_of_groups
from semsam_model.evaluation.number_of_clicks import MAX_CLICKS, CorrectedMask

BINS = 10
#: Names of figures in report.json -> the names that they had before, which stand beside them with the same values.
FORMER_NAMES = {
    "top1_given_kind": "told",
    "level_accuracy_given_kind": "level_accuracy_told",
    "calibration_error_given_kind": "calibration_error_told",
}
#: name in the report -> measure -> how a click has it
BASELINES: dict[str, dict[str, str]] = {
    "predicted_iou": {"first": "first_by_iou", "top1_given_kind": "given_kind_by_iou"},
    "largest": {"first": "largest_first", "max": "largest_max"},
}

Row = TypeVar("Row", ClickScore, CorrectedMask, GrabCutScore)


@dataclass(frozen=True)
class Bin:
    """Clicks whose score fell into one tenth."""

    score: float  #: mean, 0..1
    iou: float  #: mean, 0..1
    share: float  #: of the weight of all clicks


@dataclass(frozen=True)
class Calibration:
    error: float  #: mean over the bins, by share, of the distance between score and IoU; 0..1
    bins: tuple[Bin, ...]  #: those that are not empty

    def to_dict(self) -> dict[str, Any]:
        return {"error": self.error, "bins": [vars(b) for b in self.bins]}


def calibration(scores: Sequence[float], ious: Sequence[float], weights: Sequence[float] | None = None) -> Calibration:
    """Expected calibration error of scores, 0..1, as predictions of IoU; every entry weighs alike without weights."""
    score, iou = np.asarray(scores, float), np.asarray(ious, float)
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, float)
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    bins = []
    for at in np.unique(place):
        inside = place == at
        mean_score, mean_iou = (float(np.average(v[inside], weights=weight[inside])) for v in (score, iou))
        bins.append(Bin(mean_score, mean_iou, float(weight[inside].sum() / weight.sum())))
    return Calibration(sum(b.share * abs(b.score - b.iou) for b in bins), tuple(bins))


def summarise(
    report: ClickReport, trained_on: Collection[str] | None = None, groups: SourceGroups | None = None
) -> dict[str, Any]:
    """What report.json holds. trained_on: sources the model has seen; the others are then reported apart too.

    groups: reported apart, each with its seen and unseen sources. Raises ConfigError for a source in none of them.
    """
    by_source = {name: _of_source(report, name) for name in sorted(report.photos)}
    content: dict[str, Any] = {"by_source": by_source, "mean_over_sources": _mean(by_source.values())}
    if trained_on is not None:
        for key, seen in (("mean_over_seen", True), ("mean_over_zero_shot", False)):
            content[key] = _mean(v for name, v in by_source.items() if (name in trained_on) == seen)
    if groups is not None:
        means = means_of_groups(groups.of(by_source), trained_on)
        content |= {key: _mean(by_source[name] for name in sources) for key, sources in means.items()}
        content["groups"] = {key.removeprefix("mean_over_"): sources for key, sources in means.items()}
    content["by_granularity"] = {
        g: _mean(v["by_granularity"][g] for v in by_source.values() if g in v["by_granularity"])
        for g in sorted({c.granularity for c in report.clicks})
    }
    content["baselines"] = _baselines(report)
    content["calibration"] = _calibrations(report)
    content["iou_after_clicks"] = _iou_after_clicks(report.corrected)
    if report.one_object:
        content["one_object"] = _one_object(report.one_object)
    content["skipped"] = report.skipped
    return _with_former_names(content)


def _with_former_names(content: Any) -> Any:
    """The same, and beside every figure of FORMER_NAMES another with its former name."""
    if not isinstance(content, dict):
        return content
    renamed = {FORMER_NAMES[name]: value for name, value in content.items() if name in FORMER_NAMES}
    return {name: _with_former_names(value) for name, value in (content | renamed).items()}


def _of_source(report: ClickReport, source: str) -> dict[str, Any]:
    clicks = [c for c in report.clicks if c.source == source]
    granularities = sorted({c.granularity for c in clicks})
    figures: dict[str, Any] = _percent(clicks) | {
        "n": len(clicks),
        "images": report.photos[source],
        "by_granularity": {
            g: _percent(of := [c for c in clicks if c.granularity == g]) | {"n": len(of)} for g in granularities
        },
    }
    corrected = [c for c in report.corrected if c.source == source]
    if corrected:
        figures |= {
            "noc80": round(float(np.mean([c.clicks_to(0.8) for c in corrected])), 2),
            "noc90": round(float(np.mean([c.clicks_to(0.9) for c in corrected])), 2),
            "noc_n": len(corrected),
        }
    return figures


def _one_object(corrected: Sequence[CorrectedMask]) -> dict[str, Any]:
    """Clicks to 85 and 90 % on the only objects of photos."""
    rows = {}
    for source in sorted({c.source for c in corrected}):
        of = [c for c in corrected if c.source == source]
        rows[source] = {f"noc{t}": round(float(np.mean([c.clicks_to(t / 100) for c in of])), 2) for t in (85, 90)}
        rows[source]["noc_n"] = len(of)
    return {
        "by_source": rows,
        "mean_over_sources": _mean(rows.values()),
        "iou_after_clicks": _iou_after_clicks(corrected),
    }


def _percent(clicks: Sequence[ClickScore]) -> dict[str, float]:
    figures = {m: _mean_percent(clicks, m) for m in MEASURES}
    error = calibration([c.first_score for c in clicks], [c.first for c in clicks]).error
    given_kind = calibration([c.given_kind_score for c in clicks], [c.top1_given_kind for c in clicks])
    return figures | {
        "level_accuracy": _mean_percent(clicks, "first_is_best"),
        "level_accuracy_given_kind": _mean_percent(clicks, "given_kind_is_best"),
        "calibration_error": round(100 * error, 2),
        "calibration_error_given_kind": round(100 * given_kind.error, 2),
    }


def _mean_percent(rows: Sequence[Row], measure: str) -> float:
    return round(100 * float(np.mean([getattr(row, measure) for row in rows])), 2)


def _mean(figures: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of every number but the counts, over those that have it."""
    rows = list(figures)
    names = {k for row in rows for k, v in row.items() if isinstance(v, float)}
    return {k: round(float(np.mean([row[k] for row in rows if k in row])), 2) for k in sorted(names)}


def _baselines(report: ClickReport) -> dict[str, Any]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, measures in BASELINES.items():
        found[name] = _by_source(report.clicks, measures)
    found["grabcut"] = _by_source(report.grabcut, {"first": "first", "max": "max"})
    return {
        name: {"by_source": rows, "mean_over_sources": _mean(rows.values())} for name, rows in found.items() if rows
    }


def _by_source(rows: Sequence[Row], measures: Mapping[str, str]) -> dict[str, dict[str, float]]:
    found = {}
    for source in sorted({row.source for row in rows}):
        of = [row for row in rows if row.source == source]
        found[source] = {m: _mean_percent(of, at) for m, at in measures.items()} | {"n": len(of)}
    return found


def _calibrations(report: ClickReport) -> dict[str, Any]:
    """Over all clicks, sources weighing alike."""
    clicks = report.clicks
    counts = {source: sum(c.source == source for c in clicks) for source in report.photos}
    weights = [1 / counts[c.source] for c in clicks]
    pairs = {
        "first": [(c.first_score, c.first) for c in clicks],
        "top1_given_kind": [(c.given_kind_score, c.top1_given_kind) for c in clicks],
        "predicted_iou": [(c.by_iou_score, c.first_by_iou) for c in clicks],
    }
    return {
        name: calibration([s for s, _ in rows], [v for _, v in rows], weights).to_dict()
        for name, rows in pairs.items()
        if rows
    }


def _iou_after_clicks(corrected: Sequence[CorrectedMask]) -> list[float]:
    """Percent after 1, 2, ... 20 clicks, mean over masks."""
    if not corrected:
        return []
    return [round(100 * float(np.mean([c.after(n) for c in corrected])), 2) for n in range(1, MAX_CLICKS + 1)]
