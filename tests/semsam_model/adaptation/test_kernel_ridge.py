"""Learning from few examples: what no examples change, what any order changes, what leaving out means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.adaptation.kernel_ridge import (
    FIRST_EXAMPLE_WEIGHT,
    RIDGE,
    _left_out,
    fit_names,
    fit_preference,
    newest_of_each,
    preference_vectors,
)
from semsam_model.network.ranker import OF_PROPOSAL

quick = settings(max_examples=25, deadline=None)
WIDTH, CLASSES = 12, 4


def shares(rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.uniform(0.05, 1, (rows, CLASSES))
    return values / values.sum(1, keepdims=True)


def clusters(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 2.4 near their label's own direction."""
    labels = rng.integers(0, CLASSES, rows)
    vectors = np.eye(WIDTH)[labels] + 0.2 * rng.normal(size=(rows, WIDTH))
    return 2.4 * vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


@quick
@given(st.integers(0, 10**6))
def test_without_examples_names_are_those_of_the_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    learned = fit_names(np.zeros((0, WIDTH)), np.zeros(0, int), [], np.zeros((0, CLASSES)))
    text = shares(rng, 5)
    assert np.array_equal(learned.scores(rng.normal(size=(5, WIDTH)), text), text)


@quick
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_another_order_of_the_examples_teaches_the_same(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    (vectors, labels), text, photos = clusters(rng, rows), shares(rng, rows), rng.integers(0, 5, rows)
    asked, asked_text, order = clusters(rng, 6)[0], shares(rng, 6), rng.permutation(rows)
    one = fit_names(vectors, labels, photos.tolist(), text).scores(asked, asked_text)
    other = fit_names(vectors[order], labels[order], photos[order].tolist(), text[order]).scores(asked, asked_text)
    assert other == pytest.approx(one, abs=1e-6)


def test_examples_overrule_a_text_that_is_wrong_and_the_more_the_surer() -> None:
    rng = np.random.default_rng(0)
    asked, right = clusters(rng, 40)
    wrong = np.full((40, CLASSES), 0.1)
    wrong[np.arange(40), (right + 1) % CLASSES] = 0.7
    sure = []
    for rows in (8, 80):
        vectors, labels = clusters(rng, rows)
        text = np.full((rows, CLASSES), 0.1)
        text[np.arange(rows), (labels + 1) % CLASSES] = 0.7
        scores = fit_names(vectors, labels, list(range(rows)), text).scores(asked, wrong)
        assert scores.sum(1) == pytest.approx(np.ones(40))
        sure.append(float(np.mean(scores[np.arange(40), right])))
    assert 0.5 < sure[0] < sure[1] and sure[1] > 0.9


def test_a_label_that_only_one_photo_shows_leaves_the_first_mixture() -> None:
    rng = np.random.default_rng(1)
    vectors, _ = clusters(rng, 4)
    learned = fit_names(vectors, np.arange(4), ["a", "b", "c", "d"], shares(rng, 4))
    assert (learned.text_weight, learned.example_weight) == (1.0, FIRST_EXAMPLE_WEIGHT)


def test_leaving_out_a_photo_says_what_learning_without_it_says() -> None:
    rng = np.random.default_rng(2)
    vectors, labels = clusters(rng, 12)
    photos = [i % 4 for i in range(12)]
    weights = rng.uniform(0.5, 2, 12)  # the weights of the others are not changed by leaving some out
    targets = np.eye(CLASSES)[labels]

    def solved(rows: np.ndarray) -> np.ndarray:
        return np.linalg.solve(vectors[rows] @ vectors[rows].T + RIDGE * np.diag(1 / weights[rows]), targets[rows])

    inverse = np.linalg.inv(vectors @ vectors.T + RIDGE * np.diag(1 / weights))
    said, known = _left_out(inverse, inverse @ targets, targets, photos)
    for photo in range(4):
        mine = np.array([p == photo for p in photos])
        rest = np.flatnonzero(~mine)
        assert said[mine] == pytest.approx(vectors[mine] @ vectors[rest].T @ solved(rest), abs=1e-6)
        assert known[mine].tolist() == [label in labels[rest] for label in labels[mine]]


@quick
@given(st.integers(0, 10**6))
def test_examples_of_one_label_alone_say_nothing_about_the_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, _ = clusters(rng, 5)
    learned = fit_names(vectors, np.full(5, 2), list("aabbc"), shares(rng, 5))
    text = shares(rng, 6)
    order = learned.scores(clusters(rng, 6)[0], text).argsort(1)
    assert learned.text_weight == 0 or np.array_equal(order, text.argsort(1))


@quick
@given(st.integers(0, 10**6))
def test_a_preference_without_a_mistake_to_learn_from_changes_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = preference_vectors(rng.normal(size=(9, WIDTH)), rng.normal(size=(9, len(OF_PROPOSAL))))
    expected = rng.uniform(0, 1, 9).astype(np.float32)
    assert fit_preference(rows, expected, expected).scores(rows, expected) == pytest.approx(expected, abs=1e-6)


def test_what_was_accepted_rises_and_what_was_passed_over_sinks() -> None:
    rng = np.random.default_rng(3)
    regions, kind = clusters(rng, 60)
    rows = preference_vectors(regions, np.zeros((60, len(OF_PROPOSAL))))
    preference = fit_preference(rows[:40], np.full(40, 0.5), (kind[:40] == 2).astype(float))
    scores = preference.scores(rows[40:], np.full(20, 0.5))
    wanted = kind[40:] == 2
    assert scores[wanted].min() > 0.5 > scores[~wanted].max()


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4), st.integers(1, 8))
def test_the_newest_of_each_label_are_kept_in_their_order(labels: list[str], most: int, total: int) -> None:
    kept = newest_of_each(labels, most, total)
    assert kept == sorted(kept) and len(kept) <= total
    for label in set(labels):
        mine = [i for i in kept if labels[i] == label]
        assert len(mine) <= most
        if len(kept) < total:
            assert mine == [i for i, other in enumerate(labels) if other == label][-most:]
