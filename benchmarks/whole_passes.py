"""What passes over a whole store cost: `python -m benchmarks.whole_passes [--annotations 10000] [--projects 1 100]`.

    --annotations N ...   of the made stores, with 8 regions each (`benchmarks.made_store`); each N is a column
    --projects P ...      that they are spread over; further columns
    --folder DIR          for the stores; a temporary one if not given

SQLite. Each pass in a process of its own, whose memory is the most that it held. Prints a table, a row a figure;
times are seconds, and seconds of the process's own processor time, which a busy machine hardly changes:

    sync       a comparison with a Label Studio in which nothing has changed, of all projects
    changed    the same, with 10 annotations that have changed
    snapshot   for a fine-tuning job of the first project; MiB, and MiB before it began
    others     photos of other projects for that job
    settle     all suggestions are old
    bytes      of the database, a region: before and after that, compacted
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from backend.corrections.archive import PhotoArchive
from backend.corrections.queries import list_projects
from backend.corrections.settling import settle
from backend.corrections.sync import sync_project
from backend.finetuning import snapshot
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from backend.store.database import Store
from benchmarks.machine import free_port, peak_mib, print_table
from benchmarks.made_store import REGIONS, FromModel, fill, from_model
from benchmarks.studio_stand_in import listing

CHANGED = 10  #: annotations


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self._began[0]:.1f}, {time.process_time() - self._began[1]:.1f}"


class EveryPhoto(PhotoArchive):
    """One that has whatever is asked for."""

    def has(self, sha256: str) -> bool:
        return True


def sync(database: str, origin: str, _: Path, changed: int = 0) -> str:
    with contextlib.closing(Store.open(database)) as store:
        label_studio = LabelStudio(Settings(label_studio_url=origin, label_studio_api_key="t"))
        watch, read = Stopwatch(), 0
        for project in list_projects(store):
            read += sync_project(store, label_studio, project.key).read
        assert read == changed, f"{read} tasks were read, expected {changed}"
        return str(watch)


def take_snapshot(database: str, _: str, folder: Path) -> str:
    with contextlib.closing(Store.open(database)) as store:
        before, watch = peak_mib(os.getpid()), Stopwatch()
        taken = snapshot.take(store, list_projects(store)[0].key, folder)
        samples = taken.samples(EveryPhoto(folder), "train", "project")
        sum(region.weight for sample in samples for region in sample.regions)
        return f"{watch}; {peak_mib(os.getpid()):.0f}, {before:.0f}"


def others(database: str, _: str, folder: Path) -> str:
    from backend.finetuning.job_runner import JobRunner  # brings torch

    with contextlib.closing(Store.open(database)) as store:
        runner = cast(JobRunner, SimpleNamespace(_store=store))
        watch = Stopwatch()
        JobRunner._of_other_projects(runner, list_projects(store)[0].key, EveryPhoto(folder))
        return str(watch)


def settle_all(database: str, _: str, folder: Path) -> str:
    with contextlib.closing(Store.open(database)) as store:
        watch = Stopwatch()
        sum(settle(store, timedelta(days=30)))
        taken = str(watch)
        store.compact()
    return taken


PASSES: dict[str, Callable[[str, str, Path], str]] = {
    "sync": sync,
    "changed": partial(sync, changed=CHANGED),
    "snapshot": take_snapshot,
    "others": others,
    "settle": settle_all,
}


def column(wanted: int, projects: int, folder: Path | None, of_model: FromModel) -> dict[str, str]:
    changed = set[int]()
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        listing(free_port(), wanted, projects, changed) as origin,
        # a new process for each pass, not a copy of this one
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        file = Path(name) / "semsam.db"
        database = f"sqlite:///{file}"
        with contextlib.closing(Store.open(database)) as store:
            fill(store, origin, wanted, projects, of_model)
        before, found = file.stat().st_size, dict[str, Any]()
        for each, work in PASSES.items():
            changed |= {wanted // CHANGED * number for number in range(CHANGED)} if each == "changed" else set()
            found[each] = pool.apply(work, (database, origin, Path(name)))
        regions = wanted * REGIONS
        return found | {"bytes": f"{before / regions:,.0f}; {file.stat().st_size / regions:,.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, nargs="+", default=[10_000])
    parser.add_argument("--projects", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    stores = [(wanted, projects) for projects in given.projects for wanted in given.annotations]
    of_model = replace(from_model(), lessons=[])
    columns = [column(*each, given.folder, of_model) for each in stores]
    print_table(["annotations in projects", *(f"{n:,} in {p}" for n, p in stores)], columns)


if __name__ == "__main__":
    main()
