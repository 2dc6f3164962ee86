"""What grows with the store: `python -m benchmarks.scale [--annotations 1000 10000] [--projects 1 100]`.

    --annotations N ...   of the made stores, with 8 regions each (`benchmarks.made_store`); each N is a column
    --projects P ...      that they are spread over; further columns
    --database            sqlite (the default), postgres (a server of its own, in a temporary folder, without fsync)
    --figures NAME ...    only these: start learned memory idle webhook burst deletion pictures status due bytes
                          settled
    --wait SECONDS        for everything taught to be learned, or a backlog to be worked in, at most (300)
    --folder DIR          for the stores; a temporary one if not given
    --kept DIR            of made stores (SQLite): one that is there is copied, one that is not is made and stays there

The service runs with its default settings and a stand-in for Label Studio in which nothing has changed. Prints a table,
a row a figure:

    start      seconds from the start of the process to the answer to the first click; of the processor
    learned    seconds until everything taught is learned; of 100 projects, and the one that was clicked; of the
               processor
    memory     MiB of the service after that
    idle       share of a core over two minutes, once all projects are compared with Label Studio; so for what follows
    webhook    seconds until one webhook is worked in, of nine the median and the least; milliseconds of the processor
               for it, with what is learned
    burst      20 webhooks at once: until all are worked in; slowest answer
    deletion   1,000 annotations are deleted by one delivery; a webhook 1 s later: its answer; until worked in
    pictures   1,000 pictures are fetched; a webhook meanwhile: its answer; until worked in
    status     the status page, counted anew
    due        is a fine-tuning job due, of all projects
    bytes      of the database, a region
    settled    bytes that rows and indices take, a region, once all suggestions are a day old; once they are a month
               old; seconds that settling took
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from sqlalchemy import text, update

from backend.corrections.queries import count_waiting, list_projects
from backend.corrections.settling import settle
from backend.finetuning.jobs import new_corrections
from backend.service.status import read_status
from backend.store.database import Store
from backend.store.tables import regions, tasks
from benchmarks.kept_stores import copied_store
from benchmarks.label_studio import answer, click_request
from benchmarks.machine import ROCKET, children, cpu_seconds, free_port, print_table, resident_mib
from benchmarks.made_store import BEGAN, LABEL_CONFIG, REGIONS, FromModel, fill, from_model, rows_as_posted
from benchmarks.service import serving
from benchmarks.studio_stand_in import listing
from tests.backend import postgres

IDLE_S = 120  #: what is looked for once a minute falls into it twice, whenever it begins
#: Those that need a running service, in the order in which they are taken; then those that need the store alone.
SERVED = ("start", "learned", "memory", "idle", "webhook", "burst", "deletion", "pictures")
FIGURES = (*SERVED, "status", "due", "bytes", "settled")
GONE, PICTURES, BURST, WEBHOOKS = 1000, 1000, 20, 9
#: Without pages that are free to be written to.
_SQLITE_BYTES = (
    "SELECT (page_count - freelist_count) * page_size"
    " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
)


class Measured:
    """A made store and the service over it."""

    def __init__(self, store: Store, origin: str, wanted: int, projects: int, wait_s: float) -> None:
        self.store, self.origin, self.wanted, self.projects, self.wait_s = store, origin, wanted, projects, wait_s
        self._posted = 0

    # ---- with the service

    def served(self, folder: Path, database: str, figures: Sequence[str]) -> Iterator[tuple[str, str]]:
        photos = folder / "pictures"
        photos.mkdir()
        shutil.copy(ROCKET, photos)
        began = time.monotonic()
        settings = {"label_studio_url": self.origin, "label_studio_api_key": "t", "database_url": database}
        settings |= {"suggestion_days": "0"}  # the made ones are old; settling them is another figure
        with serving(folder, photos, **settings) as (url, process):
            clicked = self.projects  # the last one that the learner would come to
            task = {"id": clicked - 1, "project": clicked, "data": {"image": f"/data/local-files/?d={ROCKET.name}"}}
            body = click_request(task, Image.open(ROCKET).size) | {
                "project": f"{clicked}.1",
                "label_config": LABEL_CONFIG,
            }
            answer(url, body)
            processes = [process, *children(process)]

            def used() -> float:
                return sum(map(cpu_seconds, processes))

            yield "start", f"{time.monotonic() - began:.0f}, {used():.1f}"
            if {"learned", "memory", "idle"} & {*figures}:
                yield "learned", f"{self._learned(folder / 'log', began, clicked)}, {used():.1f}"
            yield "memory", f"{sum(map(resident_mib, processes)):.0f}"
            self._until_compared(folder / "log", began)
            if "idle" in figures:
                time.sleep(5)
                before, at = used(), time.monotonic()
                time.sleep(IDLE_S)
                yield "idle", f"{(used() - before) / (time.monotonic() - at):.3f}"
            if "webhook" in figures:
                before = used()
                seconds = self._webhook(url)
                yield "webhook", f"{seconds}; {1000 * (used() - before) / WEBHOOKS:.0f}"
            for name, work in (("burst", self._burst), ("deletion", self._deletion)):
                if name in figures:
                    yield name, work(url)
            if "pictures" in figures:
                yield "pictures", self._pictures(url, photos)

    def _learned(self, log: Path, began: float, clicked: int) -> str:
        first = None
        while True:
            seconds = time.monotonic() - began
            learned = {int(each) for each in re.findall(r"project (\d+) of \S+: learned from", log.read_text())}
            if clicked in learned and first is None:
                first = seconds
            if len(learned) >= self.projects or seconds > self.wait_s:
                of = "" if len(learned) == self.projects else f", {len(learned)} of {self.projects} projects"
                return f"{seconds:.0f}{of}; clicked {'-' if first is None else f'{first:.0f}'}"
            time.sleep(0.5)

    def _until_compared(self, log: Path, began: float) -> None:
        """With Label Studio, which the service begins when it has started."""
        while log.read_text().count("compared with Label Studio:") < self.projects:
            if time.monotonic() - began > self.wait_s:
                print(f"not compared with Label Studio after {self.wait_s:.0f} s", flush=True)
                return
            time.sleep(0.5)

    def _body(self) -> dict[str, Any]:
        """A webhook that brings an annotation with 8 regions, of one of the tasks."""
        self._posted += 1
        number, stamp = self.wanted + self._posted, datetime.now(UTC).isoformat()
        task = (37 * self._posted) % self.wanted
        project = 1 + task % self.projects
        about = {"id": project, "title": f"Project {project}", "label_config": LABEL_CONFIG, "updated_at": BEGAN}
        made = {"id": number, "task": task, "project": project, "updated_at": stamp, "created_at": stamp}
        data = {"id": task, "data": {"image": f"/data/local-files/?d={task}.jpg"}}
        body = {
            "action": "ANNOTATION_CREATED",
            "project": about,
            "task": data,
            "annotation": made | {"result": rows_as_posted()},
        }
        return json.loads(json.dumps(body, default=str))

    def _post(self, url: str, body: Any) -> str | float:
        """Seconds until the answer, or what was answered instead."""
        began = time.monotonic()
        status = requests.post(f"{url}/webhook", json=body, timeout=120).status_code
        seconds = time.monotonic() - began
        return seconds if status == 200 else f"{status} after {seconds:.0f}"

    def _worked_in(self, number: int, began: float) -> str:
        """Seconds until an annotation is in the store."""
        query = text("SELECT annotation FROM annotations WHERE annotation = :number AND origin = :origin")
        while time.monotonic() - began < self.wait_s:
            with self.store.read() as connection:
                if connection.scalar(query, {"number": number, "origin": self.origin}) is not None:
                    return f"{time.monotonic() - began:.2f}"
            time.sleep(0.005)
        return f"not after {self.wait_s:.0f}"

    def _webhook(self, url: str) -> str:
        found = []
        for _ in range(WEBHOOKS):
            began = time.monotonic()
            self._post(url, self._body())
            found.append(float(self._worked_in(self.wanted + self._posted, began)))
            time.sleep(1)
        return f"{sorted(found)[WEBHOOKS // 2]:.2f} ({min(found):.2f})"

    def _burst(self, url: str) -> str:
        bodies = [self._body() for _ in range(BURST)]
        began = time.monotonic()
        with ThreadPoolExecutor(BURST) as pool:
            answers = list(pool.map(partial(self._post, url), bodies))
        while count_waiting(self.store) and time.monotonic() - began < self.wait_s:
            time.sleep(0.01)
        return f"{time.monotonic() - began:.1f}; {_slowest(answers)}"

    def _deletion(self, url: str) -> str:
        project = self.projects
        gone = range(project - 1, self.wanted, self.projects)[:GONE]
        about = {"id": project, "title": "", "label_config": LABEL_CONFIG}
        self._post(url, {"action": "ANNOTATIONS_DELETED", "project": about, "annotations": [{"id": n} for n in gone]})
        time.sleep(1)
        return self._meanwhile(url) + f" ({len(gone)})"

    def _pictures(self, url: str, photos: Path) -> str:
        """The newest pictures of the first project are fetched again, each another one."""
        mine = range(0, self.wanted, self.projects)[-PICTURES:]
        for number in mine:
            (photos / f"{number}.jpg").write_bytes(ROCKET.read_bytes() + str(number).encode())
        with self.store.write() as connection:
            for table in (tasks, regions):
                lost = (table.c.origin == self.origin, table.c.project == 1, table.c.task >= mine[0])
                connection.execute(update(table).where(*lost).values(image_sha256=None))
        self._post(url, self._body())  # has the backend look for pictures
        time.sleep(2)
        return self._meanwhile(url) + f" ({len(mine)})"

    def _meanwhile(self, url: str) -> str:
        body, began = self._body(), time.monotonic()
        first = self._post(url, body)
        worked = self._worked_in(self.wanted + self._posted, began) if isinstance(first, float) else "-"
        answers = [first, *(self._post(url, self._body()) for _ in range(4))]
        return f"{_slowest(answers)}; {worked}"

    # ---- with the store alone

    def status(self) -> str:
        return f"{_seconds(lambda: read_status(self.store)):.3f}"

    def due(self) -> str:
        keys = [project.key for project in list_projects(self.store)]
        return f"{_seconds(lambda: [new_corrections(self.store, key, most=100) for key in keys]):.3f}"

    def bytes(self) -> str:
        with self.store.read() as connection:
            if self.store.dialect == "postgresql":
                size = connection.scalar(text("SELECT pg_database_size(current_database())"))
            else:
                size = connection.scalar(text(_SQLITE_BYTES))
            kept = connection.scalar(text("SELECT coalesce(sum(length(lesson)), 0) FROM lessons"))
        return f"{(size - kept) / (self.wanted * REGIONS):,.0f}"

    def settled(self) -> str:
        """Those that became no region are a day old at first, though the made ones are older."""
        began, found = time.monotonic(), []
        for untaken in (timedelta(days=36500), timedelta(days=30)):
            sum(settle(self.store, untaken))
            found.append(time.monotonic() - began)
            if self.store.dialect == "postgresql":
                self.store.compact()
            found.append(self.bytes())
        seconds, day, _, month = found
        return f"{day}; {month}; {seconds:.0f}"


def _seconds(work: Callable[[], Any]) -> float:
    """The median of three."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return sorted(found)[1]


def _slowest(answers: Sequence[str | float]) -> str:
    refused = [each for each in answers if isinstance(each, str)]
    return refused[0] if refused else f"{max(each for each in answers if isinstance(each, float)):.2f}"


def column(wanted: int, projects: int, given: argparse.Namespace, of_model: FromModel) -> dict[str, str]:
    """Every figure of one store."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        port, database = free_port(), f"sqlite:///{folder / 'semsam.db'}"
        if given.kept is not None:
            port = copied_store(given.kept, folder / "semsam.db", wanted, projects, of_model)
        elif given.database == "postgres":
            server = postgres.Server()
            stack.callback(server.remove)
            database = postgres.new_database(server.url)
        origin = stack.enter_context(listing(port, wanted, projects))
        store = Store.open(database)
        stack.callback(store.close)
        if given.kept is None:
            fill(store, origin, wanted, projects, of_model)
        measured = Measured(store, origin, wanted, projects, given.wait)
        alone = [name for name in FIGURES if name in given.figures and name not in (*SERVED, "settled")]
        found = {name: getattr(measured, name)() for name in alone}
        print(f"{wanted} in {projects}: {found}", flush=True)
        if {*SERVED} & {*given.figures}:
            for name, value in measured.served(folder, database, given.figures):
                print(f"{wanted} in {projects}: {name} {value}", flush=True)
                found[name] = value
        if "settled" in given.figures:
            found["settled"] = measured.settled()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--projects", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=FIGURES)
    parser.add_argument("--wait", type=float, default=300)
    for name in ("--folder", "--kept"):
        parser.add_argument(name, type=lambda name: Path(name).resolve())
    given = parser.parse_args()
    if given.kept is not None and given.database != "sqlite":
        parser.error("--kept: SQLite stores only")
    of_model = from_model()
    stores = [(wanted, projects) for projects in given.projects for wanted in given.annotations]
    measured = [column(*each, given, of_model) for each in stores]
    columns = [{figure: each[figure] for figure in FIGURES if figure in each} for each in measured]
    print_table([given.database, *(f"{wanted:,} in {projects}" for wanted, projects in stores)], columns)


if __name__ == "__main__":
    main()
