"""Processes that are killed at random moments of their work, again and again, on one store.

    python -m tests.endurance.killed SERVER FOLDER SECONDS SEED WEIGHTS REGION_WEIGHTS

SERVER is a PostgreSQL, or "sqlite". Each kind of work has SECONDS, and at least three rounds. A round is a child of its
own, which says what it has done after it is acknowledged. After each, what all had said is looked for. Prints, as JSON,
how many rounds each kind had, how many of them were killed, and how often something was said.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy import func
from sqlalchemy import select as query

from backend.adaptation.learner import Learner
from backend.adaptation.lessons import kept_lessons, training_regions
from backend.batch.local import in_this_process
from backend.batch.run import read_config
from backend.batch.run import run as run_batch
from backend.batch.sources import task_items
from backend.corrections.inbox import enqueue, process_inbox
from backend.corrections.photos import PhotoArchive
from backend.corrections.queries import stream_regions
from backend.export.run import export
from backend.inference.predictor import Predictor
from backend.label_studio.client import LabelStudio
from backend.label_studio.events import parse_webhook
from backend.metrics import Metrics
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
from tests.backend.batch.studio_with_photos import Studio, at_work
from tests.backend.models import loaded
from tests.backend.postgres import new_database
from tests.backend.preannotating import settings as batch_settings

Say = Callable[[object], None]


class Work:
    """One kind of work: `do` is killed; `check` is given what was said in all rounds."""

    longest_s = 0.3  #: until the kill, from when the child begins

    def __init__(self, url: str, folder: Path, weights: Path) -> None:
        self.url, self.folder, self.weights = url, folder, weights

    def store(self) -> closing[Store]:
        return closing(Store.open(self.url))

    def do(self, number: int, say: Say) -> None:
        raise NotImplementedError

    def check(self, said: list[Any]) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Close what was opened for all rounds."""


class Ingest(Work):
    """Webhooks, acknowledged and worked in, with the photos of their tasks."""

    longest_s = 1.0

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

    def check(self, said: list[Any]) -> None:
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

    longest_s = 1.5

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
            if number % 4 == 0:
                with store.write() as connection:
                    connection.execute(lessons.delete())
            self._learn(store)
            say("learned")

    def check(self, said: list[Any]) -> None:
        key = stored.project().key
        with self.store() as store:
            wanted = {each.key for each in training_regions(store, key)}
            kept = kept_lessons(store, sorted(wanted), self.model.described_by.digest)
            for each in kept.values():
                Lesson.from_bytes(each.data, label=None)
            if len(said) and len(said) % 5 == 0:
                self._learn(store)
                assert set(kept_lessons(store, sorted(wanted), self.model.described_by.digest)) == wanted


class Switching(Work):
    """Versions registered, made live, rolled back, pruned."""

    longest_s = 1.0

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

    def check(self, said: list[Any]) -> None:
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


class Export(Work):
    """An export into one folder, of two states of a project in turn."""

    longest_s = 0.2

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.photos = PhotoArchive(self.folder / "photos")
        self.states = [stored.car_park(self.photos, count) for count in (12, 20)]
        self.whole = []
        for number, regions in enumerate(self.states):
            out = self.folder / f"whole{number}"
            export(regions, stored.project(), self.photos, out, form="coco")
            self.whole.append(_content(out))

    def _export(self, state: int) -> None:
        export(self.states[state], stored.project(), self.photos, self.folder / "out", form="coco", checkpoint=10)

    def do(self, number: int, say: Say) -> None:
        self._export(number % 2)
        say(number % 2)

    def check(self, said: list[Any]) -> None:
        out = self.folder / "out"
        if len(said) % 2:
            self._export(said[-1])
            assert _content(out) == self.whole[said[-1]]
        elif (out / "export.json").is_file() and not (out / ".export").exists():
            assert _content(out) in self.whole


class Batch(Work):
    """`semsam batch` on a project of a made Label Studio: each task gets one prediction."""

    longest_s = 5.0  #: the model and the text encoder are loaded first

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.studio = Studio(*["a.png", "b.png"] * 10)
        self.open = ExitStack()
        self.settings = batch_settings(self.open.enter_context(at_work(self.studio)), self.weights, self.folder)
        self.version = read_header(self.weights).version.version

    def do(self, number: int, say: Say) -> None:
        config = read_config(self.studio.config)
        items = task_items(LabelStudio(self.settings), 1, config, self.version)
        with in_this_process(self.settings, self.weights, config) as annotate:
            say(run_batch(items, annotate).written)

    def check(self, said: list[Any]) -> None:
        found = self.studio.versions()
        assert all(each in ([], [self.version]) for each in found.values()), found
        if all(found.values()):
            self.studio.predictions = {number: [] for number in found}

    def end(self) -> None:
        self.open.close()


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Migration(Work):
    """A database of the first schema, brought to the newest."""

    longest_s = 0.6
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

    def check(self, said: list[Any]) -> None:
        with closing(Store.open(self.migrated)) as store, store.read() as connection:
            assert connection.scalar(query(func.count()).select_from(region_rows)) == self.rows
            assert connection.scalar(query(func.count()).select_from(projects)) == 1
        if self.migrated.startswith("sqlite"):
            for path in self.folder.glob("copy*"):
                path.unlink()
        self.migrated = self._copy(random.randrange(10**6))


KINDS: dict[str, type[Work]] = {
    "ingest": Ingest,
    "learning": Learning,
    "switching": Switching,
    "export": Export,
    "batch": Batch,
    "migration": Migration,
}


def play(work: Work, number: int, after_s: float) -> tuple[list[Any], bool]:
    """(what a child said, whether it was killed)."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Store.open(work.url).close()  # how long that takes is not of interest
            os.write(told, b'"begun"\n')
            work.do(number, lambda what: os.write(told, json.dumps(what).encode() + b"\n"))
            code = 0
        finally:
            os._exit(code)
    os.close(told)
    content, kill_at = b"", None
    while True:
        left = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([heard], [], [], left)
        if not ready:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            kill_at = time.monotonic() + 60
            continue
        piece = os.read(heard, 65536)
        if not piece:
            break
        content += piece
        kill_at = kill_at or time.monotonic() + after_s
    os.close(heard)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"round {number} failed")
    return [json.loads(line) for line in content.splitlines()][1:], os.WIFSIGNALED(status)


def main(server: str, folder: str, seconds: str, seed: str, weights: str, region_weights: str) -> None:
    found = {}
    for kind, make in KINDS.items():
        mine = Path(folder) / kind
        mine.mkdir()
        url = f"sqlite:///{mine}/semsam.db" if server == "sqlite" else new_database(server)
        work = make(url, mine, Path(region_weights if make is Batch else weights))
        chance, said, killed, rounds = random.Random(int(seed)), list[Any](), 0, 0
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until or rounds < 3:
            rounds += 1
            words, was_killed = play(work, rounds, chance.random() * work.longest_s)
            said += words
            killed += was_killed
            work.check(said)
        work.end()
        shutil.rmtree(mine)
        found[kind] = {"rounds": rounds, "killed": killed, "said": len(said)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
