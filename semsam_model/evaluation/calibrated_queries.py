"""Fits `QueryCalibration` to regions whose worth is known, and says how well it holds on others.

All photos teach the curves that go into the weights. How well they hold is measured with two others: each half of the
photos of each source is judged by curves that only the other half has taught. Photos weigh alike:
of one with a hundred mushrooms, all right or all wrong, there is little more to learn than of one with a cup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from rich.table import Table

from semsam_model.errors import DataError
from semsam_model.evaluation.clicks_summary import calibration
from semsam_model.evaluation.offered_regions import OfferedRegion
from semsam_model.network.query_calibration import Curve, QueryCalibration
from semsam_model.types import KINDS

RIGHT = 0.5  #: IoU with the right label from which on a region is right
FEWEST = 20  #: regions at least that a precision is read from
STEPS = 100  #: thresholds that are tried, in hundredths


def halves(regions: Sequence[OfferedRegion]) -> tuple[list[OfferedRegion], list[OfferedRegion]]:
    """The regions of every other photo of each source, and those of the photos between."""
    photos: dict[str, list[int]] = {}
    for region in regions:
        of = photos.setdefault(region.source, [])
        if region.photo not in of:
            of.append(region.photo)
    first = {photo for of in photos.values() for photo in sorted(of)[::2]}
    return [r for r in regions if r.photo in first], [r for r in regions if r.photo not in first]


def fit_calibration(regions: Sequence[OfferedRegion]) -> QueryCalibration:
    """Curves and threshold that fit these regions. Raises DataError when there is none with labels."""
    if not any(region.named for region in regions):
        raise DataError("query calibration: expected annotated photos with labels on which regions are found, got none")
    fitted = fit_curves(regions)
    return replace(fitted, threshold=choose_threshold(regions, fitted))


def fit_curves(regions: Sequence[OfferedRegion]) -> QueryCalibration:
    """The four curves, without a threshold: it is 1."""
    keys = product(KINDS, (True, False))
    return QueryCalibration({key: fit_curve([r for r in regions if (r.kind, r.named) == key]) for key in keys}, 1.0)


def fit_curve(regions: Sequence[OfferedRegion]) -> Curve:
    """The curve from scores to IoU; scores stay as they are where there is no region."""
    return Curve.fitted(_scores(regions), np.array([r.iou for r in regions]), _weights(regions))


def calibrated(regions: Sequence[OfferedRegion], fitted: QueryCalibration) -> np.ndarray:
    """(n,) calibrated scores, 0..1."""
    return np.array([float(fitted.curves[r.kind, r.named](np.array(r.score))) for r in regions])


def choose_threshold(regions: Sequence[OfferedRegion], fitted: QueryCalibration) -> float:
    """The calibrated score at which a region with labels is right as often as not: those above are worth offering."""
    named = [r for r in regions if r.named]
    right = np.array([float(r.iou >= RIGHT) for r in named])
    return round(Curve.fitted(calibrated(named, fitted), right, _weights(named)).inverse(0.5), 2)


def held_out_scores(regions: Sequence[OfferedRegion]) -> np.ndarray:
    """(n,) scores, calibrated by curves that the other half of the photos has taught."""
    number = {id(region): i for i, region in enumerate(regions)}
    scores = np.zeros(len(regions))
    first, second = halves(regions)
    for learned, checked in ((first, second), (second, first)):
        scores[[number[id(region)] for region in checked]] = calibrated(checked, fit_curves(learned))
    return scores


def precision_curve(regions: Sequence[OfferedRegion], scores: np.ndarray) -> list[dict[str, float]]:
    """For each threshold that enough regions reach: percent of them that are right, regions and right ones a photo."""
    weights, right = _weights(regions), np.array([r.iou >= RIGHT for r in regions])
    photos = len({r.photo for r in regions})
    rows = []
    for threshold in np.arange(1, STEPS) / STEPS:
        offered = scores >= threshold
        if np.count_nonzero(offered) >= FEWEST:
            rows.append(
                {
                    "threshold": round(float(threshold), 2),
                    "precision": round(100 * float(right[offered].mean()), 2),
                    "precision_photos_alike": round(
                        100 * float(np.average(right[offered], weights=weights[offered])), 2
                    ),
                    "a_photo": round(float(offered.sum() / photos), 2),
                    "right_a_photo": round(float((offered & right).sum() / photos), 2),
                }
            )
    return rows


def check_calibration(regions: Sequence[OfferedRegion], fitted: QueryCalibration) -> dict[str, Any]:
    """What a calibration by these regions is worth on others; errors and precision in percent."""
    scores = held_out_scores(regions)
    groups = {"named": np.array([r.named for r in regions])}
    groups["unnamed"] = ~groups["named"]
    groups |= {f"named_{kind}": groups["named"] & [r.kind == kind for r in regions] for kind in KINDS}
    named = np.flatnonzero(groups["named"])
    curve = precision_curve([regions[i] for i in named], scores[named])
    return {
        "curves": {
            f"{kind}_{'named' if named else 'unnamed'}": {name: round(value, 4) for name, value in vars(c).items()}
            for (kind, named), c in fitted.curves.items()
        },
        "threshold": fitted.threshold,
        "at_threshold": next((row for row in curve if row["threshold"] >= fitted.threshold), None),
        "reliability": {
            name: _reliability([regions[i] for i in np.flatnonzero(of)], scores[of], fitted.threshold)
            for name, of in groups.items()
            if of.any()
        },
        "precision_curve": curve,
    }


def _reliability(regions: Sequence[OfferedRegion], scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Expected calibration error before and after, over all regions and over those that are offered."""
    ious, weights = np.array([r.iou for r in regions]), _weights(regions)
    figures = {
        "error_before": calibration(_scores(regions).tolist(), ious.tolist(), weights.tolist()).error,
        "error": calibration(scores.tolist(), ious.tolist(), weights.tolist()).error,
    }
    offered = scores >= threshold
    if offered.any():
        of_offered = (values[offered].tolist() for values in (scores, ious, weights))
        figures["error_offered"] = calibration(*of_offered).error
    return {name: round(100 * value, 2) for name, value in figures.items()} | {"regions": len(regions)}


def tables(content: Mapping[str, Any]) -> list[Table]:
    """For the terminal: errors by kind, and precision against threshold."""
    errors = Table("regions of", "before", "calibrated", "offered", "regions", title="reliability error, %")
    for name, row in content["reliability"].items():
        cells = (f"{row[k]:.1f}" if k in row else "" for k in ("error_before", "error", "error_offered"))
        errors.add_row(name.replace("_", " "), *cells, str(row["regions"]))
    curve = Table("threshold", "precision, %", "regions a photo", "right ones", title="with labels")
    for row in content["precision_curve"]:
        if round(100 * row["threshold"]) % 5 == 0 or row["threshold"] == content["threshold"]:
            curve.add_row(*(f"{row[k]:.2f}" for k in ("threshold", "precision", "a_photo", "right_a_photo")))
    return [errors, curve]


def _scores(regions: Sequence[OfferedRegion]) -> np.ndarray:
    return np.array([r.score for r in regions], float)


def _weights(regions: Sequence[OfferedRegion]) -> np.ndarray:
    """(n,), sum 1; see the module's first lines."""
    if not regions:
        return np.zeros(0)
    photos, places = np.unique([r.photo for r in regions], return_inverse=True)
    return np.array(1 / np.bincount(places)[places] / len(photos))
