"""Object queries classified by labels: named candidates, words, parts of a whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from semsam_model.evaluation.labels import LabelList
from semsam_model.inference.object_queries import (
    FOUND_ONCE,
    ObjectQueries,
    candidates_by_word,
    joined,
    predict_object_queries,
    queries_to_candidates,
    word_scores,
)
from semsam_model.inference.postprocess import NO_LABEL, PostprocessOptions, to_panoptic, to_semantic
from semsam_model.inference.preannotate import preannotate
from semsam_model.inference.text_prompt import candidates_by_text
from semsam_model.types import Label, LabelSet
from tests.semsam_model.inference.queries import embed, invented
from tests.semsam_model.networks import QUERIES, masks_nothing, structured


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (200, 30, 30)
    return pixels


@pytest.mark.parametrize("names", [False, True])
def test_a_photo_in_which_no_click_selects_anything_has_no_queries_and_every_reading_of_them_is_empty(
    photo: np.ndarray, names: bool
) -> None:
    blind = masks_nothing(structured(dataclasses.replace(QUERIES, name_features=names)))
    embedding = blind.encode(photo)
    queries, frame = predict_object_queries(blind, embedding), embedding.frame
    assert queries.logits.shape == (0, *frame.logits)
    width = blind.config.text_dim
    labels = LabelSet(("car", "wheel", "sky"), ("object", "part", None), np.eye(3, width, dtype=np.float32))
    for given in (None, labels):
        assert queries_to_candidates(queries, frame, given) == preannotate(blind, embedding, given) == []
    found = queries.classify(labels)
    assert (to_semantic(found, enlarge=frame.enlarge) == np.full(frame.photo, NO_LABEL)).all()
    ids, segments = to_panoptic(found, (0,), enlarge=frame.enlarge)
    assert (ids == np.zeros(frame.photo)).all() and segments == []
    asked = candidates_by_word(
        queries, frame, ("car", "wheel of car"), lambda words: np.eye(len(words), width, dtype=np.float32)
    )
    assert asked == {"car": [], "wheel of car": []}
    assert candidates_by_text(blind, embedding, labels, 0.5, labels) == []


def test_a_photo_becomes_named_candidates_with_parents() -> None:
    queries, frame = invented()
    labels = LabelSet(("car", "wheel", "moon"), ("object", "part", None), embed(["car", "wheel", "moon"]))
    found = queries_to_candidates(queries, frame, labels, options=PostprocessOptions(least=0.3))
    assert [c.label for c in found] == ["car", "wheel", "wheel"]
    assert [c.parent for c in found] == [None, 1, None]
    assert found[0].score == pytest.approx(0.9, abs=0.02)
    assert found[0].bbox == (16, 16, 112, 80)
    assert [c.label for c in queries_to_candidates(queries, frame, labels, "part", PostprocessOptions(least=0.3))] == [
        "wheel",
        "wheel",
    ]
    assert [c.label for c in queries_to_candidates(queries, frame)] == [None, None, None]


def test_a_part_of_a_whole_is_found_in_that_whole_alone() -> None:
    queries, frame = invented()
    found = candidates_by_word(
        queries, frame, ("wheel", "wheel of car", "car", "moon"), embed, PostprocessOptions(least=0.1)
    )
    assert [c.bbox[0] for c in found["car"]] == [16]
    assert len(found["wheel"]) == 2
    assert [c.bbox[:2] for c in found["wheel of car"]] == [(24, 56)]
    assert found["wheel of car"][0].score < found["wheel"][0].score
    assert found["moon"] == []


def test_a_label_that_names_its_whole_scores_as_the_words_do() -> None:
    queries, _ = invented()
    labels = LabelList.of({Label("part", "Wheel", "Car"), Label("object", "object")}, embed)
    assert [key.words for key in labels.keys] == ["wheel of car"]
    scores = labels.classify(queries, [0]).scores[:, 0]
    assert scores == pytest.approx(word_scores(queries, "wheel", "car", embed)) and scores[1] > 0.5 > 0.1 > scores[2]


def test_parts_of_two_wholes_differ_by_what_holds_them_and_labels_without_a_whole_score_as_ever() -> None:
    queries, _ = invented()
    apart = LabelList.of({Label("part", "wheel", "car"), Label("part", "wheel", "moon"), Label("part", "wheel")}, embed)
    anywhere, of_car, of_moon = (apart.classify(queries, [i]).scores[:, 0] for i in range(3))
    assert [key.whole for key in apart.keys] == [None, "car", "moon"]
    assert of_car[1] > 0.5 and of_moon[1] < 0.01 and anywhere[2] > 0.5 > of_car[2]
    plain = LabelList.of({Label("object", "car"), Label("part", "wheel"), Label("region", "moon")}, embed)
    names = ("car", "moon", "wheel")
    as_ever = queries.classify(LabelSet(names, ("object", "object", "part"), embed(names)))
    assert np.array_equal(plain.classify(queries, range(3)).scores, as_ever.scores)
    assert plain.stuff == {1}


def some(queries: ObjectQueries, rows: list[int]) -> ObjectQueries:
    """These rows of object queries."""
    of_photo = {"none"}
    fields = {f.name: getattr(queries, f.name) for f in dataclasses.fields(queries)}
    return ObjectQueries(**{name: of if name in of_photo else of[rows] for name, of in fields.items()})


def test_two_looks_that_find_the_same_are_one_look_and_what_one_alone_finds_is_less_sure() -> None:
    queries, _ = invented()
    every = list(range(len(queries.logits)))
    assert len(every) > 1
    again = joined(queries, queries)
    for field in dataclasses.fields(queries):
        np.testing.assert_allclose(getattr(again, field.name), getattr(queries, field.name), rtol=1e-5)
    less = joined(queries, some(queries, every[1:]))
    assert len(less.logits) == len(every)
    np.testing.assert_allclose(less.kinds[-1], FOUND_ONCE * queries.kinds[0])
    assert np.array_equal(less.logits[-1], queries.logits[0])
    for one, other in ((queries, some(queries, [])), (some(queries, []), queries)):
        np.testing.assert_allclose(joined(one, other).kinds, FOUND_ONCE * queries.kinds)
    assert len(joined(some(queries, []), some(queries, [])).logits) == 0


def test_a_model_that_looks_in_the_mirror_finds_the_same_in_a_photo_and_in_its_mirror_image(photo: np.ndarray) -> None:
    model = structured(dataclasses.replace(QUERIES, generic_mirrored=True))
    embedding, turned = model.encode(photo), model.encode(np.ascontiguousarray(photo[:, ::-1]))
    ours, theirs = predict_object_queries(model, embedding), predict_object_queries(model, turned)
    assert ours.logits.any()

    def ordered(queries: ObjectQueries, logits: np.ndarray) -> list[np.ndarray]:
        rows = np.lexsort((logits.reshape(len(logits), -1).sum(1), queries.kinds.sum(1)))
        return [logits[rows], queries.kinds[rows], queries.embeddings[rows]]

    for one, other in zip(ordered(ours, ours.logits), ordered(theirs, theirs.logits[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
