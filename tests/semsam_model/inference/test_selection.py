"""Which proposals become candidates and in what order: on small masks drawn by hand or by hypothesis."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.inference.candidates import CandidateOptions, PromptCells, Proposal, box_fit, intersections
from semsam_model.inference.selection import SHARPNESS, agreeing, distinct, order, select
from tests.semsam_model.inference.test_candidates import LOGITS, proposal, view
from tests.semsam_model.masks.shapes import rectangle

CORNERS = st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(2, 14), st.integers(2, 14))
SCORED = st.lists(st.tuples(CORNERS, st.floats(0, 1)), min_size=1, max_size=9)
OPTIONS = CandidateOptions()


def ordered(proposals: Sequence[Proposal], prompt: PromptCells) -> list[Proposal]:
    return [proposals[at] for at in order([view(proposals, prompt)])]


def drawn(scored: list[tuple[tuple[int, int, int, int], float]]) -> tuple[list[Proposal], np.ndarray, np.ndarray]:
    """Rectangles, the IoU of each with each, and their scores."""
    proposals = [proposal(rectangle(y, x, y + h, x + w)) for (y, x, h, w), _ in scored]
    both = intersections([view(proposals)])
    areas = np.diagonal(both)
    return proposals, both / (areas[:, None] + areas - both), np.array([score for _, score in scored])


@settings(max_examples=40, deadline=None)
@given(LOGITS, st.integers(0, 2**31), st.booleans())
def test_chosen_masks_are_never_near_duplicates(logits: np.ndarray, seed: int, scored: bool) -> None:
    rng = np.random.default_rng(seed)
    noisy = [logits + rng.normal(0, s, logits.shape).astype(np.float32) for s in (0, 0, 0.1, 1, 3, 9)]
    proposals = [Proposal(m, i, 1, 1.0, 1.0) for i, m in enumerate(noisy)]
    crops = [view(proposals)]
    chosen = select(crops, intersections(crops), OPTIONS, rng.random(len(noisy)) if scored else None)
    kept = [proposals[at] for at in chosen]
    for i, a in enumerate(kept):
        for b in kept[:i]:
            iou = np.count_nonzero(a.cells & b.cells) / np.count_nonzero(a.cells | b.cells)
            assert iou <= OPTIONS.same_iou
    assert bool(kept) == any((m > 0).any() for m in noisy)


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_the_best_is_first_and_each_further_one_adds_most_to_the_best_that_is_expected(
    scored: list[tuple[tuple[int, int, int, int], float]],
) -> None:
    proposals, iou, scores = drawn(scored)
    crops = [view(proposals)]
    chosen = select(crops, intersections(crops), OPTIONS, scores)
    assert scores[chosen[0]] == scores.max()

    def expected(shown: list[int]) -> float:
        return float(scores**SHARPNESS @ iou[:, shown].max(1))

    for n in range(1, len(chosen)):
        others = [i for i in range(len(scores)) if iou[i, chosen[:n]].max() <= OPTIONS.same_iou]
        best = max(expected([*chosen[:n], i]) for i in others)
        assert abs(expected(chosen[: n + 1]) - best) < 1e-5


@settings(max_examples=30, deadline=None)
@given(SCORED)
def test_the_first_does_not_depend_on_the_order_in_which_proposals_come(
    scored: list[tuple[tuple[int, int, int, int], float]],
) -> None:
    unlike = [(box, 0.5 * score + 0.05 * i) for i, (box, score) in enumerate(scored)]
    first = []
    for turned in (unlike, unlike[::-1]):
        proposals, _, scores = drawn(turned)
        crops = [view(proposals)]
        first.append(turned[select(crops, intersections(crops), OPTIONS, scores)[0]][1])
    assert first[0] == first[1]


def test_a_mask_of_another_kind_comes_before_the_next_best_that_is_like_the_first() -> None:
    whole, nearly, part = (proposal(rectangle(2, 2, 22, right)) for right in (30, 25, 8))
    crops = [view([whole, nearly, part])]
    assert select(crops, intersections(crops), OPTIONS, [0.8, 0.7, 0.6]) == [0, 2, 1]


def test_of_two_equal_masks_the_better_ranked_stays() -> None:
    good, twin = proposal(rectangle(2, 2, 9, 9), 0.9, 1), proposal(rectangle(2, 2, 9, 9), 0.4, 2)
    seen = [view([twin, good], PromptCells(((4, 4),), (), ()))]
    assert distinct(order(seen), intersections(seen), OPTIONS) == [1]
    # scores come before predicted IoU
    assert select(seen, intersections(seen), OPTIONS, [0.8, 0.7]) == [0]


def test_a_mask_that_obeys_every_click_comes_before_a_more_confident_one_that_does_not() -> None:
    small, large = proposal(rectangle(2, 2, 9, 9), 0.3), proposal(rectangle(0, 0, 20, 30), 0.9)
    assert ordered([large, small], PromptCells(((4, 4),), ((15, 25),), ())) == [small, large]
    assert ordered([large, small], PromptCells(((4, 4),), (), ())) == [large, small]


def test_a_mask_that_fills_the_box_comes_before_a_more_confident_one_that_spills_over() -> None:
    fits, spills = proposal(rectangle(2, 2, 9, 9), 0.5), proposal(rectangle(0, 0, 20, 30), 0.9)
    assert ordered([spills, fits], PromptCells((), (), ((2, 2, 9, 9),))) == [fits, spills]
    assert box_fit(fits.cells, (2, 2, 9, 9)) == 1.0


def test_what_ignores_the_click_is_offered_only_to_reach_two() -> None:
    over, beside = [proposal(rectangle(2, 2, 9, 9 + 4 * i)) for i in range(3)], [proposal(rectangle(12, 2, 18, 9))]
    prompt = PromptCells(((4, 4),), (), ())
    assert agreeing(range(4), [view([*over, *beside], prompt)], OPTIONS) == [0, 1, 2]
    assert agreeing(range(3), [view([over[0], *beside, *beside], prompt)], OPTIONS) == [0, 1]
    for shown, kept in (([*over, *beside], {0, 1, 2}), ([over[0], *beside, *beside], {0, 1})):
        crops = [view(shown, prompt)]
        assert set(select(crops, intersections(crops), OPTIONS, [0.5] * len(shown))) == kept
