"""Which label a candidate gets, by its class embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam_model.config import read_model_config
from semsam_model.errors import ConfigError
from semsam_model.inference.naming import evidence, label_scores, name_candidates
from semsam_model.inference.predict import predict_candidates, raw_levels
from semsam_model.inference.text_prompt import GRID, candidates_by_text
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.types import KINDS, Candidate, Click, Kind, LabelSet, Prompt
from tests.semsam_model.networks import structured

quick = settings(max_examples=40, deadline=None)
SIZE = (60, 84)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def label_set(seed: int, count: int = 5, width: int = 8) -> LabelSet:
    rng = np.random.default_rng(seed)
    kinds = tuple((*KINDS, None)[i] for i in rng.integers(0, 3, count))
    return LabelSet(tuple(f"label {i}" for i in range(count)), kinds, unit(rng.normal(size=(count, width))))


def embedding(seed: int, width: int = 8) -> np.ndarray:
    return 20 * unit(np.random.default_rng(seed).normal(size=(2, width)))


def candidate(name_embedding: np.ndarray | None) -> Candidate:
    return Candidate(1, 0, 3, 0.5, 0.5, 0.5, SIZE, (0, 0, 2, 2), np.ones((2, 2), bool), name_embedding=name_embedding)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(replace(read_model_config("tiny"), name_features=True))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    return np.kron(coarse, np.ones((12, 12, 1), np.uint8))


@quick
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_another_order_of_the_labels_changes_no_labels_score(seed: int, order: list[int]) -> None:
    labels = label_set(seed)
    shuffled = LabelSet(
        tuple(labels.values[i] for i in order), tuple(labels.kinds[i] for i in order), labels.vectors[order]
    )
    before, after = (dict(label_scores(embedding(seed), 2, one)) for one in (labels, shuffled))
    assert before == pytest.approx(after)


@quick
@given(st.integers(0, 10**6))
def test_scores_are_shares_of_one_best_first(seed: int) -> None:
    scores = [score for _, score in label_scores(embedding(seed), 5, label_set(seed))]
    assert sum(scores) == pytest.approx(1)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("head", [0, 1])
def test_only_its_own_head_speaks_for_a_label_and_the_better_one_where_it_has_no_kind(head: int) -> None:
    vectors = np.eye(3, dtype=np.float32)
    labels = LabelSet(("one", "two", "three"), (KINDS[head], KINDS[head], None), vectors)
    said = np.zeros((2, 3), np.float32)
    said[head] = 8, 4, 0
    before = label_scores(said, 4, labels)
    assert [name for name, _ in before] == ["one", "two", "three"]
    said[1 - head] = 20, 30, 0  # the other head may say what it likes
    assert label_scores(said, 4, labels) == before
    said[1 - head, 2] = 40
    assert label_scores(said, 4, labels)[0][0] == "three"


def test_the_smaller_the_level_the_more_a_part_is_believed() -> None:
    labels, said = LabelSet(("car", "door"), KINDS, np.eye(2, dtype=np.float32)), np.ones((2, 2), np.float32)
    shares = [dict(label_scores(said, level, labels))["door"] for level in range(1, 7)]
    assert shares == sorted(shares) and shares[0] < 0.2 and shares[3] == pytest.approx(0.5) and shares[5] > 0.7
    alike = LabelSet(("door", "wheel"), (KINDS[1], KINDS[1]), np.eye(2, dtype=np.float32))
    for level in range(1, 7):  # among parts alone the level says nothing
        assert dict(label_scores(said, level, alike))["door"] == pytest.approx(0.5)


def test_it_abstains_below_the_threshold_but_still_says_what_it_thought() -> None:
    labels, one = label_set(1), candidate(embedding(1))
    best, score = label_scores(embedding(1), 3, labels)[0]
    (sure,) = name_candidates([one], labels, score - 0.01)
    (unsure,) = name_candidates([one], labels, score + 0.01)
    assert (sure.label, unsure.label) == (best, None)
    assert sure.names == unsure.names == tuple(label_scores(embedding(1), 3, labels))


def test_a_model_without_names_says_nothing(rgb: np.ndarray) -> None:
    nameless = build_model(read_model_config("tiny")).eval()
    embedded = nameless.encode(rgb)
    named = name_candidates(predict_candidates(nameless, embedded, Prompt((Click(30, 30),))), label_set(0, width=16), 0)
    assert named and all(c.names == () and c.label is None for c in named)
    assert candidates_by_text(nameless, embedded, label_set(0, width=16), 0) == []


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 dimensions, the text encoder gives 6"):
        label_scores(embedding(0), 1, label_set(0, width=6))


def test_candidates_carry_the_networks_own_class_embeddings_times_its_scales(
    model: SemanticSAM, rgb: np.ndarray
) -> None:
    embedded, click = model.encode(rgb), Click(30, 30)
    output, scales = model.decode(embedded, [click]), model.name_scales().detach()
    for found in (raw_levels, predict_candidates):
        for c in found(model, embedded, Prompt((click,))):
            assert c.name_embedding is not None
            np.testing.assert_allclose(c.name_embedding[0], scales[0] * output.object_embedding[0, c.token], rtol=1e-4)
            np.testing.assert_allclose(c.name_embedding[1], scales[1] * output.part_embedding[0, c.token], rtol=1e-4)


def test_combined_masks_can_be_named_too(model: SemanticSAM, rgb: np.ndarray) -> None:
    clicks = (Click(10, 10), Click(75, 50), Click(40, 30, positive=False))
    named = name_candidates(predict_candidates(model, model.encode(rgb), Prompt(clicks)), label_set(0, width=16), 0)
    assert named and all(len(c.names) == 5 and c.label for c in named)


def test_what_is_found_by_name_is_distinct_and_bears_the_name_first(model: SemanticSAM, rgb: np.ndarray) -> None:
    embedded = model.encode(rgb)
    steps = [((i % GRID + 0.5) / GRID * SIZE[1], (i // GRID + 0.5) / GRID * SIZE[0]) for i in range(GRID**2)]
    every = [c for x, y in steps[::9] for c in raw_levels(model, embedded, Prompt((Click(x, y),)))]
    labels = label_set(2, width=16)
    one = every[0]
    assert one.name_embedding is not None
    best = label_scores(one.name_embedding, one.level, labels)[0][0]
    order = [labels.values.index(best), *(i for i, value in enumerate(labels.values) if value != best)]
    labels = LabelSet(
        tuple(labels.values[i] for i in order), tuple(labels.kinds[i] for i in order), labels.vectors[order]
    )
    found = candidates_by_text(model, embedded, labels, 0.0)
    assert 1 <= len(found) <= 6
    for i, c in enumerate(found):  # pixels of the photo, where a border may fall a little differently
        assert all((c.mask & other.mask).sum() <= 0.55 * min(c.area, other.area) for other in found[:i])
    assert all(c.label == best for c in found)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert candidates_by_text(model, embedded, labels, 1.01) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_what_names_say_about_masks_agrees_with_the_names_they_get(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    kinds: list[Kind | None] = [("object", "part", None)[int(i)] for i in rng.integers(3, size=count)]
    labels = LabelSet(tuple(map(str, range(count))), tuple(kinds), rng.normal(size=(count, 8)).astype(np.float32))
    masks, levels = rng.normal(size=(3, 2, 8)).astype(np.float32), rng.integers(1, 7, 3).tolist()
    said = evidence(masks, levels, labels)
    by_mask = [dict(label_scores(mask, level, labels)) for mask, level in zip(masks, levels, strict=True)]
    np.testing.assert_allclose(said[:, 0], [max(scores.values()) for scores in by_mask], rtol=1e-5)
    both = {"object", "part"} <= set(kinds)
    parts = [sum(v for k, v in scores.items() if kinds[int(k)] == "part") if both else 0.5 for scores in by_mask]
    np.testing.assert_allclose(said[:, 2], parts, atol=1e-5)
    if "part" in kinds:
        told = evidence(masks, levels, labels, "part")
        fitting = [max(v for k, v in scores.items() if kinds[int(k)] != "object") for scores in by_mask]
        np.testing.assert_allclose(told[:, 0], fitting, rtol=1e-5)
