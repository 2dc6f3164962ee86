"""Simulated clicks on masks drawn by hand or by hypothesis."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semsam_model.masks.clicker import innermost, next_click
from semsam_model.types import Click
from tests.semsam_model.masks.shapes import rectangle

MASK = hnp.arrays(bool, (9, 12))


def test_the_first_click_is_the_pixel_farthest_from_the_border_and_the_photos_edge_is_one() -> None:
    assert innermost(rectangle(2, 4, 9, 11)) == Click(7.5, 5.5)
    assert innermost(rectangle(0, 0, 5, 30)).y == 2.5


def test_the_deeper_error_is_clicked_with_its_sign() -> None:
    wanted, answer = rectangle(0, 0, 10, 10), rectangle(0, 6, 10, 20)  # 6 columns missing, 10 too much
    assert next_click(wanted, answer, []) in [Click(14.5, y, positive=False) for y in (4.5, 5.5)]
    missing = next_click(answer, wanted, [])
    assert missing is not None and missing.positive


@settings(max_examples=60, deadline=None)
@given(MASK, MASK, st.integers(1, 6))
def test_corrections_lie_in_the_error_and_never_on_a_clicked_pixel(
    wanted: np.ndarray, answer: np.ndarray, rounds: int
) -> None:
    clicks: list[Click] = []
    for _ in range(rounds):
        click = next_click(wanted, answer, clicks)
        if click is None:
            assert np.count_nonzero(wanted ^ answer) <= len(clicks)
            return
        at = int(click.y), int(click.x)
        assert wanted[at] == click.positive and answer[at] != click.positive
        assert (click.x, click.y) not in {(c.x, c.y) for c in clicks}
        clicks.append(click)
