"""Greedy non-maximum suppression."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.masks.suppression import suppress

MATRIX = hnp.arrays(bool, st.integers(0, 9).map(lambda n: (n, n)))


@given(MATRIX, st.randoms(use_true_random=False))
def test_none_kept_repeats_another_and_each_left_out_repeats_a_better_one(matrix: np.ndarray, random: object) -> None:
    same = matrix | matrix.T
    order = list(range(len(same)))
    random.shuffle(order)  # type: ignore[attr-defined]
    kept = suppress(order, len(same), same.__getitem__)
    for place, at in enumerate(order):
        better = [other for other in order[:place] if other in kept]
        assert (at in kept) != same[at, better].any()


@given(MATRIX, st.integers(0, 9))
def test_no_more_than_asked_for_are_kept_and_they_are_the_first(matrix: np.ndarray, most: int) -> None:
    places = range(len(matrix))
    every = suppress(places, len(matrix), matrix.__getitem__)
    assert suppress(places, len(matrix), matrix.__getitem__, most) == every[:most]


def test_what_is_not_in_the_order_is_neither_kept_nor_in_the_way() -> None:
    same = np.ones((3, 3), bool)
    assert suppress([2, 1], 3, same.__getitem__) == [2]
