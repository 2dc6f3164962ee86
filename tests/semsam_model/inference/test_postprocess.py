"""Read-outs of object queries on grids small enough to count by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semsam_model.inference.postprocess import (
    NO_LABEL,
    ClassifiedQueries,
    PostprocessOptions,
    query_label_probabilities,
    to_instances,
    to_panoptic,
    to_semantic,
)
from semsam_model.types import Kind, LabelSet

SKY, CAR, WHEEL = 0, 1, 2
LABEL_KINDS: tuple[Kind | None, ...] = ("object", "object", "part")


def finding() -> ClassifiedQueries:
    """6x6 cells: sky above (two queries, left and right), a car below, a wheel in it, and the car once more, worse."""
    masks = np.zeros((5, 6, 6), bool)
    masks[0, :3, :3] = masks[1, :3, 3:] = True
    masks[2, 3:, 1:5] = True
    masks[3, 4:, 1:3] = True
    masks[4, 3:, 1:5] = True
    masks[4, 3, 1] = False
    kinds = np.array([[0, 0, 0.8], [0, 0, 0.6], [0.9, 0, 0], [0, 0.6, 0], [0.5, 0, 0]], np.float32)
    names = np.zeros((5, 2, 3), np.float32)
    names[:2, 0] = (0.9, 0.1, 0)
    names[[2, 4], 0] = (0.2, 0.7, 0)
    names[3, 1, WHEEL] = 1
    return ClassifiedQueries(np.where(masks, 20.0, -20.0).astype(np.float32), kinds, names, LABEL_KINDS)


def test_instances_carry_expected_iou_times_share_of_the_label() -> None:
    best = [(a.query, a.label, pytest.approx(a.score)) for a in to_instances(finding()) if a.score > 0.5]
    assert best == [(0, SKY, 0.72), (2, CAR, 0.63), (3, WHEEL, 0.6), (1, SKY, 0.54)]


def test_of_two_masks_that_are_alike_only_the_better_is_an_instance() -> None:
    assert 4 not in {a.query for a in to_instances(finding())}
    assert 4 in {a.query for a in to_instances(finding(), options=PostprocessOptions(same_iou=0.95))}


def test_part_instances_are_labels_of_parts_alone() -> None:
    assert [(a.query, a.label) for a in to_instances(finding(), "part")] == [(3, WHEEL)]
    assert WHEEL not in {a.label for a in to_instances(finding(), "object")}


def test_a_part_may_have_the_mask_of_its_object() -> None:
    found = finding()
    found.logits[3] = found.logits[2]
    assert {(2, CAR), (3, WHEEL)} <= {(a.query, a.label) for a in to_instances(found)}


def test_the_semantic_map_gives_each_cell_its_best_label() -> None:
    labels = to_semantic(finding())
    assert (labels[:3] == SKY).all()
    assert (labels[3:, [0, 5]] == NO_LABEL).all()
    wheel = finding().logits[3] > 0
    car = (finding().logits[2] > 0) & ~wheel
    assert (labels[car] == CAR).all()
    assert (labels[wheel] == CAR).all()  # 0.63 beats 0.6
    assert (to_semantic(finding(), PostprocessOptions(present=0.65))[3:] == NO_LABEL).all()


def test_panoptic_segments_do_not_overlap_and_stuff_is_one_segment() -> None:
    things = dataclasses.replace(finding(), kinds=finding().kinds * [1, 0, 1])
    ids, segments = to_panoptic(things)
    assert [(s.label, s.queries) for s in segments] == [(SKY, (0,)), (CAR, (2,)), (SKY, (1,))]
    ids, segments = to_panoptic(things, stuff={SKY})
    assert [(s.label, s.queries) for s in segments] == [(SKY, (0, 1)), (CAR, (2,))]
    assert np.count_nonzero(ids == segments[0].id) == 18
    assert np.count_nonzero(ids == segments[1].id) == 12
    assert np.count_nonzero(ids == 0) == 6


def test_a_segment_that_is_mostly_covered_by_better_ones_is_left_out() -> None:
    _, segments = to_panoptic(finding(), options=PostprocessOptions(visible=0.5))
    assert WHEEL not in {s.label for s in segments}


def test_maps_are_read_on_the_grid_that_is_asked_for() -> None:
    def twice(logits: np.ndarray) -> np.ndarray:
        return logits.repeat(2, 0).repeat(2, 1)

    assert np.array_equal(to_semantic(finding(), enlarge=twice), twice(to_semantic(finding())))
    assert np.array_equal(to_panoptic(finding(), enlarge=twice)[0], twice(to_panoptic(finding())[0]))


def test_no_query_is_no_answer() -> None:
    empty = ClassifiedQueries(np.zeros((0, 4, 4), np.float32), np.zeros((0, 3)), np.zeros((0, 2, 3)), LABEL_KINDS)
    assert to_instances(empty) == []
    assert (to_semantic(empty) == NO_LABEL).all()
    ids, segments = to_panoptic(empty)
    assert segments == []
    assert not ids.any()


@given(st.integers(0, 1000), st.permutations(range(5)))
def test_the_order_of_queries_changes_nothing(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    found = dataclasses.replace(finding(), kinds=rng.random((5, 3)), logits=rng.normal(size=(5, 6, 6)) * 3)
    shuffled = ClassifiedQueries(found.logits[order], found.kinds[order], found.names[order], found.label_kinds)
    assert np.array_equal(to_semantic(found), to_semantic(shuffled))
    assert np.array_equal(to_panoptic(found)[0], to_panoptic(shuffled)[0])
    assert [(a.query, a.label) for a in to_instances(found)] == [
        (order[a.query], a.label) for a in to_instances(shuffled)
    ]


def unit(*angles: float) -> np.ndarray:
    return np.array([(np.cos(a), np.sin(a)) for a in angles], np.float32)


def test_shares_of_a_head_and_of_none_add_up_to_one() -> None:
    labels = LabelSet(("sky", "car", "wheel"), LABEL_KINDS, unit(0, 1, 2))
    embeddings = np.stack((5 * unit(0, 2), 5 * unit(2, 0)), 1)
    shares = query_label_probabilities(embeddings, np.array([-50.0, 3.0]), labels)
    assert shares[:, 0].sum(1) == pytest.approx(1)
    assert shares[0, 0].argmax() == SKY
    assert not shares[:, 0, WHEEL].any()
    assert shares[0, 1, WHEEL] == pytest.approx(np.exp(5) / (np.exp(5) + np.exp(3)), rel=1e-5)


def test_a_word_that_fits_nothing_gets_a_low_share_though_it_is_the_only_one() -> None:
    fits, not_at_all = unit(0.1, np.pi)
    embeddings = np.tile(10 * unit(0)[:, None], (1, 2, 1))
    shares = [
        query_label_probabilities(embeddings, np.array([2.0, 2.0]), LabelSet(("word",), (None,), word[None]))[0, 0, 0]
        for word in (fits, not_at_all)
    ]
    assert shares[0] > 0.99
    assert shares[1] < 1e-4
