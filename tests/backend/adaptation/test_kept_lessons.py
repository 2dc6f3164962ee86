"""Lessons in the store: each is of a region and a model, and those of an older database are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from backend.adaptation.lessons import KeptLesson, drop_lessons, forget, keep_lesson, kept_lessons, lesson_keys
from backend.records import ProjectKey, RegionKey
from backend.store.database import Store
from tests.backend.stored import BEGAN, ORIGIN

FIRST, SECOND = "1" * 64, "2" * 64  #: digests of models
PROJECT = ProjectKey(ORIGIN, 1)
REGIONS = [RegionKey(ORIGIN, 1, task, 10 * task + more, name) for task in (1, 2) for more in (0, 1) for name in "ab"]
ELSEWHERE = [replace(each, project=2) for each in REGIONS[:3]]
ON_ANOTHER_SERVER = [replace(each, origin="http://other:8080") for each in REGIONS[:2]]


def taught(model: str, key: RegionKey) -> KeptLesson:
    return KeptLesson(BEGAN, f"what {key} teaches {model}".encode())


def teach(store: Store) -> None:
    for keys in (REGIONS, ELSEWHERE, ON_ANOTHER_SERVER):
        for model in (FIRST, SECOND):
            for key in keys:
                keep_lesson(store, key, model, taught(model, key))


def assert_kept(store: Store, keys: Sequence[RegionKey], model: str) -> None:
    """Of all the project's regions, these have their lesson."""
    assert set(lesson_keys(store, PROJECT, model)) == set(keys)
    assert kept_lessons(store, REGIONS, model) == {key: taught(model, key) for key in keys}


def assert_elsewhere_untouched(store: Store) -> None:
    for keys in (ELSEWHERE, ON_ANOTHER_SERVER):
        for model in (FIRST, SECOND):
            assert kept_lessons(store, keys, model) == {key: taught(model, key) for key in keys}


def test_a_lesson_is_of_one_region_and_one_model(store: Store) -> None:
    teach(store)
    assert_kept(store, REGIONS, FIRST)
    assert_kept(store, REGIONS, SECOND)
    assert_elsewhere_untouched(store)


def test_a_region_that_changed_has_its_last_lesson_only(store: Store) -> None:
    teach(store)
    later = KeptLesson(BEGAN.replace(year=BEGAN.year + 1), b"another one")
    keep_lesson(store, REGIONS[0], FIRST, later)
    assert kept_lessons(store, REGIONS[:1], FIRST) == {REGIONS[0]: later}
    assert_kept(store, REGIONS, SECOND)


def test_dropped_lessons_go_for_every_model_and_no_others_go(store: Store) -> None:
    teach(store)
    drop_lessons(store, REGIONS[:3])
    assert_kept(store, REGIONS[3:], FIRST)
    assert_kept(store, REGIONS[3:], SECOND)
    assert_elsewhere_untouched(store)


def test_forgetting_a_project_removes_its_lessons_and_no_others(store: Store) -> None:
    teach(store)
    assert forget(store, PROJECT) == 2 * len(REGIONS)
    assert_kept(store, [], FIRST)
    assert_elsewhere_untouched(store)
    keep_lesson(store, REGIONS[0], FIRST, taught(FIRST, REGIONS[0]))
    assert_kept(store, REGIONS[:1], FIRST)


def test_lessons_of_an_older_database_are_found(store: Store) -> None:
    teach(store)
    with store.write() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "backend.store:migrations")
        command.downgrade(config, "0012")
        names = set(connection.execute(text("SELECT origin, project, model FROM lessons")).all())
        assert len(names) == 6, "with project and model by name"
        command.upgrade(config, "head")
    assert_kept(store, REGIONS, FIRST)
    assert_kept(store, REGIONS, SECOND)
    assert_elsewhere_untouched(store)
