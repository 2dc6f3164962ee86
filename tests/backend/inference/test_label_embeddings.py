"""Regions named by the labels of the project's own config, and found by a text: real encoder, tiny network."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.inference.label_embeddings import LabelEmbedder, LabelVectors, specific_labels
from backend.inference.loaded import read_model
from backend.inference.preannotation import UNFINISHED
from backend.inference.text_prompt import GENERAL_LABELS, competing_labels, label_of_text, readings
from backend.label_studio.label_config import Label, LabelConfig
from backend.metrics import Metrics
from backend.service.service import SemsamService, assemble, build_service
from backend.settings import Settings
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.errors import TextEncoderError
from semsam_model.inference.naming import EVEN_LEVEL, LOG_ODDS_A_LEVEL
from semsam_model.inference.predict import predict_candidates
from semsam_model.network.model import build_model
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Click, Prompt

LABELS = (
    '<Label value="car" kind="object"/>',
    '<Label value="House" alias="c7" kind="object"/>',
    '<Label value="wheel" of="car"/>',
    '<Label value="door" kind="part"/>',
    '<Label value="something else"/>',
)
LOADS_IN_S = 120
NAMED = replace(read_model_config("tiny"), name_features=True, text_dim=384)


def config(*labels: str) -> str:
    return (
        '<View><KeyPoint name="click_all" toName="image" smartOnly="true"/><Image name="image" value="$image"/>'
        f'<BrushLabels name="mask" toName="image" smart="false">{"".join(labels)}</BrushLabels>'
        '<TextArea name="note" toName="image" perRegion="true" smart="false"/>'
        '<TextArea name="find" toName="image"/></View>'
    )


def rgb() -> np.ndarray:
    return np.kron(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8), np.ones((12, 12, 1), np.uint8))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


@pytest.fixture(scope="module")
def vectors(encoder: TextEncoder) -> LabelVectors:
    vectors = LabelVectors(encoder)
    vectors.start().exception(LOADS_IN_S)
    return vectors


@pytest.fixture(scope="module")
def embedder(vectors: LabelVectors) -> LabelEmbedder:
    return LabelEmbedder(vectors, NAMED)


@pytest.fixture(scope="module")
def missing() -> LabelVectors:
    """Of an encoder that is not there."""
    vectors = LabelVectors(TextEncoder(Path("nowhere"), "0" * 64))
    vectors.start().exception(LOADS_IN_S)
    return vectors


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(rgb()).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "named.safetensors"
    save(path, build_model(NAMED), NAMED)
    return path


Build = Callable[..., SemsamService]


@pytest.fixture
def assembled(photos: Path, weights: Path, vectors: LabelVectors, tmp_path: Path) -> Iterator[Build]:
    """The service over the weights with names, its model loading."""
    with contextlib.ExitStack() as closing:

        def build(using: LabelVectors = vectors, threshold: float = 0.0, **options: Any) -> SemsamService:
            folders: dict[str, Any] = {"local_files_root": photos, "data_dir": tmp_path}
            settings = Settings(model="tiny", weights=weights, name_threshold=threshold, **folders)
            service = assemble(settings, Metrics(), label_vectors=using, **options)
            closing.callback(service.close)
            service.predictor.start()
            return service

        yield build


def ask(service: SemsamService, labels: tuple[str, ...] = LABELS, text: str | None = None) -> list[dict[str, Any]]:
    """The rows of the answer to a click at (21, 30), or to a text."""
    row: dict[str, Any] = {"id": "k", "type": "keypoint", "from_name": "click_all", "to_name": "image"}
    row |= {"is_positive": True, "original_width": 84, "original_height": 60, "value": {"x": 25, "y": 50, "width": 0.2}}
    if text is not None:
        row = {"id": "t", "type": "textarea", "from_name": "find", "to_name": "image", "value": {"text": [text]}}
    tasks = [{"id": 1, "project": 1, "data": {"image": "/data/local-files/?d=a.png"}}]
    body = {"project": "1.2", "label_config": config(*labels), "params": {"context": {"result": [row]}}, "tasks": tasks}
    (answer,) = service.predict_request(body, "r1")
    found: list[dict[str, Any]] = answer["result"]
    return found


def said(rows: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Rank, label and note of every region."""
    notes = {row["id"]: row["value"]["text"][0] for row in rows if row["type"] == "textarea"}
    regions = [row for row in rows if row["type"] == "brushlabels"]
    assert all(notes[row["id"]] == row["meta"]["text"][0] for row in regions)
    return sorted((r["meta"]["candidate"], r["value"]["brushlabels"][0], notes[r["id"]]) for r in regions)


def test_a_region_bears_the_best_label_by_its_alias_and_the_three_best_with_scores_in_its_note(
    assembled: Build, weights: Path, encoder: TextEncoder
) -> None:
    model, _ = load(weights)
    embedding, click = model.encode(rgb()), Click(21, 30)
    output, scales = model.decode(embedding, [click]), model.name_scales().detach()
    texts = encoder.embed(["car", "house", "wheel", "door", "something else"])
    values = ["car", "c7", "wheel", "door", "something else"]
    expected = []
    for c in predict_candidates(model, embedding, Prompt((click,))):
        of_object = scales[0] * (texts @ output.object_embedding[0, c.token])
        of_part = scales[1] * (texts @ output.part_embedding[0, c.token])
        part = torch.tensor(LOG_ODDS_A_LEVEL * (c.level - EVEN_LEVEL)).sigmoid()
        of_object, of_part = of_object + (1 - part).log(), of_part + part.log()
        either = torch.maximum(of_object, of_part)
        logits = torch.stack((of_object[0], of_object[1], of_part[2], of_part[3], either[4]))
        scores = logits.softmax(0)
        best = scores.argsort(descending=True)[:3].tolist()
        note = " | ".join(f"{values[i]} {scores[i]:.2f}" for i in best if i == best[0] or scores[i] >= 0.1)
        expected.append((c.rank, values[best[0]], note))
    assert said(ask(assembled())) == expected


def test_the_order_of_the_labels_in_the_config_does_not_matter(assembled: Build) -> None:
    service = assembled()
    assert said(ask(service)) == said(ask(service, LABELS[::-1]))


def test_below_the_threshold_the_best_label_is_a_guess_and_the_note_says_so(assembled: Build) -> None:
    sure, guessed = (said(ask(assembled(threshold=threshold))) for threshold in (0.0, 1.0))
    for (_, best, _), (_, label, note) in zip(sure, guessed, strict=True):
        assert label == best
        assert re.fullmatch(r"\? [\w ]+ 0\.\d\d( \| [\w ]+ 0\.[1-9]\d){0,2}", note)


@pytest.mark.parametrize(
    "labels",
    [
        ('<Label value="object" kind="object"/>', '<Label value="Part" kind="part"/>'),
        ('<Label value="object"/>', '<Label value="wheel" kind="part"/>'),
    ],
)
def test_labels_that_leave_nothing_to_choose_keep_the_rule(assembled: Build, labels: tuple[str, ...]) -> None:
    for _, label, note in said(ask(assembled(), labels)):
        assert re.fullmatch(rf"{label} \d\.\d\d", note)


def test_a_missing_encoder_leaves_the_choice_to_the_rule_and_is_logged_once(
    assembled: Build, caplog: pytest.LogCaptureFixture
) -> None:
    missing = LabelVectors(TextEncoder(Path("nowhere"), "0" * 64))
    missing.start().exception(LOADS_IN_S)
    service = assembled(using=missing)
    by_rule = said(ask(service))
    assert all(re.fullmatch(r"\w+ \d\.\d\d", note) for _, _, note in by_rule)
    assert {label for _, label, _ in by_rule} <= {"car", "wheel"}  # the first of each kind
    assert by_rule and said(ask(service)) == by_rule
    assert ask(service, text="wheel") == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "by rule" in warnings[0] and "nowhere" in warnings[0]


def test_names_follow_a_switch_to_a_model_that_has_none_or_others_and_back(
    assembled: Build, vectors: LabelVectors, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service, settings = assembled(), Settings()
    predictor = service.predictor
    named = said(ask(service))
    tiny = read_model_config("tiny")
    for name, own in (("nameless", tiny), ("foreign", replace(tiny, name_features=True))):  # in 16 dimensions
        save(tmp_path / name, build_model(own), own)
        assert predictor.switch(partial(read_model, settings, vectors, tmp_path / name))
        assert all(re.fullmatch(r"\w+ \d\.\d\d", note) for _, _, note in said(ask(service))), name
        assert ask(service, text="wheel") == []
    assert "16 dimensions" in caplog.text
    assert predictor.switch(partial(read_model, settings, vectors, weights))
    assert said(ask(service)) == named


def test_a_model_without_names_asks_for_no_vectors(missing: LabelVectors) -> None:
    nameless = LabelEmbedder(missing, read_model_config("tiny"))
    parsed = LabelConfig.parse(config(*LABELS))
    assert not nameless.can_name
    assert nameless.labels(parsed) is None
    assert nameless.wait_for_labels(parsed, LOADS_IN_S) is None
    assert nameless.embed(parsed.labels) is None
    with pytest.raises(TextEncoderError, match="none is given by chance"):
        LabelEmbedder(missing, NAMED).wait_for_labels(parsed, LOADS_IN_S)


class _Held(TextEncoder):
    """The real encoder, which begins to load when told."""

    def __init__(self, begin: threading.Event) -> None:
        super().__init__()
        self.begin = begin

    def embed(self, labels: Sequence[str]) -> torch.Tensor:
        self.begin.wait(LOADS_IN_S)
        return super().embed(labels)


def test_no_click_waits_for_the_encoder_to_load(assembled: Build, missing: LabelVectors) -> None:
    begin = threading.Event()
    loading = LabelVectors(_Held(begin))
    service = assembled(using=loading)
    assert said(ask(service)) == said(ask(assembled(using=missing)))
    begin.set()
    loading.start().exception(LOADS_IN_S)
    assert said(ask(service)) == said(ask(assembled()))


def test_a_photo_without_a_click_is_not_labelled_before_the_encoder_has_read_the_labels(
    assembled: Build, tmp_path: Path
) -> None:
    own = replace(NAMED, generic_queries=6, generic_layers=1)
    save(tmp_path / "generic.safetensors", build_model(own), own)
    begin = threading.Event()
    loading = LabelVectors(_Held(begin))
    service = assembled(using=loading, encoder_wait_s=0.05)
    service.predictor.ready()
    assert service.predictor.switch(partial(read_model, Settings(), loading, tmp_path / "generic.safetensors"))
    tasks = [{"id": 1, "project": 1, "data": {"image": "/data/local-files/?d=a.png"}}]
    body = {"project": "1.2", "label_config": config(*LABELS), "params": {"context": None}, "tasks": tasks}
    (early,) = service.predict_request(body, "r1")
    assert early["result"] == [] and early["model_version"].endswith(UNFINISHED)
    begin.set()
    service.predictor.ready().label_embedder.wait_for_labels(LabelConfig.parse(config(*LABELS)), LOADS_IN_S)
    (late,) = service.predict_request(body, "r2")
    assert not late["model_version"].endswith(UNFINISHED)


def test_a_text_returns_masks_of_that_name_and_says_which(assembled: Build) -> None:
    service = assembled()
    parsed = LabelConfig.parse(config(*LABELS))
    answers = {}
    for text in ("car", " HOUSE", "c7", "Wheel", "door"):
        value = label_of_text(text, parsed).value
        answers[text] = said(ask(service, text=text))
        assert all(label == value and re.search(rf"\b{value} [01]\.\d\d", note) for _, label, note in answers[text])
        assert len(answers[text]) <= 6
    assert any(answers.values())
    assert answers[" HOUSE"] == answers["c7"]


def test_a_part_of_something_is_asked_for_before_the_words_as_they_are(assembled: Build) -> None:
    parsed = LabelConfig.parse(config(*LABELS, '<Label value="cup of tea"/>'))
    car, house, wheel = parsed.labels[:3]
    assert readings("Wheel of car", parsed) == [(wheel, car), (Label("Wheel of car", "Wheel of car"), None)]
    assert readings("roof of c7", parsed)[0] == (Label("roof", "roof", "part"), house)
    for text in ("cup of tea", "wheel", "of car", "car of "):
        assert readings(text, parsed) == [(label_of_text(text, parsed), None)]
    # with a threshold of 0 the best mask is the word's, so that there always is one for the words as they are
    for _, label, note in said(ask(assembled(), text="wheel of car")):
        assert label in ("wheel", "car") and "wheel" in note


def test_an_empty_answer_to_a_text_is_logged_with_its_reason(
    assembled: Build, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = read_model_config("tiny")
    save(tmp_path / "tiny.safetensors", build_model(nameless), nameless)
    settings = Settings(model="tiny", weights=tmp_path / "tiny.safetensors", local_files_root=photos, data_dir=tmp_path)
    with caplog.at_level(logging.INFO):
        with contextlib.closing(build_service(settings, Metrics())) as nameless_service:
            assert ask(nameless_service, text="wheel") == []
        assert "cannot name things" in caplog.text
        assert ask(assembled(threshold=1.0), text="wheel") == []
        assert "no mask that is sure enough to be 'wheel'" in caplog.text
        assert ask(assembled(), text="_ _") == []
        assert "expected at least a word" in caplog.text


def test_what_is_of_something_is_a_part_and_words_that_fit_everything_name_nothing(embedder: LabelEmbedder) -> None:
    parsed = LabelConfig.parse(config(*LABELS, '<Label value="Unknown"/>'))
    assert [label.text for label in specific_labels(parsed.labels)] == [
        "car",
        "House",
        "wheel",
        "door",
        "something else",
    ]
    labels = embedder.labels(parsed)
    assert labels is not None
    assert labels.kinds == ("object", "object", "part", "part", None)


def test_words_that_nearly_mean_the_text_are_not_held_against_it(embedder: LabelEmbedder) -> None:
    bare = LabelConfig.parse(config('<Label value="object"/>'))
    for text, near in (("vehicles", "vehicle"), ("buildings", "building")):
        labels = competing_labels(Label(text, text), bare, embedder)
        assert labels is not None and labels.values[0] == text
        assert near not in labels.values
        assert 1 < len(labels.values) <= len(GENERAL_LABELS)
