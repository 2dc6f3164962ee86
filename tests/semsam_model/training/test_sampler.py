from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from semsam_model.training.sampler import PhotoSampler, permuted


@given(st.integers(1, 300), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_a_shuffle_is_a_permutation(count: int, keys: list[int]) -> None:
    assert sorted(permuted(position, count, keys) for position in range(count)) == list(range(count))


def test_without_weights_every_photo_comes_once_a_round_in_another_order_each_time() -> None:
    sampler = PhotoSampler([5, 1, 30], [5, 1, 30], seed=0)
    rounds = [[sampler(place) for place in range(36 * n, 36 * n + 36)] for n in range(3)]
    assert all(sorted(each) == list(range(36)) for each in rounds)
    assert len({tuple(each) for each in [*rounds, list(range(36))]}) == 4
    other = PhotoSampler([5, 1, 30], [5, 1, 30], seed=1)
    assert [sampler(place) for place in range(36)] == rounds[0] != [other(place) for place in range(36)]


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 5)), min_size=1, max_size=5), st.integers(0, 99))
def test_shares_hold_in_every_round_and_photos_of_a_source_take_turns(
    sources: list[tuple[int, float]], seed: int
) -> None:
    counts, shares = [count for count, _ in sources], [share for _, share in sources]
    if sum(shares) < 0.01:
        return
    sampler, total = PhotoSampler(counts, shares, seed), sum(counts)
    shown = Counter(sampler(place) for place in range(total, 2 * total))
    start = 0
    for count, share in sources:
        own = [shown[index] for index in range(start, start + count)]
        wanted = total * share / sum(shares)
        assert abs(sum(own) - wanted) < 2
        assert max(own) - min(own) <= 3
        start += count


def test_a_billion_photos_need_no_more_memory_than_ten() -> None:
    sampler = PhotoSampler([10**9, 10], [3, 1], seed=0)
    chosen = [sampler(place) for place in range(400)]
    assert 0.65 < sum(index < 10**9 for index in chosen) / 400 < 0.85
    large = sorted(index for index in chosen if index < 10**9)
    assert len(set(large)) == len(large) and large[0] < 10**8 and large[-1] > 9 * 10**8
