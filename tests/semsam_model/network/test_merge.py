"""What of a corrected mask is taken over."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semsam_model.network.merge import merge, obeying
from semsam_model.types import Click

PLACES = st.floats(0, 63.99)
CLICKS = st.lists(st.builds(Click, PLACES, PLACES, st.booleans()), min_size=1, max_size=6)


def random_logits(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)


def test_of_two_changes_only_the_one_at_the_newest_click_is_taken_over() -> None:
    before = np.full((64, 64), -2, np.float32)
    after = before.copy()
    after[5:15, 5:15] = after[40:60, 40:60] = 2
    merged = merge(before, after, [Click(50, 50)])
    assert (merged[40:60, 40:60] == 2).all()
    merged[36:64, 36:64] = -2
    assert np.array_equal(merged, before)


def test_a_change_that_reaches_far_from_the_click_is_taken_over_whole() -> None:
    before, after = np.full((64, 64), -2, np.float32), np.full((64, 64), -3, np.float32)
    after[:, 30:34] = 1
    assert (merge(before, after, [Click(32, 2)])[:, 30:34] == 1).all()


@given(st.integers(0, 99), CLICKS)
def test_far_from_the_newest_click_and_its_change_nothing_changes_by_a_bit(seed: int, clicks: list[Click]) -> None:
    before = random_logits(seed)
    before[0, 0] = np.float32(0.1) + np.float32(1e-8)
    merged = merge(before, before + np.float32(0.001) * (before > 0), clicks)  # no pixel changes sides
    rows, columns = (axis + 0.5 for axis in np.ogrid[:64, :64])
    far = np.hypot(rows - clicks[-1].y, columns - clicks[-1].x) > 10
    for click in clicks:
        far &= np.maximum(abs(rows - click.y), abs(columns - click.x)) > 3
    assert np.array_equal(merged[far], before[far])


@given(st.integers(0, 99), CLICKS)
def test_the_merged_mask_obeys_the_newest_click_and_all_that_nothing_newer_contradicts(
    seed: int, clicks: list[Click]
) -> None:
    merged = merge(random_logits(seed), random_logits(seed + 1), clicks)
    for i, click in enumerate(clicks):
        newer = clicks[i + 1 :]
        if all(max(abs(c.x - click.x), abs(c.y - click.y)) > 3 for c in newer if c.positive != click.positive):
            assert (merged[int(click.y), int(click.x)] > 0) == click.positive


@given(st.integers(0, 99), CLICKS)
def test_obeying_twice_changes_nothing_more_where_clicks_agree(seed: int, clicks: list[Click]) -> None:
    same = [Click(c.x, c.y) for c in clicks]
    once = obeying(random_logits(seed), same)
    assert np.array_equal(obeying(once, same), once)
