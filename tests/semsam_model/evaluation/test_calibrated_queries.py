"""Scores of object queries become what they say: on made scores by the hundred, and on one painted photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam_model.errors import DataError
from semsam_model.evaluation.calibrated_queries import (
    calibrated,
    check_calibration,
    choose_threshold,
    fit_calibration,
    fit_curve,
    fit_curves,
    halves,
    held_out_scores,
    tables,
)
from semsam_model.evaluation.offered_regions import OfferedRegion, offered_regions
from semsam_model.inference.preannotate import UNCALIBRATED_LEAST, RegionOptions, least_score, queries_to_regions
from semsam_model.masks.geometry import iou
from semsam_model.network.model import SemanticSAM
from semsam_model.network.query_calibration import Curve, QueryCalibration
from semsam_model.types import KINDS, Kind, LabelSet
from tests.semsam_model.evaluation.test_photos import MASKS, embed, model, predicts, sample
from tests.semsam_model.inference.queries import embed as embed_invented
from tests.semsam_model.inference.queries import invented

__all__ = ["model"]  # a fixture
KEYS: list[tuple[Kind, bool]] = [(kind, named) for kind in KINDS for named in (True, False)]

PLAIN = Curve(1, 1, 0)

scores = st.floats(0, 1)
regions_of = st.lists(
    st.builds(
        OfferedRegion, st.integers(0, 5), st.sampled_from("ab"), st.sampled_from(KINDS), st.booleans(), scores, scores
    ),
    max_size=40,
)


def made(curve: Curve, count: int = 40_000, seed: int = 0) -> list[OfferedRegion]:
    """Regions that are exactly right with the probability that a curve gives, and else not at all."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.02, 0.98, count)
    right = rng.random(count) < curve(raw)
    rows = zip(raw.tolist(), right.tolist(), KEYS * count, strict=False)
    return [OfferedRegion(i % 21, "made", kind, named, s, float(r)) for i, (s, r, (kind, named)) in enumerate(rows)]


@given(regions_of, st.lists(scores, min_size=2, max_size=20))
def test_every_curve_keeps_the_order_of_scores_and_stays_between_0_and_1(
    regions: list[OfferedRegion], asked: list[float]
) -> None:
    curve = fit_curve(regions)
    values = curve(np.sort(asked))
    assert (np.diff(values) >= 0).all() and (values >= 0).all() and (values <= 1).all()
    assert curve.low > 0 and curve.high > 0


@given(st.floats(0.05, 20), st.floats(0.05, 20), st.floats(-5, 5), st.floats(0.01, 0.99))
def test_the_inverse_of_a_curve_undoes_it(low: float, high: float, shift: float, score: float) -> None:
    curve = Curve(low, high, shift)
    value = float(curve(np.array(score)))
    if 0.001 < value < 0.999:
        assert curve.inverse(value) == pytest.approx(score, abs=1e-6)
        assert curve(np.array(curve.inverse(value))) >= value
    assert curve.inverse(0) == 0 and curve.inverse(1) == 1


@pytest.mark.parametrize("wrong", [PLAIN, Curve(0.5, 0.7, -1.0), Curve(2.5, 0.5, 3)])
def test_scores_that_are_wrong_by_a_curve_become_right(wrong: Curve) -> None:
    regions = made(wrong)
    found = check_calibration(regions, fit_calibration(regions))["reliability"]
    for group in ("named", "unnamed", "named_object", "named_part"):
        assert found[group]["error"] < 2.0  # chance alone is about 1
        if wrong != PLAIN:
            assert found[group]["error_before"] > 5


def test_a_curve_without_regions_leaves_scores_as_they_are() -> None:
    assert fit_curve([]) == PLAIN


def test_the_threshold_is_where_a_region_is_as_often_right_as_wrong() -> None:
    fitted = QueryCalibration(dict.fromkeys(KEYS, PLAIN), 1.0)
    assert choose_threshold(made(PLAIN), fitted) == pytest.approx(0.5, abs=0.02)
    assert choose_threshold(made(Curve(1, 1, 1)), fitted) == pytest.approx(1 / (1 + np.e), abs=0.02)
    regions = made(Curve(1, 1, -1), count=4000)
    for threshold in (choose_threshold(regions, fitted), fit_calibration(regions).threshold):
        assert 0.5 < threshold < 0.8
    assert choose_threshold([replace(r, iou=0.4) for r in regions], fitted) > 0.95  # nothing is right
    assert choose_threshold([replace(r, iou=0.5) for r in regions], fitted) < 0.05  # everything is


def test_each_half_of_the_photos_of_each_source_is_judged_by_the_other() -> None:
    regions = [
        OfferedRegion(photo, source, "object", True, 0.5, 0.5)
        for source, photos in (("a", range(4)), ("b", range(4, 7)))
        for photo in photos
        for _ in range(2)
    ]
    learned, checked = halves(regions)
    assert {r.photo for r in learned} == {0, 2, 4, 6} and {r.photo for r in checked} == {1, 3, 5}
    assert len(learned) + len(checked) == len(regions)
    found = dict(zip(map(id, regions), held_out_scores(regions), strict=True))
    assert [found[id(r)] for r in checked] == pytest.approx(calibrated(checked, fit_curves(learned)))
    assert [found[id(r)] for r in learned] == pytest.approx(calibrated(learned, fit_curves(checked)))


def test_a_calibration_that_has_no_named_region_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="photos with labels"):
        fit_calibration([OfferedRegion(0, "made", "object", False, 0.5, 0.5)])


@given(st.lists(st.tuples(*(st.floats(0.0625, 16, width=32),) * 2, st.floats(-8, 8, width=32)), min_size=4, max_size=4))
def test_a_calibration_comes_back_from_its_arrays(values: list[tuple[float, float, float]]) -> None:
    curves = {key: Curve(*value) for key, value in zip(KEYS, values, strict=True)}
    calibration = QueryCalibration(curves, 0.5)
    arrays = calibration.to_arrays()
    assert QueryCalibration.from_arrays(arrays) == calibration
    with pytest.raises(ValueError, match=r"part\.named is missing"):
        QueryCalibration.from_arrays({name: value for name, value in arrays.items() if name != "part.named"})
    with pytest.raises(ValueError, match="age is unknown"):
        QueryCalibration.from_arrays(arrays | {"age": np.zeros(())})
    with pytest.raises(ValueError, match="slopes > 0"):
        QueryCalibration.from_arrays(arrays | {"object.named": np.array((1.0, -1.0, 0.0))})


def test_a_report_of_few_regions_can_be_printed() -> None:
    regions = made(PLAIN, 40)
    content = check_calibration(regions, fit_calibration(regions))
    errors, _ = tables(content)
    assert errors.row_count == len(content["reliability"])
    assert calibrated(regions, fit_calibration(regions)).shape == (40,)


# ---- regions of a photo


def worth(found: Sequence[OfferedRegion], kind: Kind, named: bool) -> list[float]:
    return sorted(r.iou for r in found if (r.kind, r.named) == (kind, named))


def test_a_region_is_worth_its_iou_with_a_mask_of_its_kind_and_label(model: SemanticSAM) -> None:
    whole = sample()
    right = offered_regions(model, [whole], embed, predict=predicts("house", "window", "door"))
    assert worth(right, "object", True) == pytest.approx([1], abs=0.01)
    assert worth(right, "part", True) == pytest.approx([1, 1], abs=0.01)
    assert {r.source for r in right} == {"made"} and all(0 < r.score <= 1 for r in right)
    called = offered_regions(model, [whole], embed, predict=predicts("window", "door", called={"window": "door"}))
    assert worth(called, "part", True) == pytest.approx([0, 1], abs=0.01)
    assert worth(called, "part", False) == pytest.approx([1, 1], abs=0.01)  # without labels, it is right all the same
    nowhere = offered_regions(model, [whole], embed, predict=predicts("pane", called={"pane": "window"}))
    assert worth(nowhere, "part", True) == [0]


def test_where_nothing_is_annotated_a_region_counts_as_wrong_only_on_photos_annotated_in_full(
    model: SemanticSAM,
) -> None:
    in_part = sample(partial=True)
    in_part = replace(in_part, annotated=replace(in_part.annotation, regions=in_part.regions[2:3]))  # the window
    found = predicts("window", "pane", called={"pane": "window"})
    assert worth(offered_regions(model, [in_part], embed, predict=found), "part", True) == pytest.approx([1], abs=0.01)
    in_full = replace(in_part, annotated=replace(in_part.annotation, partial=False))
    assert worth(offered_regions(model, [in_full], embed, predict=found), "part", True) == pytest.approx(
        [0, 1], abs=0.01
    )
    only_parts = offered_regions(model, [in_full], embed, predict=predicts("house"))
    assert only_parts == []  # the source says nothing about objects
    assert iou(in_part.mask(0), MASKS["window"]) == 1


# ---- what is offered


def test_calibrated_regions_have_calibrated_scores_and_names_and_are_cut_at_the_threshold() -> None:
    queries, frame = invented()
    labels = LabelSet(("car", "wheel"), ("object", "part"), embed_invented(["car", "wheel"]))
    plain = queries_to_regions(queries, frame, labels, RegionOptions(least=0.3))
    assert [r.candidate.label for r in plain] == ["car", "wheel", "wheel"]
    curves = {key: Curve(1.0, 1.0, -1.0 if key[0] == "object" else -3.0) for key in KEYS}
    calibration = QueryCalibration(curves, 0.4)
    every = queries_to_regions(queries, frame, labels, RegionOptions(least=0.01), calibration)
    assert len(every) == 3
    for before, after in zip(plain, every, strict=True):
        curve = curves[before.kind, True]
        assert after.candidate.score == pytest.approx(float(curve(np.array(before.candidate.score))))
        assert after.candidate.names[0] == (before.candidate.label, pytest.approx(after.candidate.score))
        assert after.candidate.bbox == before.candidate.bbox
    (car,) = queries_to_regions(queries, frame, labels, calibration=calibration)  # the wheels are below 0.4 now
    assert car.candidate.label == "car" and car.candidate.score >= 0.4


def test_the_least_score_is_the_one_asked_for_or_that_of_the_weights() -> None:
    calibration = QueryCalibration(dict.fromkeys(KEYS, PLAIN), 0.37)
    assert least_score(calibration, RegionOptions()) == 0.37
    assert least_score(calibration, RegionOptions(least=0.1)) == 0.1
    assert least_score(None, RegionOptions()) == UNCALIBRATED_LEAST
