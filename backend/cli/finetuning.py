"""`semsam worker`, `semsam finetune`, `semsam jobs`."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.shared import AsJson, Origin, Project, SettingsFile, log_to_stderr, opened_store, project_key

if TYPE_CHECKING:
    from backend.finetuning.jobs import Job
    from backend.finetuning.worker import Worker
    from backend.records import ProjectKey
    from backend.store.database import Store
    from semsam_model.types import ShouldStop


@contextlib.contextmanager
def _worker(config: Path | None) -> Iterator[tuple[Store, Worker]]:
    """A worker in this process, out of the way of clicks; SIGTERM and Ctrl-C let it give its job back."""
    from backend.corrections.archive import open_photos
    from backend.corrections.inbox import process_inbox
    from backend.corrections.sync import bring_up_to_date
    from backend.finetuning.job_runner import Steps
    from backend.finetuning.worker import Worker, out_of_the_way
    from backend.label_studio.client import LabelStudio
    from backend.versions.registry import open_registry

    log_to_stderr()
    with opened_store(config) as (settings, store):
        photos, label_studio = open_photos(settings), LabelStudio(settings)

        def update(key: ProjectKey, should_stop: ShouldStop) -> None:
            process_inbox(store)
            bring_up_to_date(store, label_studio, photos, key, should_stop=should_stop)

        steps = Steps(bring_up_to_date=update)
        worker = Worker(settings, store, open_registry(settings, store), photos, steps=steps)
        out_of_the_way(settings)
        with _stopped_by_signals(worker.stopping):
            yield store, worker


@contextlib.contextmanager
def _stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C set `stopping` and do nothing else."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stopping.set())
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(
    config: SettingsFile = None,
    once: Annotated[bool, typer.Option("--once", help="Run what waits now, then end.")] = False,
) -> None:
    """Run fine-tuning jobs as they come: Start Training, enough new corrections, a schedule, `semsam finetune`."""
    with _worker(config) as (_, worker):
        if not once:
            worker.run()
            return
        while not worker.stopping.is_set() and worker.run_one() is not None:
            pass


def finetune(
    project: Project,
    origin: Origin = None,
    config: SettingsFile = None,
    queue: Annotated[bool, typer.Option("--queue", help="Only ask for it; a worker will run it.")] = False,
) -> None:
    """Fine-tune on a project's corrections, here or in the worker that takes the job first; wait for the verdict."""
    from backend.finetuning import jobs

    if queue:
        with opened_store(config) as (_, store):
            job, new = jobs.request(store, project_key(store, project, origin), "command")
        print(f"job {job.id} waits for a worker" if new else f"job {job.id} of this project is {job.state} already")
        return
    with _worker(config) as (store, worker):
        job, _ = jobs.request(store, project_key(store, project, origin), "command")
        while job.state in jobs.OPEN and not worker.stopping.is_set():
            ended = worker.run_one(only=job.id)
            if ended is None:  # a worker has it
                time.sleep(1.0)
            job = ended or jobs.find(store, job.id)
    print(_line(job))
    if job.report:
        print(f"report: {job.report}")
    if job.state == "failed":
        raise typer.Exit(1)


def list_jobs(
    as_json: AsJson = False,
    most: Annotated[int, typer.Option("--most", min=1, help="The newest so many.")] = 20,
) -> None:
    """Fine-tuning jobs, the newest first: what became of each, and why."""
    from backend.finetuning.jobs import list_jobs

    with opened_store() as (_, store):
        found = list_jobs(store, most=most)
    if as_json:
        print(json.dumps([job.to_dict() for job in found], indent=1))
        return
    if not found:
        print("no fine-tuning jobs yet; `semsam finetune --project ID` or Start Training makes one")
    for job in found:
        print(_line(job))


def _line(job: Job) -> str:
    at = f", {job.stage}, step {job.step} of {job.steps}" if job.state == "running" else ""
    gain = f", {job.verdict['gain']['mean']:+.1f} points on held-out corrections" if job.verdict else ""
    version = f" as {job.version}" if job.version else ""
    reason = f": {job.message}" if job.message else ""
    return f"job {job.id} of project {job.key} ({job.trigger}): {job.state}{at}{version}{gain}{reason}"
