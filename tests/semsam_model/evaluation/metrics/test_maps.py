"""Panoptic quality and mean IoU against hand-checkable maps and the implementations of torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.evaluation.metrics.maps import UNLABELLED, MeanIou, PanopticQuality


def quality(
    predicted: list[list[int]],
    of_predicted: dict[int, int],
    wanted: list[list[int]],
    of: dict[int, int],
    crowds: tuple[int, ...] = (),
) -> dict[str, float | int]:
    counted = PanopticQuality()
    counted.add(np.array(predicted), of_predicted, np.array(wanted), of, crowds)
    return counted.percent()


def test_the_same_map_is_perfect_whatever_the_ids_are_called() -> None:
    got = quality([[7, 7, 9], [0, 9, 9]], {7: 0, 9: 1}, [[1, 1, 2], [0, 2, 2]], {1: 0, 2: 1})
    assert got == {"pq": 100, "sq": 100, "rq": 100, "labels": 2}


def test_a_match_needs_more_than_half_and_the_right_label() -> None:
    half = quality([[1, 1, 1, 0]], {1: 0}, [[0, 1, 1, 1]], {1: 0})  # void under the first pixel: IoU 2/3
    assert half["sq"] == pytest.approx(66.67) and half["rq"] == 100
    other = quality([[1, 1, 2, 2]], {1: 1, 2: 0}, [[1, 1, 2, 2]], {1: 0, 2: 0})
    assert other["pq"] == pytest.approx(100 * (2 / 3) / 2, abs=0.01)  # label 0: 1 match, 1 missed; label 1: 1 too many


def test_a_segment_that_lies_in_void_is_not_wrong() -> None:
    assert quality([[1, 1, 2, 2]], {1: 0, 2: 0}, [[1, 1, 0, 0]], {1: 0})["pq"] == 100
    assert quality([[1, 1, 2, 2]], {1: 0, 2: 0}, [[1, 1, 3, 3]], {1: 0, 3: 1})["pq"] == pytest.approx(
        100 * (2 / 3) / 2, abs=0.01
    )


def test_a_crowd_is_never_missed_or_met_and_excuses_what_lies_mostly_in_it_under_its_own_label() -> None:
    # Segment 1 is matched; 9 is a crowd of label 0.
    wanted, of = [[1, 1, 9, 9, 0, 2]], {1: 0, 9: 0, 2: 1}
    assert quality([[1, 1, 0, 0, 0, 2]], {1: 0, 2: 1}, wanted, of, (9,))["pq"] == 100
    assert quality([[1, 1, 3, 3, 0, 2]], {1: 0, 3: 0, 2: 1}, wanted, of, (9,))["pq"] == 100
    # One pixel in the crowd and one in void are together more than half of the segment, one of them is not.
    assert quality([[1, 1, 0, 3, 3, 3]], {1: 0, 3: 0}, wanted, of, (9,))["rq"] == 50  # label 1 missed, 0 right
    assert quality([[1, 0, 0, 3, 0, 3]], {1: 0, 3: 0}, wanted, of, (9,))["rq"] == 0
    # Under another label what lies in the crowd is wrong, and a crowd's pixels stay in the union of a match.
    assert quality([[1, 1, 3, 3, 0, 2]], {1: 0, 3: 1, 2: 1}, wanted, of, (9,))["rq"] == pytest.approx(
        100 * (1 + 2 / 3) / 2, abs=0.01
    )
    assert quality([[1, 1, 1, 0, 0, 2]], {1: 0, 2: 1}, wanted, of, (9,))["sq"] == pytest.approx(
        100 * (2 / 3 + 1) / 2, abs=0.01
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_panoptic_quality_equals_torchmetrics(seed: int) -> None:
    from torchmetrics.detection import PanopticQuality as Reference

    rng = np.random.default_rng(seed)
    things, stuff, size = (0, 1), (2, 3), (12, 14)

    def made() -> tuple[np.ndarray, dict[int, int]]:
        coarse = rng.integers(1, 7, (3, 4))
        ids = np.kron(coarse, np.ones((4, 4), int))[: size[0], : size[1]]
        flips = rng.random(size) < 0.1
        ids = np.where(flips, rng.integers(1, 7, size), ids)
        label_of = {i: (0, 0, 1, 1, 2, 3)[i - 1] for i in range(1, 7)}
        return ids, {i: label_of[i] for i in np.unique(ids).tolist()}

    reference = Reference(things=set(things), stuffs=set(stuff), allow_unknown_preds_category=True)
    ours = PanopticQuality()
    for _ in range(2):
        (predicted, of_predicted), (wanted, of_wanted) = made(), made()
        ours.add(predicted, of_predicted, wanted, of_wanted)
        pairs = []
        for ids, of in ((predicted, of_predicted), (wanted, of_wanted)):
            labels = np.vectorize(of.get)(ids)
            instance = np.where(np.isin(labels, things), ids, 0)
            pairs.append(torch.from_numpy(np.stack((labels, instance), -1))[None])
        reference.update(*pairs)
    seen = [label for label, count in ours.counts.items() if count.seen]
    assert len(seen) == 4
    assert ours.percent()["pq"] == pytest.approx(100 * float(reference.compute()), abs=0.01)


def test_mean_iou_by_hand() -> None:
    count = MeanIou(3)
    count.add(np.array([[0, 0, 1, UNLABELLED]]), np.array([[0, 1, 1, 1]]))
    assert count.by_label()[:2] == pytest.approx([1 / 2, 1 / 3])
    assert np.isnan(count.by_label()[2])
    assert count.percent() == {"miou": pytest.approx(41.67)}
    apart = count.percent(seen=[0])
    assert apart["harmonic"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (5 / 6), abs=0.01)


def test_what_there_is_nothing_of_has_no_figure() -> None:
    count = MeanIou(2)
    assert count.percent() == {"miou": None}
    count.add(np.array([[0, 1]]), np.array([[0, 0]]))
    assert count.percent(seen=[0, 1]) == {"miou": 50, "seen": 50, "unseen": None, "harmonic": None}
    assert count.percent(seen=[]) == {"miou": 50, "seen": None, "unseen": 50, "harmonic": None}
    assert PanopticQuality().percent()["pq"] is None


@settings(max_examples=30, deadline=None)
@given(
    wanted=hnp.arrays(np.int64, (6, 7), elements=st.integers(-1, 3)),
    predicted=hnp.arrays(np.int64, (6, 7), elements=st.integers(0, 3)),
)
def test_mean_iou_equals_torchmetrics_and_unlabelled_pixels_do_not_count(
    wanted: np.ndarray, predicted: np.ndarray
) -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    count = MeanIou(4)
    count.add(predicted, wanted)
    reference = MulticlassJaccardIndex(4, average="none", ignore_index=UNLABELLED)
    iou = reference(torch.from_numpy(predicted), torch.from_numpy(wanted)).numpy()
    assert np.nan_to_num(count.by_label()) == pytest.approx(iou, abs=1e-6)
    noise = np.where(wanted == UNLABELLED, (predicted + 1) % 4, predicted)
    again = MeanIou(4)
    again.add(noise, wanted)
    assert (again.confusion == count.confusion).all()
