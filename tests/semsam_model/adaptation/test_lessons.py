"""Accepted regions change the names and the order of the next candidates, and nothing else does."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from semsam_model.adaptation.kernel_ridge import Preference
from semsam_model.adaptation.lessons import (
    Lesson,
    ProjectAdaptation,
    adapt,
    make_lesson,
    needed,
    rerank_features,
    with_region_features,
)
from semsam_model.config import read_model_config
from semsam_model.data.synthetic import synthetic_samples
from semsam_model.errors import DataError
from semsam_model.inference.naming import name_candidates
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.proposals import predict_proposals
from semsam_model.masks.clicker import innermost
from semsam_model.masks.geometry import iou
from semsam_model.network.model import ImageEmbedding, SemanticSAM
from semsam_model.network.ranker import OF_PROPOSAL
from semsam_model.types import Candidate, LabelSet, Prompt, PromptContext
from tests.semsam_model.networks import structured

SIZE = (64, 64)


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return structured(replace(read_model_config("tiny"), name_features=True))


@pytest.fixture(scope="module")
def labels(model: SemanticSAM) -> LabelSet:
    vectors = np.random.default_rng(0).normal(size=(3, model.config.text_dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return LabelSet(("red", "green", "blue"), (None, None, None), vectors.astype(np.float32))


@pytest.fixture(scope="module")
def accepted(model: SemanticSAM) -> list[tuple[ImageEmbedding, np.ndarray, str]]:
    """Regions of synthetic scenes; the label says where the region lies, which no text can know."""
    found = []
    for sample in synthetic_samples(4, seed=1, size=SIZE):
        embedding = model.encode(sample.image())
        masks = [sample.mask(i) for i in range(len(sample.regions))]
        for mask in [m for m in masks if m.sum() >= 40][:5]:
            found.append((embedding, mask, "red" if innermost(mask).x < SIZE[1] / 2 else "green"))
    assert {label for _, _, label in found} == {"red", "green"}
    return found


@pytest.fixture(scope="module")
def lessons(model: SemanticSAM, accepted: list[tuple[ImageEmbedding, np.ndarray, str]]) -> list[Lesson]:
    return [make_lesson(model, e, mask, label=label) for e, mask, label in accepted]


def offered(
    model: SemanticSAM, embedding: ImageEmbedding, mask: np.ndarray, learned: ProjectAdaptation
) -> list[Candidate]:
    return predict_candidates(model, embedding, Prompt((innermost(mask),)), reranker=learned)


def test_nearly_every_region_that_was_accepted_is_named_as_it_was(
    model: SemanticSAM,
    labels: LabelSet,
    accepted: list[tuple[ImageEmbedding, np.ndarray, str]],
    lessons: list[Lesson],
) -> None:
    learned = adapt(lessons)
    assert learned is not None
    names = []
    for embedding, mask, _ in accepted:
        (first, *_) = offered(model, embedding, mask, learned)
        shown = replace(first, region=make_lesson(model, embedding, mask, label="").region)
        names.append(learned.name([shown], labels, 0)[0].label)
    assert np.mean([name == label for name, (_, _, label) in zip(names, accepted, strict=True)]) > 0.9


def test_lessons_survive_their_bytes_and_teach_the_same_in_any_company(
    model: SemanticSAM,
    labels: LabelSet,
    accepted: list[tuple[ImageEmbedding, np.ndarray, str]],
    lessons: list[Lesson],
) -> None:
    read = [Lesson.from_bytes(each.to_bytes(), label=each.label) for each in lessons]
    embedding, mask, _ = accepted[0]
    answers = []
    for taught in (lessons, read):
        learned = adapt(taught)
        assert learned is not None
        answers.append([(c.score, c.names) for c in learned.name(offered(model, embedding, mask, learned), labels, 0)])
    assert answers[0] == answers[1]
    with pytest.raises(DataError, match="'red': cannot be read"):
        Lesson.from_bytes(lessons[0].to_bytes()[:-30], label="red")


def test_lessons_of_the_first_layout_are_still_read(lessons: list[Lesson]) -> None:
    buffer, arrays = io.BytesIO(), ("region", "name_embedding", "proposals", "expected", "worth")
    np.savez_compressed(
        buffer, layout=1, level=lessons[0].level, **{name: getattr(lessons[0], name) for name in arrays}
    )
    read = Lesson.from_bytes(buffer.getvalue(), label="red")
    assert (read.label, read.level) == ("red", lessons[0].level)
    assert all(np.array_equal(getattr(read, name), getattr(lessons[0], name)) for name in arrays)


def test_nothing_learned_is_no_preference_and_a_preference_for_nothing_changes_nothing(
    model: SemanticSAM, accepted: list[tuple[ImageEmbedding, np.ndarray, str]]
) -> None:
    assert adapt([]) is None
    embedding, mask, _ = accepted[0]
    prompt = Prompt((innermost(mask),))
    width = rerank_features(with_region_features(predict_proposals(model, embedding, prompt))).shape[1]
    before = predict_candidates(model, embedding, prompt)
    after = predict_candidates(model, embedding, prompt, reranker=ProjectAdaptation([], Preference(np.zeros(width))))
    assert [c.bbox for c in after] == [c.bbox for c in before]
    assert all(c.region is None for c in before) and all(c.region is not None for c in after)


def test_labels_nobody_has_used_leave_names_to_the_text(
    model: SemanticSAM,
    labels: LabelSet,
    accepted: list[tuple[ImageEmbedding, np.ndarray, str]],
    lessons: list[Lesson],
) -> None:
    learned = adapt([replace(each, label="violet") for each in lessons])
    assert learned is not None
    candidates = offered(model, accepted[0][0], accepted[0][1], learned)
    for ours, by_text in zip(
        learned.name(candidates, labels, 0.5), name_candidates(candidates, labels, 0.5), strict=True
    ):
        assert (ours.label, [n for n, _ in ours.names]) == (by_text.label, [n for n, _ in by_text.names])
        assert [s for _, s in ours.names] == pytest.approx([s for _, s in by_text.names])


def test_what_annotators_keep_choosing_comes_first(
    model: SemanticSAM, accepted: list[tuple[ImageEmbedding, np.ndarray, str]]
) -> None:
    """They accept the candidate that is offered last of those under the click."""
    taught, chosen = [], []
    for embedding, mask, label in accepted:
        click = innermost(mask)
        under = [
            c.mask for c in predict_candidates(model, embedding, Prompt((click,))) if c.mask[int(click.y), int(click.x)]
        ]
        if under:
            chosen.append((embedding, Prompt((click,)), under[-1]))
            taught.append(make_lesson(model, embedding, chosen[-1][2], label=label, click=click))
    learned = adapt(taught)
    assert learned is not None

    def first(reranker: ProjectAdaptation | None) -> float:
        return float(
            np.mean([iou(predict_candidates(model, e, p, reranker=reranker)[0].mask, m) for e, p, m in chosen])
        )

    assert first(learned) > first(None) + 0.02


def test_a_label_that_is_chosen_first_brings_what_was_accepted_with_it(
    model: SemanticSAM, labels: LabelSet, accepted: list[tuple[ImageEmbedding, np.ndarray, str]]
) -> None:
    """At every click they want the largest candidate as red and the smallest as green."""
    taught, asked = [], []
    for embedding, mask, _ in accepted:
        click = innermost(mask)
        found = [
            c for c in predict_candidates(model, embedding, Prompt((click,))) if c.mask[int(click.y), int(click.x)]
        ]
        if len(found) > 1:
            found.sort(key=lambda c: c.area)
            asked.append((embedding, Prompt((click,)), {"red": found[-1].mask, "green": found[0].mask}))
            taught += [make_lesson(model, embedding, m, label=n, click=click) for n, m in asked[-1][2].items()]
    learned = adapt(taught)
    assert learned is not None

    def first(chosen: str | None, wanted: str) -> float:
        context = PromptContext(labels=labels, wanted=None if chosen is None else labels.values.index(chosen))
        answers = [predict_candidates(model, e, p, context=context, reranker=learned)[0].mask for e, p, _ in asked]
        return float(np.mean([iou(mask, masks[wanted]) for mask, (_, _, masks) in zip(answers, asked, strict=True)]))

    for label in ("red", "green"):
        assert first(label, label) > first(None, label) + 0.02
    # a label nobody has used
    assert first("blue", "red") == first(None, "red")


def test_the_text_of_a_chosen_label_gives_way_to_its_examples(
    model: SemanticSAM,
    labels: LabelSet,
    accepted: list[tuple[ImageEmbedding, np.ndarray, str]],
    lessons: list[Lesson],
) -> None:
    embedding, mask, _ = accepted[0]
    proposals = with_region_features(predict_proposals(model, embedding, Prompt((innermost(mask),))))
    context = PromptContext(labels=labels, wanted=labels.values.index("red"))
    of_text, without = np.full(len(proposals.pairs), 0.9), np.full(len(proposals.pairs), 0.1)
    shown = [[replace(each, label="red") for each in lessons[:count]] for count in (1, 3, 9)]
    zero = Preference(np.zeros(rerank_features(proposals).shape[1]))
    best = [
        ProjectAdaptation(some, zero).rerank(proposals, of_text, context, without)[1].max()
        for some in ([replace(lessons[0], label="green")], *shown)
    ]
    assert best[0] == pytest.approx(0.9)
    assert best == sorted(best, reverse=True) and best[-1] < 0.4


def test_a_mask_of_another_photo_teaches_nothing(
    model: SemanticSAM, accepted: list[tuple[ImageEmbedding, np.ndarray, str]]
) -> None:
    with pytest.raises(DataError, match="expected"):
        make_lesson(model, accepted[0][0], np.ones((5, 5), bool), label="red")
    with pytest.raises(DataError, match="something in it"):
        make_lesson(model, accepted[0][0], np.zeros(SIZE, bool), label="red")


def test_lessons_that_are_not_needed_change_nothing() -> None:
    dice, size = np.random.default_rng(3), 8
    known = ("red", "green", "blue")

    def lesson(label: str) -> Lesson:
        proposals = dice.normal(size=(4, size + len(OF_PROPOSAL))).astype(np.float16)
        drawn = dice.random((2, 4)).astype(np.float16)
        region = dice.normal(size=size).astype(np.float16)
        return Lesson(label, region, np.zeros((2, 0), np.float16), 1, proposals, drawn[0], drawn[1])

    labels = list(map(str, dice.choice([*known, "grey", ""], 600, p=[0.7, 0.1, 0.05, 0.1, 0.05])))
    lessons = list(map(lesson, labels))
    chosen = [lessons[i] for i in needed(labels, known)]
    assert len(chosen) < 250 and {each.label for each in chosen} >= {*known}
    everything, enough = adapt(lessons), adapt(chosen)
    assert everything is not None and enough is not None
    assert (everything.preference.direction == enough.preference.direction).all()
    shown = [SimpleNamespace(name_embedding=None, level=1, region=dice.normal(size=size)) for _ in range(5)]
    labelled = LabelSet(known, (None, None, None), np.zeros((3, 0), np.float32))
    assert (everything.scores(shown, labelled) == enough.scores(shown, labelled)).all()  # type: ignore[arg-type]
    assert {each.label for each in (lessons[i] for i in needed(labels, ()))} >= {"red", "green", "blue", "grey"}
