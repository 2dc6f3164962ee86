"""A concept model in the service and in `semsam batch`: what it is asked, what its answers are, who answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend.batch.annotator import Annotator
from backend.batch.run import read_config
from backend.cli.main import app
from backend.inference.concepts import asked_by_labels, asked_by_text
from backend.inference.label_embeddings import LabelVectors
from backend.inference.loaded import answering_name, read_model
from backend.inference.text_prompt import readings
from backend.label_studio.label_config import LabelConfig
from backend.settings import Settings
from semsam_model.checkpoints.header import read_header
from semsam_model.errors import CheckpointError
from semsam_model.inference.concept_model import Query
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Box, Concept
from tests.backend.photo_studio import NAMED, Files, body, masks, photo, png, serving
from tests.backend.preannotating import built
from tests.backend.preannotating import settings as preannotating
from tests.semsam_model.engines.tiny_concepts import written
from tests.semsam_model.engines.tiny_sams import written as sam_written

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="Tier" predicted_values="cat, dog"/><Label value="car" alias="C1" kind="object"/>'
    '<Label value="wheel" of="car"/><Label value="roof" of="house"/><Label value="red" kind="part"/>'
    '<Label value="object" kind="object"/></BrushLabels></View>'
)
ANIMAL, CAR = Concept("Tier", ("cat", "dog")), Concept("C1", ("car",))
FIND = {"id": "t", "type": "textarea", "from_name": "find", "to_name": "image", "value": {"text": ["window of house"]}}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("concepts")
    return {family: f"transformers:{written(family, folder / family)}" for family in ("owlv2", "sam3")}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Files()) as url:
        yield url


def test_labels_ask_by_what_a_model_calls_them_and_parts_inside_their_wholes() -> None:
    animal, car, wheel, roof, red = asked_by_labels(LabelConfig.parse(CONFIG))  # "object" names nothing
    assert (animal, car) == (ANIMAL, CAR)
    assert wheel == Concept("wheel", ("wheel",), "part", (CAR,))
    assert roof == Concept("roof", ("roof",), "part", (Concept("house", ("house",)),))
    assert red == Concept("red", ("red",), "part", (ANIMAL, CAR))


def test_a_text_asks_for_a_label_of_the_project_or_for_itself() -> None:
    config = LabelConfig.parse(CONFIG)
    for text, wanted in (
        ("Car", [CAR]),
        ("wheel", [Concept("wheel", ("wheel",), "part", (CAR,))]),
        ("old tree", [Concept("old tree", ("old tree",))]),
        ("door of car", [Concept("door", ("door",), "part", (CAR,)), Concept("door of car", ("door of car",))]),
    ):
        assert [asked_by_text(label, whole, config) for label, whole in readings(text, config)] == wanted


def test_the_service_and_batch_answer_by_words_and_name_all_who_answered(
    server: str, spec: dict[str, str], region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = f"transformers:{sam_written('sam', tmp_path / 'sam')}"
    chosen = preannotating(server, region_weights, tmp_path, concepts=spec["owlv2"], engine=engine)
    with caplog.at_level(logging.INFO), built(chosen) as service:
        name = service.predictor.ready().name
        (regions,) = service.predict_request(body(None, "a.png", config=NAMED), "r1")
        config = NAMED.replace("</View>", '<TextArea name="find" toName="image"/></View>')
        (found,) = service.predict_request(body([FIND], "a.png", config=config), "r2")
    assert "concepts owlv2-" in caplog.text and " MB of weights" in caplog.text
    assert name.startswith("sam-") and "+tiny-" in name and "@owlv2-" in name
    assert name == regions["model_version"] == found["model_version"]
    assert name == answering_name(chosen, read_header(region_weights).version.version)
    assert masks(regions) and masks(found)
    labels = {row["value"]["brushlabels"][0] for row in regions["result"] if row["type"] == "brushlabels"}
    assert labels <= {"house", "sky", "window"}
    (score, *_) = [row["meta"]["concept_score"] for row in regions["result"] if row["type"] == "brushlabels"]
    assert 0 <= score <= 1
    assert Annotator(chosen, region_weights, read_config(NAMED))(png(photo(0))) == regions  # `semsam batch`


def test_sam_3_is_shown_what_is_accepted_in_the_photo(
    server: str, spec: dict[str, str], region_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = preannotating(server, region_weights, tmp_path, concepts=spec["sam3"])
    house = (Box(4, 4, 40, 40),)
    asked: list[Query] = []
    with built(chosen) as service:
        concepts = service.predictor.ready().concepts
        assert concepts is not None
        find = concepts.model.find

        def noted(look: Any, queries: list[Query], least: float) -> Any:
            asked.extend(queries)
            return find(look, queries, least)

        monkeypatch.setattr(concepts.model, "find", noted)
        monkeypatch.setattr(type(service.events), "store_key", lambda *_: "key")
        monkeypatch.setattr(service.learner, "examples", lambda key, task, size: {"house": house} if task == 1 else {})
        service.predict_request(body(None, "a.png", "b.png", config=NAMED), "r1")
    assert {query for query in asked if query.words == "house"} == {Query("house", house), Query("house")}
    assert {query.examples for query in asked if query.words == "sky"} == {()}


def test_a_model_that_is_not_there_is_an_error_or_the_describer_finds_what_is_in_a_photo(
    server: str, region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(model="tiny", weights=region_weights, concepts=f"transformers:{tmp_path / 'nothing'}")
    vectors = LabelVectors(TextEncoder())
    with pytest.raises(CheckpointError, match=r"concepts .*cannot be loaded"):
        read_model(settings, vectors, region_weights)
    loaded = read_model(replace(settings, engine_fallback=True), vectors, region_weights)
    assert loaded.concepts is None and loaded.name == read_header(region_weights).version.version
    assert "SEMSAM_ENGINE_FALLBACK" in caplog.text


def test_segment_asks_for_its_labels(
    spec: dict[str, str], region_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMSAM_CONCEPTS", spec["owlv2"])
    monkeypatch.setenv("SEMSAM_DATA_DIR", str(tmp_path))
    (tmp_path / "a.png").write_bytes(png(photo(0)))
    words = ["--label", "car", "--part", "wheel", "--model", "tiny", "--weights", str(region_weights), "--most", "5"]
    result = CliRunner().invoke(app, ["segment", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words])
    assert result.exit_code == 0, result.output
    said = (tmp_path / "out" / "candidates.json").read_text()
    assert '"concepts": "owlv2-' in said and '"car"' in said
