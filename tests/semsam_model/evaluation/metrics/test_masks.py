"""Scores of sets of masks, on masks that can be checked by hand, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.evaluation.metrics.average_precision import STATS, AnnotatedMask, EvaluatedLabels, MaskAp
from semsam_model.evaluation.metrics.masks import InstanceSets, TextIou, best_dice, boundary_f, symmetric_best_dice

MASKS = hnp.arrays(bool, (8, 9))


def square(left: int, right: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[10:30, left:right] = True
    return mask


def test_giou_is_the_mean_of_questions_and_ciou_counts_pixels() -> None:
    scores = TextIou()
    scores.add(square(0, 20), square(0, 20))
    scores.add(square(0, 2), square(0, 4))
    assert scores.percent() == {"giou": 75.0, "ciou": pytest.approx(100 * 440 / 480, abs=0.01), "n": 2}
    nothing = TextIou()
    assert nothing.percent() == {"giou": None, "ciou": None, "n": 0}
    nothing.add(np.zeros((4, 4), bool), np.zeros((4, 4), bool))
    assert nothing.percent()["giou"] == 100


@settings(max_examples=40, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=4), st.lists(MASKS, min_size=1, max_size=4))
def test_symmetric_best_dice_is_symmetric_and_one_only_for_the_same_set(
    one: list[np.ndarray], other: list[np.ndarray]
) -> None:
    score = symmetric_best_dice(one, other)
    assert score == symmetric_best_dice(other, one)
    assert 0 <= score <= 1 + 1e-6
    full = [mask for mask in one if mask.any()]
    if full:
        assert symmetric_best_dice(full, full[::-1]) == pytest.approx(1)


def test_best_dice_by_hand() -> None:
    assert best_dice([square(0, 20)], [square(10, 30)]) == pytest.approx(0.5)
    assert best_dice([], [square(0, 20)]) == 0
    assert best_dice([], []) == 1


def test_a_border_within_the_tolerance_is_met_and_one_beyond_it_is_not() -> None:
    assert boundary_f(square(5, 25), square(5, 25)) == 1
    assert boundary_f(square(5, 25), square(6, 26)) == 1  # one pixel, the least tolerance
    assert boundary_f(square(5, 25), square(12, 32)) < 0.8
    assert boundary_f(square(5, 25), square(12, 32), tolerance=0.2) == 1
    assert boundary_f(square(5, 25), np.zeros((40, 40), bool)) == 0


def test_touching_instances_have_a_border_between_them() -> None:
    two, one = [square(0, 10), square(10, 20)], [square(0, 20)]
    sets = InstanceSets()
    sets.add(one, two)
    figures = sets.figures()
    assert figures["dic"] == -1 and figures["abs_dic"] == 1
    assert figures["boundary_f"] < 100
    assert figures["sbd"] == pytest.approx(66.67)


def test_average_precision_of_hand_made_masks() -> None:
    ap = MaskAp(("cat", "dog"))
    truth = [AnnotatedMask(square(0, 20), 0), AnnotatedMask(square(20, 40), 1)]
    ap.add((40, 40), truth, [(square(0, 20), 0, 0.9), (square(20, 40), 1, 0.8)])
    perfect = ap.percent()
    assert perfect["ap"] == perfect["ap50"] == perfect["ar100"] == 100
    assert perfect["ap_large"] is None and perfect["n"] == 2
    ap.add(
        (40, 40), [AnnotatedMask(square(0, 20), 0)], [(square(0, 20), 1, 0.95)]
    )  # the right mask under the wrong name
    worse = ap.percent()
    assert worse["ap50"] == pytest.approx(50, abs=1)
    silent = MaskAp(("cat",))
    silent.add((40, 40), [AnnotatedMask(square(0, 20), 0)], [])
    assert silent.percent() == {**dict.fromkeys(STATS, 0.0), "ap_medium": None, "ap_large": None, "n": 1}
    assert MaskAp(("cat",)).percent()["ap"] is None


def test_what_lies_in_a_crowd_is_not_wrong_and_what_is_found_on_a_bare_photo_is() -> None:
    found = [(square(0, 10), 0, 0.9), (square(22, 30), 0, 0.95)]
    plain, crowded = (
        [AnnotatedMask(square(0, 10), 0)],
        [AnnotatedMask(square(0, 10), 0), AnnotatedMask(square(20, 40), 0, crowd=True)],
    )
    figures = []
    for truth in (plain, crowded):
        ap = MaskAp(("sheep",))
        ap.add((40, 40), truth, found)
        figures.append(ap.percent())
    assert figures[0]["ap50"] == pytest.approx(50, abs=0.1) and figures[1]["ap50"] == 100
    assert figures[1]["n"] == 1
    ap.add((40, 40), [], [(square(0, 10), 0, 0.99)])
    assert ap.percent()["ap50"] == pytest.approx(50, abs=0.1)


def test_on_a_photo_annotated_for_some_labels_alone_only_those_count() -> None:
    cat, dog = 0, 1
    left, right = square(0, 10), square(20, 30)

    def ap50(known: set[int], incomplete: set[int]) -> object:
        ap = MaskAp(("cat", "dog"))
        found = [(left, cat, 0.8), (right, cat, 0.9), (right, dog, 0.9)]
        ap.add((40, 40), [AnnotatedMask(left, cat)], found, EvaluatedLabels(frozenset(known), frozenset(incomplete)))
        ap.add((40, 40), [AnnotatedMask(left, dog)], [(left, dog, 0.8)])
        figures = ap.percent()
        assert figures["n"] == 2 and figures["ar300"] == 100 and "ar100" not in figures
        return figures["ap50"]

    assert ap50({cat, dog}, set()) == pytest.approx(50, abs=0.1)  # a wrong answer before each right one
    assert ap50({cat}, set()) == pytest.approx(75, abs=0.1)  # nobody looked for dogs on the first photo
    assert ap50({cat}, {cat}) == 100  # nor annotated every cat


def test_small_and_large_are_told_by_the_annotated_area() -> None:
    ap = MaskAp(("cat",))
    ap.add((40, 40), [AnnotatedMask(square(0, 20), 0, area=32.0**2 + 1)], [(square(0, 20), 0, 0.9)])
    assert ap.percent()["ap_small"] is None and ap.percent()["ap_medium"] == 100
