"""What a store keeps: webhooks with photos, lessons, versions, and a database of the first schema."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy import func, select

from backend.adaptation.learner import Learner
from backend.adaptation.lessons import kept_lessons, training_regions
from backend.corrections.archive import PhotoArchive
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.queries import stream_regions
from backend.inference.predictor import Predictor
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
from backend.records import RegionKey
from backend.settings import Settings
from backend.store import database
from backend.store.database import Store
from backend.store.tables import lessons, projects
from backend.store.tables import regions as region_rows
from backend.versions.registry import Registry
from semsam_model.adaptation.lessons import Lesson
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.header import read_header
from tests.backend import annotations as made
from tests.backend import stored
from tests.backend.models import loaded
from tests.backend.postgres import new_database
from tests.endurance.killed.work import Say, Work


class Ingest(Work):
    """Webhooks, acknowledged and worked in, with the photos of their tasks."""

    def do(self, number: int, say: Say) -> None:
        archive = PhotoArchive(self.folder / "photos")
        with self.store() as store:
            for step in range(50):
                task = 100 * number + step
                rows = [made.brush_row("a", made.square(1, 1, 5)), made.brush_row("b", made.square(9, 9, 5))]
                body = made.event("ANNOTATION_CREATED", annotation=made.annotation(task, rows, task=task))
                enqueue(store, parse_webhook(body).to_event(made.ORIGIN))
                say(task)
                if step % 3 == 2:
                    process_inbox(store)
                    say(archive.keep(stored.photo(task)))

    def check(self, said: list[Any], new: list[Any]) -> None:
        with self.store() as store:
            process_inbox(store)
            found = Counter(region.key for region in stream_regions(store, made.KEY))
        assert set(found.values()) <= {1}
        by_task = Counter(key.task for key in found)
        assert set(by_task.values()) <= {2}, "half of an annotation"
        assert {each for each in said if isinstance(each, int)} <= set(by_task)
        archive = PhotoArchive(self.folder / "photos")
        for sha256 in (each for each in said if isinstance(each, str)):
            assert hashlib.sha256(archive.path(sha256).read_bytes()).hexdigest() == sha256
        archive.clear_away(older_than=timedelta(seconds=-1))
        for path in (self.folder / "photos").rglob("*"):
            assert path.is_dir() or hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path


class Learning(Work):
    """The thread that learns from what was accepted."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.model = loaded(*load(self.weights))
        self.settings = Settings(data_dir=self.folder, embedding_cache_bytes=0)
        archive = PhotoArchive(self.folder / "photos")
        with self.store() as store:
            stored.fill(store, stored.project(), stored.car_park(archive, 6))

    def _learn(self, store: Store) -> None:
        predictor = Predictor(lambda: self.model, cache_bytes=0, metrics=Metrics())
        predictor.start()
        predictor.ready()
        learner = Learner(store, PhotoArchive(self.folder / "photos"), predictor, self.settings)
        learner.start()
        assert learner.wait(60)
        learner.stop()

    def do(self, number: int, say: Say) -> None:
        with self.store() as store:
            if not self._missing(store):
                with store.write() as connection:
                    connection.execute(lessons.delete())
            self._learn(store)
            say("learned")

    def _missing(self, store: Store) -> set[RegionKey]:
        """Regions without a lesson; those that are there can be read."""
        wanted = {each.key for each in training_regions(store, stored.project().key)}
        kept = kept_lessons(store, sorted(wanted), self.model.described_by.digest)
        for each in kept.values():
            Lesson.from_bytes(each.data, label=None)
        return wanted - set(kept)

    def check(self, said: list[Any], new: list[Any]) -> None:
        with self.store() as store:
            missing = self._missing(store)
            assert not (new and missing), missing


class Switching(Work):
    """Versions registered, made live, rolled back, pruned."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.pruned = 0  #: of what was said, how much came before versions were pruned
        self.others = []
        for seed in range(3):
            model, _ = load(self.weights)
            next(model.parameters()).data.mul_(1 + (seed + 1) / 1000)
            self.others.append(self.folder / f"{seed}.safetensors")
            save(self.others[-1], model, model.config)

    def registry(self, store: Store) -> Registry:
        return Registry(store, self.folder / "versions", self.weights, read_header(self.weights))

    def do(self, number: int, say: Say) -> None:
        chance = random.Random(number)
        with self.store() as store:
            registry = self.registry(store)
            while True:
                step = chance.choice(["register", "activate", "activate", "rollback", "prune"])
                if step == "register":
                    say(["kept", registry.register(chance.choice(self.others), parent=registry.base.version).version])
                elif step == "activate":
                    some = [each for each in registry.all() if each.pruned_at is None]
                    if some:
                        say(["live", registry.activate(chance.choice(some).version).number])
                elif step == "rollback":
                    if len(registry.stack()) > 1:
                        say(["live", registry.rollback().number])
                else:
                    registry.prune(steps=5)

    def check(self, said: list[Any], new: list[Any]) -> None:
        with self.store() as store:
            registry = self.registry(store)
            live = registry.live()
            assert live.number >= max((number for what, number in said if what == "live"), default=0)
            assert not registry.problems(live.version)
            known = {each.version: each for each in registry.all()}
            assert {name for what, name in said[self.pruned :] if what == "kept"} <= set(known)
            for each in known.values():
                assert each.pruned_at is not None or not registry.problems(each)
            registry.prune(steps=5, at=datetime.now(UTC) + timedelta(hours=2))
            self.pruned = len(said)
            there = {path.name for path in (self.folder / "versions").glob("*")}
            assert there <= {each.version for each in registry.all() if each.pruned_at is None}, there


class Migration(Work):
    """A database of the first schema, brought to the newest."""

    rows = 200

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.server = self.url.replace(f"@/{sqlalchemy.make_url(self.url).database}", "@/")
        self.old = f"sqlite:///{self.folder}/old.db" if self.url.startswith("sqlite") else new_database(self.server)
        engine = database._create_engine(sqlalchemy.make_url(self.old))
        with engine.connect() as connection, connection.begin():
            config = Config()
            config.set_main_option("script_location", str(database._MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            first = sqlalchemy.MetaData()
            first.reflect(connection)
            key = {"origin": made.ORIGIN, "project": 7}
            row = key | {"title": "cars", "label_config": made.CONFIG, "updated_at": made.NOON}
            connection.execute(first.tables["projects"].insert(), [row])
            filled = []
            for number in range(self.rows):
                filled.append(
                    key
                    | {"task": number, "annotation": number, "region": "a", "labels": ["x"], "mask": "0", "width": 4}
                    | {"height": 4, "outcome": "drawn", "ground_truth": False, "updated_at": made.NOON}
                    | {"image_url": f"data:image/png;base64,{'A' * 100}{number}"}
                )
            connection.execute(first.tables["regions"].insert(), filled)
        engine.dispose()
        self.migrated = self._copy(0)

    def _copy(self, number: int) -> str:
        if self.old.startswith("sqlite"):
            path = self.folder / f"copy{number}.db"
            with closing(sqlite3.connect(self.folder / "old.db")) as old, closing(sqlite3.connect(path)) as new:
                old.backup(new)
            return f"sqlite:///{path}"
        url = new_database(self.server)
        name, old = (sqlalchemy.make_url(each).database for each in (url, self.old))
        engine = sqlalchemy.create_engine(
            sqlalchemy.make_url(self.url).set(drivername="postgresql+psycopg", database="postgres"),
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {old}")
        engine.dispose()
        return url

    def do(self, number: int, say: Say) -> None:
        Store.open(self.migrated).close()
        say("migrated")

    def check(self, said: list[Any], new: list[Any]) -> None:
        with closing(Store.open(self.migrated)) as store, store.read() as connection:
            assert connection.scalar(select(func.count()).select_from(region_rows)) == self.rows
            assert connection.scalar(select(func.count()).select_from(projects)) == 1
        if self.migrated.startswith("sqlite"):
            for path in self.folder.glob("copy*"):
                path.unlink()
        self.migrated = self._copy(random.randrange(10**6))
