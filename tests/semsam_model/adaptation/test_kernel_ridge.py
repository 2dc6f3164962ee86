"""Learning from few examples: what no examples change, what any order changes, what leaving out means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.adaptation.kernel_ridge import (
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
    learned = fit_names(np.zeros((0, WIDTH)), np.zeros(0, int), CLASSES)
    text = shares(rng, 5)
    assert np.array_equal(learned.scores(rng.normal(size=(5, WIDTH)), text), text)


@quick
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_another_order_of_the_examples_teaches_the_same(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, labels = clusters(rng, rows)
    asked, asked_text, order = clusters(rng, 6)[0], shares(rng, 6), rng.permutation(rows)
    one = fit_names(vectors, labels, CLASSES).scores(asked, asked_text)
    other = fit_names(vectors[order], labels[order], CLASSES).scores(asked, asked_text)
    assert other == pytest.approx(one, abs=1e-6)


def test_examples_overrule_a_text_that_is_wrong_and_the_more_the_surer() -> None:
    rng = np.random.default_rng(0)
    asked, right = clusters(rng, 40)
    wrong = np.full((40, CLASSES), 0.1)
    wrong[np.arange(40), (right + 1) % CLASSES] = 0.7
    sure = []
    for rows in (8, 80):
        scores = fit_names(*clusters(rng, rows), CLASSES).scores(asked, wrong)
        assert scores.sum(1) == pytest.approx(np.ones(40))
        sure.append(float(np.mean(scores[np.arange(40), right])))
    assert 0.5 < sure[0] < sure[1] and sure[1] > 0.9


@quick
@given(st.integers(0, 10**6), st.integers(0, 8), st.integers(1, 20))
def test_examples_of_a_label_leave_the_order_of_all_others_on_what_is_unlike_them(
    seed: int, old: int, new: int
) -> None:
    rng = np.random.default_rng(seed)
    half = WIDTH // 2
    known, asked, more = np.zeros((old, WIDTH)), np.zeros((6, WIDTH)), np.zeros((new, WIDTH))
    known[:, :half], asked[:, :half], more[:, half:] = (rng.normal(size=(len(m), half)) for m in (known, asked, more))
    labels, text = rng.integers(1, CLASSES, old), shares(rng, 6)  # some or all of the others have examples
    before = fit_names(known, labels, CLASSES).scores(asked, text)
    learned = fit_names(np.concatenate([known, more]), np.append(labels, np.zeros(new, int)), CLASSES)
    after = learned.scores(asked, text)
    ratio = after[:, 1:] / before[:, 1:]
    assert ratio == pytest.approx(np.repeat(ratio[:, :1], CLASSES - 1, 1), rel=1e-5)
    assert (after[:, 0] < 1.0001 * before[:, 0]).all()  # nor does the label win where nothing speaks for it


def test_the_first_accepts_of_one_label_name_what_is_like_them_and_leave_the_rest() -> None:
    rng = np.random.default_rng(1)
    vectors, labels = clusters(rng, 80)
    text = np.full((80, CLASSES), 0.02 / (CLASSES - 1))
    text[np.arange(80), np.where(labels == 2, 0, labels)] = 0.98  # the text has never heard of label 2
    examples = np.flatnonzero(labels == 2)[:5]
    scores = fit_names(vectors[examples], labels[examples], CLASSES).scores(vectors, text)
    assert (scores.argmax(1) == labels)[labels != 2].all() and scores[labels != 2].max(1).min() > 0.9
    alike = np.flatnonzero(labels == 2)[5:]
    assert (scores[alike].argmax(1) == 2).mean() > 0.5 > (text[alike].argmax(1) == 2).mean()


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
