"""What the gate promotes and refuses, on clicks written by hand, and on models that are what they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from semsam_model.checkpoints.checkpoint import load_model
from semsam_model.config import parse_config, read_model_config
from semsam_model.data.samples import Annotation, Sample
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import ConfigError, DataError
from semsam_model.evaluation.clicks import evaluate_clicks
from semsam_model.finetuning.loop import SCENES
from semsam_model.gate.clicks import GateClick, guard_samples, measure_clicks
from semsam_model.gate.config import GateConfig
from semsam_model.gate.interval import Interval, bootstrap, widened
from semsam_model.gate.photo_agreement import PhotoAgreement
from semsam_model.gate.report import render_report
from semsam_model.gate.verdict import Verdict, compare, judge
from tests.semsam_model.networks import structured

CONFIG = GateConfig(resamples=400, scenes=1, photos=2)


def clicks(
    change: Callable[[int, int], float] = lambda photo, region: 0.0, named: str | None = None
) -> list[GateClick]:
    """Four photos of three masks, IoU 0.5, changed by so much."""
    return [
        GateClick(p, r, "ab"[r % 2], 0.5 + change(p, r), 0.5 + change(p, r), 0.4, 1 + r, named)
        for p in range(4)
        for r in range(3)
    ]


def judged(
    child: list[GateClick], guard: list[GateClick] | None = None, parent: list[GateClick] | None = None
) -> Verdict:
    return judge(parent or clicks(), child, clicks(), guard or clicks(), CONFIG)


def test_a_clear_gain_is_promoted() -> None:
    verdict = judged(clicks(lambda p, r: 0.08 + 0.01 * p))
    assert verdict.promoted
    assert verdict.reasons == ()
    assert verdict.gain.mean == pytest.approx(9.5)
    assert 7 <= verdict.gain.low < 9.5 < verdict.gain.high <= 12


def test_a_model_like_its_parent_is_refused() -> None:
    verdict = judged(clicks())
    assert not verdict.promoted
    assert "no clear gain" in verdict.reasons[0]
    assert (verdict.gain.mean, verdict.gain.low, verdict.gain.high) == (0, 0, 0)


def test_a_gain_that_one_photo_makes_is_refused() -> None:
    verdict = judged(clicks(lambda p, r: 0.4 if p == 0 else -0.02))
    assert verdict.gain.mean == pytest.approx(8.5)
    assert not verdict.promoted


def test_a_gain_below_the_margin_is_refused() -> None:
    assert not judged(clicks(lambda p, r: 0.009)).promoted
    assert judged(clicks(lambda p, r: 0.011)).promoted


def test_a_loss_on_the_guard_set_is_refused_beyond_the_tolerance() -> None:
    gain = clicks(lambda p, r: 0.1)
    assert judged(gain, clicks(lambda p, r: -0.009)).promoted
    refused = judged(gain, clicks(lambda p, r: -0.02))
    assert not refused.promoted
    assert any("guard set" in reason for reason in refused.reasons)


def test_too_few_held_out_photos_are_refused_however_large_the_gain() -> None:
    few = [c for c in clicks(lambda p, r: 0.3) if c.photo < 2]
    verdict = judge([c for c in clicks() if c.photo < 2], few, clicks(), clicks(), CONFIG)
    assert not verdict.promoted
    assert "6 masks on 2 photos" in verdict.reasons[0]


def test_names_that_got_worse_or_are_as_good_as_dealt_out_are_refused() -> None:
    def named(child: Callable[[GateClick], str | None]) -> list[GateClick]:
        return [dataclasses.replace(c, predicted_label=child(c)) for c in clicks(lambda p, r: 0.1)]

    right = [dataclasses.replace(c, predicted_label=c.label) for c in clicks()]
    always = named(lambda c: "a")
    assert judged(named(lambda c: c.label), parent=right).promoted
    assert any("names are worse" in reason for reason in judged(always, parent=right).reasons)
    assert any("chance" in reason for reason in judged(always).reasons)
    assert not any("chance" in reason for reason in judged(named(lambda c: c.label)).reasons)


def test_corrections_that_do_not_follow_their_pictures_are_refused_however_large_the_gain() -> None:
    def found(low: float, asked: bool = True) -> PhotoAgreement:
        return PhotoAgreement(40, 10, 52.0, 50.0, Interval(2.0, low, 5.0), asked, 0.99)

    gain = clicks(lambda p, r: 0.1)
    refused = judge(clicks(), gain, clicks(), clicks(), CONFIG, found(-1.0))
    assert not refused.promoted
    assert "do not follow their photos" in refused.reasons[0]
    assert refused.to_dict()["pictures"]["iou"] == [50, 52]
    for followed in (found(0.5), found(-1.0, asked=False), None):
        assert judge(clicks(), gain, clicks(), clicks(), CONFIG, followed).promoted


def test_what_predicted_iou_alone_chooses_is_told_and_not_judged() -> None:
    child = [dataclasses.replace(c, max=c.max - 0.3) for c in clicks(lambda p, r: 0.1)]
    verdict = judged(child, child)
    assert verdict.promoted
    assert verdict.figures["held_out"]["max"] == verdict.figures["guard"]["max"] == [40, 10]


@pytest.mark.slow
def test_clicks_are_answered_as_the_evaluation_of_the_service_answers_them_closer_look_and_all() -> None:
    model = load_model()[0]
    (scene,) = synthetic_samples(1, seed=21, size=(96, 96))
    smallest = tuple(dataclasses.replace(region, parent=None) for region in scene.regions[-4:])
    samples = [Sample(scene.photo, scene.source, Annotation(96, 96, smallest))]
    measured, evaluated = measure_clicks(model, samples), evaluate_clicks(model, samples).clicks
    assert len(measured) == len(evaluated) == 4
    for ours, theirs in zip(measured, evaluated, strict=True):
        assert (ours.photo, ours.region) == (theirs.sample, theirs.region)
        assert (ours.oracle, ours.first, ours.max) == (theirs.oracle, theirs.first, theirs.max)
    looks_once = copy.copy(model)
    looks_once.config = dataclasses.replace(model.config, zoom=0.0)
    assert [c.oracle for c in measure_clicks(looks_once, samples)] != [c.oracle for c in measured]


def test_figures_are_told_by_level_and_by_label() -> None:
    figures = judged(clicks(lambda p, r: 0.3 if r == 1 else 0.0)).to_dict()
    assert figures["held_out"]["oracle"] == [50, 60]
    assert figures["by_level"]["2"]["oracle"] == [50, 80]
    assert figures["by_label"]["a"]["oracle"] == [50, 50]
    assert figures["by_label"]["b"]["masks"] == 4


def test_the_interval_holds_the_mean_and_shrinks_with_photos() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(5, 5, 10).tolist(), rng.normal(5, 5, 1000).tolist()
    small, large = bootstrap(few, range(10), CONFIG), bootstrap(many, range(1000), CONFIG)
    assert small.low < small.mean < small.high
    assert large.high - large.low < 0.2 * (small.high - small.low)
    # the standard error of a mean: 1.96 * 5 / sqrt(1000) on each side
    assert large.high - large.low == pytest.approx(2 * 1.96 * 5 / 1000**0.5, rel=0.2)


@pytest.mark.parametrize("photos", [3, 5, 12])
def test_without_a_true_gain_hardly_any_child_seems_better_however_few_the_photos(photos: int) -> None:
    rng = np.random.default_rng(photos)
    config, of_photo = GateConfig(resamples=200), np.repeat(np.arange(photos), 4)
    promoted = 0
    for _ in range(1000):
        gains = (rng.normal(0, 5, photos)[of_photo] + rng.normal(0, 8, len(of_photo))).tolist()
        interval = widened(bootstrap(gains, of_photo.tolist(), config), gains, of_photo.tolist(), config)
        promoted += interval.mean >= config.margin and interval.low > 0
    assert promoted <= 45  # 25 are meant by 95 %, and three standard deviations more happen


def test_a_gain_of_three_photos_counts_when_it_is_the_same_on_all_of_them() -> None:
    photos = [0, 0, 1, 1, 2, 2]
    for gains, clear in (([8.0, 9, 7, 9, 9, 8], True), ([1.0, 2, 20, 22, 9, 8], False)):
        config = GateConfig()
        interval = widened(bootstrap(gains, photos, config), gains, photos, config)
        assert (interval.low > 0) is clear
    one = widened(Interval(5, 4, 6), [5.0, 5.0], [0, 0], GateConfig())
    assert one.low < 0 < one.high and np.isfinite([one.low, one.high]).all()


def test_clicks_of_different_masks_are_not_compared() -> None:
    with pytest.raises(DataError, match="same clicks"):
        judge(clicks(), clicks()[1:], clicks(), clicks(), CONFIG)


@pytest.mark.parametrize("values", [{"margn": 1.0}, {"confidence": 1.0}, {"tolerance": -1.0}])
def test_wrong_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="gate"):
        parse_config(GateConfig, values, "gate")


@pytest.mark.slow
def test_a_network_measured_against_itself_is_refused_and_against_noise_too_with_a_report() -> None:
    parent = structured(read_model_config("tiny"))
    held_out = list(synthetic_samples(2, seed=21, size=(96, 96)))
    same = compare(parent, parent, held_out, CONFIG)
    assert (same.verdict.gain.mean, same.verdict.guard_gain, same.verdict.promoted) == (0, 0, False)
    assert len(same.child) == len(measure_clicks(parent, held_out))
    noise = structured(read_model_config("tiny"))
    with torch.no_grad():
        noise.pixel_decoder.mask_features.weight.zero_()
    page = render_report(compare(parent, noise, held_out, CONFIG), parent, noise, {"model": "tiny <1>"})
    assert "Refused" in page
    assert "tiny &lt;1&gt;" in page
    assert page.count("data:image/webp;base64,") >= 8
    HTMLParser().feed(page)


def test_the_guard_set_never_changes() -> None:
    first, again = guard_samples(16), guard_samples(16)
    assert np.array_equal(first[3].image(), again[3].image())
    assert first[0].regions
    assert not any(sample.photo == scene.photo for sample in first for scene in synthetic_samples(64, seed=SCENES))
