"""An engine in front of the describer, in the service: who answered, what was learned, what does not load."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.adaptation.learner import Learner
from backend.adaptation.lessons import kept_lessons, lesson_keys
from backend.batch.annotator import Annotator
from backend.batch.run import read_config
from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import stream_regions
from backend.errors import SettingsError
from backend.export.writer import provenance
from backend.inference.label_embeddings import LabelVectors
from backend.inference.loaded import Loaded, answering_name, read_model, settings_engine
from backend.inference.predictor import PhotoSource, Predictor, predict_prompt
from backend.metrics import Metrics
from backend.settings import Settings
from backend.store.database import open_store
from semsam_model.checkpoints.checkpoint import save
from semsam_model.checkpoints.header import read_header
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.inference.engine import DescribedEmbedding
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import Click, Prompt
from tests.backend import stored
from tests.backend.annotations import KEY, annotation, event
from tests.backend.corrections.test_inbox import receive
from tests.backend.photo_studio import NAMED, Files, body, keypoint, masks, photo, png, serving
from tests.backend.preannotating import built
from tests.backend.preannotating import settings as preannotating
from tests.semsam_model.engines.tiny_sams import written
from tests.semsam_model.networks import structured

CLICK = Prompt((Click(21, 30),))
SETUP = {"project": "1.17", "schema": NAMED, "hostname": "http://labelstudio:8080", "access_token": "t"}
SOURCE = PhotoSource("8" * 64, lambda: photo(0))


@pytest.fixture(scope="module")
def sams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("engines")
    return {family: f"transformers:{written(family, folder / family)}" for family in ("sam", "sam2")}


def read(settings: Settings, weights: Path) -> Loaded:
    return read_model(settings, LabelVectors(TextEncoder()), weights)


def predictor_of(loaded: Loaded, metrics: Metrics | None = None) -> Predictor:
    made = Predictor(lambda: loaded, cache_bytes=10**9, metrics=metrics or Metrics())
    made.start()
    made.ready()
    return made


def test_a_prediction_names_engine_and_describer_and_each_looks_at_a_photo_once(
    sams: dict[str, str], region_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        loaded = read(Settings(model="tiny", engine=sams["sam2"]), region_weights)
    describer = read_header(region_weights).version
    assert loaded.name == f"{loaded.engine.version}+{describer.version}" and loaded.engine.name == "sam2"
    assert "MB of weights; described by tiny-" in caplog.text
    predictor = predictor_of(loaded)
    first = predict_prompt(predictor, SOURCE, CLICK)
    assert first.version == loaded.name and not first.timings.cache_hit
    assert all(candidate.name_embedding is not None for candidate in first.value)
    again = predict_prompt(predictor, PhotoSource("8" * 64, lambda: pytest.fail("looked twice")), CLICK)
    assert [c.bbox for c in again.value] == [c.bbox for c in first.value]

    # another describer comes: the engine's look stays, only the new describer looks
    other = replace(loaded, describer_version=replace(describer, digest="b" * 64))
    assert predictor.switch(lambda: other)
    looked: list[int] = []

    def counted() -> np.ndarray:
        looked.append(1)
        return photo(0)

    after = predictor.run(PhotoSource("8" * 64, counted), lambda model, embedding, _: embedding)
    assert isinstance(after.value, DescribedEmbedding) and len(looked) == 1 and "encode" in after.timings.stages
    before = loaded.parts.engine.encode(photo(0)).nbytes
    assert after.value.masks.nbytes == before


def test_switching_the_engine_loses_no_lesson(sams: dict[str, str], region_weights: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model="tiny", embedding_cache_bytes=0)
    archive = PhotoArchive(tmp_path / "photos")
    with contextlib.closing(open_store(settings)) as store:
        stored.fill(store, stored.project(), stored.car_park(archive, 2))
        key, learned, kept = stored.project().key, [], []
        for engine in (None, sams["sam"], sams["sam2"], None):
            loaded = read(replace(settings, engine=engine), region_weights)
            learner = Learner(store, archive, predictor_of(loaded), settings)
            learner.start()
            try:
                assert learner.wait(60)
                found = learner.learned(key, loaded.described_by.digest)
                assert found is not None
                learned.append(found.examples)
                model = loaded.described_by.digest
                lessons = kept_lessons(store, lesson_keys(store, key, model), model)
                kept.append({each: lesson.data for each, lesson in lessons.items()})
                answer = predict_prompt(predictor_of(loaded), SOURCE, CLICK, reranker=found)
                assert answer.value and all(c.region is not None for c in answer.value)
            finally:
                learner.stop()
    assert learned[0] > 0 and len(set(learned)) == 1
    assert all(each == kept[0] for each in kept)  # none was made again


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Files()) as url:
        yield url


def test_a_service_with_an_engine_names_clicks_and_annotates_photos_without_one(
    server: str, sams: dict[str, str], region_weights: Path, tmp_path: Path
) -> None:
    chosen = preannotating(server, region_weights, tmp_path, engine=sams["sam"])
    with built(chosen) as service:
        service.predictor.ready()
        (answer,) = service.predict_request(body([keypoint(25, 50)], "a.png", config=NAMED), "r1")
        (regions,) = service.predict_request(body(None, "a.png", config=NAMED), "r2")
    assert answer["model_version"] == regions["model_version"] and "+tiny-" in answer["model_version"]
    assert masks(answer) and masks(regions)
    assert Annotator(chosen, region_weights, read_config(NAMED))(png(photo(0))) == regions  # `semsam batch`
    assert answering_name(chosen, read_header(region_weights).version.version) == regions["model_version"]


def test_all_that_becomes_of_an_answer_names_engine_and_describer(
    server: str, sams: dict[str, str], region_weights: Path, tmp_path: Path
) -> None:
    chosen = preannotating(server, region_weights, tmp_path, engine=sams["sam"])
    with built(chosen) as service:
        loaded = service.predictor.ready()
        (answer,) = service.predict_request(body([keypoint(25, 50)], "a.png"), "r1")
        row = next(row for row in answer["result"] if row["type"] == "brushlabels")
        receive(service.store, event("ANNOTATION_CREATED", annotation=annotation(3, [row])))
        (region,) = stream_regions(service.store, KEY)
        said = [answer["model_version"], row["meta"]["model_version"], region.model_version]
        said += [
            provenance(region)["model_version"],
            service.health()["model_version"],
            service.setup(SETUP)["model_version"],
        ]
        assert set(said) == {f"{loaded.engine.version}+{loaded.described_by.version}"}
        assert service.registry.live().version.digest == loaded.described_by.digest  # what is trained and activated


def test_published_weights_are_described_by_the_embedded_model(tmp_path: Path) -> None:
    config = replace(read_model_config("tiny"), name="swin_t")
    weights = tmp_path / "swin_t.safetensors"
    save(weights, structured(config), config)
    loaded = read(Settings(model="swin_t", weights=weights), weights)
    assert loaded.version == loaded.engine == read_header(weights).version
    assert loaded.name.startswith("swin_t-") and "+mobile-" in loaded.name
    assert loaded.label_embedder.can_name and loaded.describer.config.generic_queries
    candidates = predict_prompt(predictor_of(loaded), SOURCE, CLICK).value
    assert candidates and all(candidate.name_embedding is not None for candidate in candidates)


def test_an_engine_that_does_not_load_is_an_error_or_falls_back_where_that_was_asked_for(
    region_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(model="tiny", weights=region_weights, engine=f"transformers:{tmp_path / 'nothing'}")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read(settings, region_weights)
    loaded = read(replace(settings, engine_fallback=True), region_weights)
    assert loaded.name == read_header(region_weights).version.version
    assert "SEMSAM_ENGINE_FALLBACK" in caplog.text
    with pytest.raises(SettingsError, match="swin_t would answer nothing"):
        settings_engine(Settings(model="swin_t", engine="transformers:x"))


def test_the_settings_engine_is_loaded_once(sams: dict[str, str], region_weights: Path) -> None:
    settings = Settings(model="tiny", weights=region_weights, engine=sams["sam"])
    reading: Any = partial(
        read_model, settings, LabelVectors(TextEncoder()), region_weights, engines=settings_engine(settings)
    )
    assert reading().parts.engine is reading().parts.engine
