"""What is stored changes the next click; restarts, resets, switches and lost pictures do what they should to it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import delete, update
from typer.testing import CliRunner

from backend.adaptation.learner import Learner
from backend.adaptation.lesson_maker import LessonMaker
from backend.adaptation.lessons import TrainingRegion, forget, lesson_keys, switch_learning, training_regions
from backend.cli.main import app
from backend.corrections.archive import ObjectFolder, PhotoArchive
from backend.images import decode_photo
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor, predict_prompt
from backend.metrics import Metrics
from backend.records import StoredRegion
from backend.settings import Settings
from backend.store.database import Store, open_store
from backend.store.tables import lessons, regions
from backend.store.totals import changing
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import read_model_config
from semsam_model.network.model import build_model
from semsam_model.types import Click, LabelSet, Prompt
from tests.backend import stored
from tests.backend.models import loaded
from tests.backend.s3 import serving_s3
from tests.waiting import eventually

KEY = stored.project().key
LABELS = LabelSet(("wheel", "car", "sky"), (None, None, None), np.zeros((3, 0), np.float32))
SOON = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Loaded]:
    """Two models of random weights."""
    folder, config = tmp_path_factory.mktemp("models"), read_model_config("tiny")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save(folder / f"{seed}.safetensors", build_model(config), config)
        found.append(loaded(*load(folder / f"{seed}.safetensors")))
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, embedding_cache_bytes=0)


@pytest.fixture
def photos(settings: Settings) -> PhotoArchive:
    return PhotoArchive(settings.data_dir / "photos")


@pytest.fixture
def park(photos: PhotoArchive) -> list[StoredRegion]:
    return stored.car_park(photos, 3)


@pytest.fixture
def file(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


class Backend:
    """A learner and the predictor that asks it, as in the service."""

    def __init__(self, store: Store, photos: PhotoArchive, settings: Settings, model: Loaded) -> None:
        self.store, self.photos, self.settings, self.model = store, photos, settings, model
        self.predictor = Predictor(lambda: model, cache_bytes=0, metrics=Metrics())
        self.predictor.start()
        self.predictor.ready()
        self.learner = Learner(store, photos, self.predictor, settings)
        self.learner.start()
        assert self.learner.wait(SOON)

    def restarted(self) -> Backend:
        """Another one over the same data folder; this one has stopped."""
        self.learner.stop()
        return Backend(self.store, self.photos, self.settings, self.model)

    def add(self, *added: StoredRegion) -> None:
        """More regions of the project that is stored."""
        with self.store.write() as connection, changing(connection, KEY, {each.key.task for each in added}):
            connection.execute(regions.insert(), [stored.region_row(each) for each in added])

    def answer(self) -> Any:
        """Scores, boxes and names of a click; how many regions they were learned from."""
        model = self.predictor.ready()
        learned = self.learner.learned(KEY, model.version.digest)
        rgb = decode_photo(stored.photo(99), max_bytes=10**6, max_pixels=10**6).rgb
        prompt = Prompt((Click(14, 11),))
        photo = PhotoSource("9" * 64, lambda: rgb)
        candidates = predict_prompt(self.predictor, photo, prompt, reranker=learned, using=model).value
        named = learned.name(candidates, LABELS, 0) if learned else candidates
        return learned.examples if learned else 0, [(c.score, c.bbox, c.names) for c in named]


@pytest.fixture
def backend(file: Store, photos: PhotoArchive, settings: Settings, models: list[Loaded]) -> Iterator[Backend]:
    made = Backend(file, photos, settings, models[0])
    yield made
    made.learner.stop()


def caught_up(backend: Backend) -> Any:
    """The answer once everything in the store is learned."""
    assert backend.learner.wait(SOON)
    return backend.answer()


def test_what_was_accepted_is_learned_and_survives_a_restart_without_the_photos(
    store: Store, photos: PhotoArchive, settings: Settings, models: list[Loaded], park: list[StoredRegion]
) -> None:
    first = Backend(store, photos, settings, models[0])
    untaught = first.answer()
    stored.fill(store, stored.project(), park)
    taught = caught_up(first)
    assert taught[0] == len(park) and taught != untaught
    shutil.rmtree(settings.data_dir / "photos")
    again = first.restarted()
    assert again.answer() == taught
    again.learner.stop()


def test_regions_teach_the_same_in_whatever_order_they_come(
    backend: Backend, file: Store, park: list[StoredRegion]
) -> None:
    stored.fill(file, stored.project(), park[::2])
    half = caught_up(backend)
    backend.add(*park[1::2])
    after_another = caught_up(backend)
    assert half != after_another
    with file.write() as connection, changing(connection, KEY, {each.key.task for each in park}):
        connection.execute(delete(regions))
    assert caught_up(backend)[0] == 0
    backend.add(*park[::-1])
    assert caught_up(backend) == after_another


def test_off_and_forgotten_answer_as_if_nothing_had_been_accepted(
    backend: Backend, file: Store, park: list[StoredRegion]
) -> None:
    untaught = backend.answer()
    stored.fill(file, stored.project(), park)
    taught = caught_up(backend)
    switch_learning(file, KEY, False)
    assert caught_up(backend) == untaught
    switch_learning(file, KEY, True)
    assert caught_up(backend) == taught
    assert forget(file, KEY) == len(park)
    assert caught_up(backend) == untaught
    later = max(each.updated_at for each in park) + (park[-1].updated_at - park[0].updated_at)
    backend.add(replace(park[0], key=replace(park[0].key, region="later"), updated_at=later))
    assert caught_up(backend)[0] == 1


def test_another_model_learns_anew_and_the_first_one_finds_its_lessons_again(
    backend: Backend, file: Store, settings: Settings, models: list[Loaded], park: list[StoredRegion]
) -> None:
    stored.fill(file, stored.project(), park)
    taught = caught_up(backend)
    backend.predictor.switch(lambda: models[1])
    other = caught_up(backend)
    assert other[0] == len(park) and other[1] != taught[1]
    for model in models:
        assert len(lesson_keys(file, KEY, model.version.digest)) == len(park)
    shutil.rmtree(settings.data_dir / "photos")
    backend.predictor.switch(lambda: models[0])
    assert caught_up(backend) == taught


def test_a_region_that_is_deleted_or_changed_teaches_what_it_is_now(
    backend: Backend, file: Store, park: list[StoredRegion]
) -> None:
    stored.fill(file, stored.project(), park)
    caught_up(backend)
    with file.write() as connection, changing(connection, KEY, {each.key.task for each in park}):
        changed = park[0].updated_at.replace(year=2027)
        connection.execute(update(regions).where(regions.c.region == "a").values(labels=["sky"], updated_at=changed))
        connection.execute(update(regions).where(regions.c.region == "b").values(deleted_at=changed))
    now = caught_up(backend)
    left = [each for each in park if each.key.region != "b"]
    assert now[0] == len(left) == len(lesson_keys(file, KEY, backend.model.version.digest))
    assert {each.label for each in training_regions(file, KEY)} == {"sky", "wheel", ""}
    with file.write() as connection:  # learned anew from nothing but the regions, it is the same
        connection.exec_driver_sql("DELETE FROM lessons")
    afresh = backend.restarted()
    assert afresh.answer() == now
    afresh.learner.stop()


def test_a_photo_that_is_not_there_yet_teaches_when_it_is(
    backend: Backend, file: Store, settings: Settings, park: list[StoredRegion]
) -> None:
    stored.fill(file, stored.project(), park)
    aside = settings.data_dir / "aside"
    (settings.data_dir / "photos").rename(aside)
    assert caught_up(backend)[0] == 0
    aside.rename(settings.data_dir / "photos")
    assert caught_up(backend)[0] == len(park)


def test_while_the_object_store_is_away_what_is_known_stays_in_use_and_the_rest_is_learned_once_it_is_back(
    file: Store, settings: Settings, models: list[Loaded], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend.adaptation.learner")
    with serving_s3() as s3:
        photos = PhotoArchive(ObjectFolder("s3://photos/kept", settings))
        park = stored.car_park(photos, 3)
        first = Backend(file, photos, settings, models[0])
        stored.fill(file, stored.project(), park[:4])
        taught = caught_up(first)
        assert taught[0] == 4
        s3.stop()
        again = first.restarted()
        assert again.answer() == taught
        again.add(*park[4:])
        assert caught_up(again) == caught_up(again) == taught
        s3.start()
        eventually(lambda: again.answer()[0] == len(park))  # nobody tells it
        again.learner.stop()
    assert caplog.text.count("not learning from new photos: photo_store: s3://photos/kept/") == 1
    assert caplog.text.count("learning from new photos again") == 1


def test_a_photo_that_never_comes_is_waited_for_without_learning_again(
    backend: Backend,
    file: Store,
    photos: PhotoArchive,
    park: list[StoredRegion],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos.path(park[0].image_sha256).unlink()
    stored.fill(file, stored.project(), park)
    with caplog.at_level(logging.INFO, "backend.adaptation.learner"):
        learned = [caught_up(backend)[0] for _ in range(3)]
        backend.add(*stored.car_park(PhotoArchive(tmp_path / "elsewhere"), 1, first=100))
        learned.append(caught_up(backend)[0])
    assert 0 < learned[0] < len(park)
    assert learned[1:] == learned[:1] * 3
    assert caplog.text.count("learned from") == 1


def test_regions_whose_photo_is_missing_cost_nothing_until_it_comes(
    backend: Backend, file: Store, settings: Settings, park: list[StoredRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = stored.region(np.ones((24, 32), bool), task=99, image_sha256="f" * 64)
    stored.fill(file, stored.project(), [*park, lost])
    caught_up(backend)
    learned, tried = backend.learner.learned(KEY, backend.model.version.digest), list[str]()
    make = LessonMaker.make

    def watched(self: LessonMaker, each: TrainingRegion, *others: Any) -> bytes | None:
        tried.append(each.image_sha256)
        return make(self, each, *others)

    monkeypatch.setattr(LessonMaker, "make", watched)
    backend.add(replace(lost, key=replace(lost.key, region="r2")))
    caught_up(backend)
    assert tried == []
    assert backend.learner.learned(KEY, backend.model.version.digest) is learned  # added up once


def test_kept_lessons_that_cannot_be_read_are_made_anew(
    backend: Backend, file: Store, park: list[StoredRegion]
) -> None:
    stored.fill(file, stored.project(), park)
    taught = caught_up(backend)
    with file.write() as connection:
        connection.execute(update(lessons).values(lesson=b"of an older release"))
    again = backend.restarted()
    assert again.answer() == taught
    again.learner.stop()


def test_the_project_that_was_clicked_last_is_learned_first(
    file: Store,
    photos: PhotoArchive,
    park: list[StoredRegion],
    settings: Settings,
    models: list[Loaded],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in (1, 2, 3):
        mine = [replace(each, key=replace(each.key, project=number)) for each in park[:2]]
        stored.fill(file, stored.project(number=number), mine)
    predictor = Predictor(lambda: models[0], cache_bytes=0, metrics=Metrics())
    predictor.start()
    predictor.ready()
    learner = Learner(file, photos, predictor, settings)
    assert learner.learned(stored.project(number=3).key, models[0].version.digest) is None  # a click
    with caplog.at_level(logging.INFO, "backend.adaptation.learner"):
        learner.start()
        assert learner.wait(SOON)
    learner.stop()
    order = [record.args[0].project for record in caplog.records if "learned from" in record.msg]  # type: ignore
    assert order == [3, 1, 2]


def test_lessons_that_are_not_held_in_memory_are_read_again_when_there_is_more_to_learn(
    backend: Backend, file: Store, park: list[StoredRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.adaptation.learner.HELD", 1)
    stored.fill(file, stored.project(), park[:-1])
    caught_up(backend)
    other = [replace(each, key=replace(each.key, project=2)) for each in park]
    stored.fill(file, stored.project(number=2), other)
    caught_up(backend)
    assert not backend.learner._projects[KEY].lessons
    shutil.rmtree(backend.settings.data_dir / "photos" / park[0].image_sha256[:2])  # not looked at again
    backend.add(park[-1])
    assert caught_up(backend)[0] == len(park)


def test_only_regions_that_change_something_get_a_lesson(
    backend: Backend, file: Store, park: list[StoredRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semsam_model.adaptation.lessons.PROMPTS", 2)
    monkeypatch.setattr("semsam_model.adaptation.lessons.PER_LABEL", 1)
    stored.fill(file, stored.project(), park)
    newest = [each.label for each in training_regions(file, KEY)]
    assert caught_up(backend)[0] == len(lesson_keys(file, KEY, backend.model.version.digest))
    assert caught_up(backend)[0] == 2 + len(set(newest[:-2]) - {*newest[-2:], ""})


def test_a_region_that_fits_no_photo_costs_the_others_nothing(
    backend: Backend, file: Store, park: list[StoredRegion], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = stored.region(np.ones((5, 5), bool), image_sha256=park[0].image_sha256, name="wrong")
    stored.fill(file, stored.project(), [*park, wrong])
    assert caught_up(backend)[0] == len(park)
    assert "region wrong of task 1: nothing is learned from it" in caplog.text


def test_the_command_switches_and_resets_a_project(
    settings: Settings, file: Store, park: list[StoredRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMSAM_DATA_DIR", str(settings.data_dir))
    stored.fill(file, stored.project(), park)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["learner", *words, "--project", "1"])
        assert result.exit_code == 0, result.output
        return result.output

    assert f": on, {len(park)} regions to learn from\n" in run("show")
    assert "learning is off" in run("off") and ": off, " in run("show")
    assert "learning is on" in run("on")
    assert "0 lessons forgotten" in run("reset")
    assert ": on, 0 regions to learn from, since 2026-03-01" in run("show")
