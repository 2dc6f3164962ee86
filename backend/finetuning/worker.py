"""`semsam worker`: takes fine-tuning jobs from the store, one at a time, out of the way of clicks.

    snapshot of the corrections -> do they follow their pictures? -> fine_tune -> gate -> register -> activate, if
    promoted

Each step leaves its result in the job's folder, DATA/jobs/NUMBER, so that a job whose worker died goes on from its last
checkpoint in whichever worker claims it next. A thread renews the lease; a worker that has lost it stops.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from backend.corrections.photo_archive import PhotoArchive
from backend.corrections.queries import list_projects, stream_regions
from backend.errors import StoreError, VersionError
from backend.finetuning import jobs, snapshot
from backend.finetuning.jobs import REPORT, Job
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.versions.registry import ModelVersion, Registry
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.config import parse_config
from semsam_model.data.folder import evenly
from semsam_model.data.samples import MIN_AREA, Sample, clickable
from semsam_model.errors import DataError, ImageError, SemsamError, Stopped
from semsam_model.finetuning.config import read_finetune_config
from semsam_model.finetuning.loop import fine_tune
from semsam_model.finetuning.state import STATE
from semsam_model.gate.config import GateConfig
from semsam_model.gate.photo_agreement import measure_agreement
from semsam_model.gate.report import render_report
from semsam_model.gate.verdict import Comparison, compare
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import ShouldStop

log = logging.getLogger(__name__)

POLL_S = 2.0  #: between looks for a job
LOOK_S = 30.0  #: between looks whether a project has earned one
CHILD, VERDICT = "child.safetensors", "gate.json"


@dataclass
class _Held:
    """A job while this worker holds it: a thread renews the lease until the block ends."""

    store: Store
    job: Job
    worker: str
    lease: timedelta
    stopping: threading.Event
    lost: threading.Event = field(default_factory=threading.Event)
    progress: dict[str, Any] = field(default_factory=dict)

    def note(self, **progress: Any) -> None:
        """Tell the store what the job is at; also how it is known at once that the job is lost. Raises _Lost."""
        self.progress |= progress
        if self.lost.is_set() or not jobs.renew(self.store, self.job, self.worker, self.lease, **self.progress):
            self.lost.set()
            raise _Lost

    def should_stop(self) -> bool:
        """Whether this worker is to stop, or has lost the job. Cheap: the thread asks the store."""
        return self.lost.is_set() or self.stopping.is_set()

    def go_on(self) -> None:
        """Asked between any two photos: cheap, the thread asks the store. Raises _Stopped, _Lost."""
        if self.lost.is_set():
            raise _Lost
        if self.stopping.is_set():
            raise _Stopped

    def __enter__(self) -> _Held:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(self.lease.total_seconds() / 3):
            try:
                if not jobs.renew(self.store, self.job, self.worker, self.lease, **self.progress):
                    self.lost.set()
            except StoreError as error:  # gone for a while; the lease decides whether the job still is ours
                log.warning("job %d: lease not renewed: %s", self.job.id, error)


class _Lost(Exception):
    """Another worker has the job."""


class _Stopped(Exception):
    """This worker was asked to stop."""


class Worker:
    """Runs jobs, one after another, in the thread that calls it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        registry: Registry,
        photos: PhotoArchive,
        *,
        refresh: Callable[[ProjectKey, ShouldStop], None] = lambda key, should_stop: None,
    ) -> None:
        """refresh: bring the store's corrections of a project up to date; may raise Stopped, and SemsamError, which
        is logged.

        Raises ConfigError for wrong settings of fine-tuning or gate.
        """
        self.settings, self.store, self.registry, self.photos, self.refresh = settings, store, registry, photos, refresh
        self.config, gate = read_finetune_config(settings.finetune_config)
        self.gate = parse_config(GateConfig, gate, "gate")
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.lease = timedelta(seconds=settings.worker_lease_seconds)
        self.stopping = threading.Event()

    def run(self) -> None:
        """Until `stopping` is set: claim jobs and run them; ask for those that projects have earned."""
        log.info("worker %s waits for jobs", self.name)
        looked = -LOOK_S
        while not self.stopping.is_set():
            try:
                if time.monotonic() - looked >= LOOK_S:
                    looked = time.monotonic()
                    request_earned(self.store, self.settings)
                if self.run_one() is not None:
                    continue
            except StoreError as error:
                log.warning("%s; trying again", error)
            self.stopping.wait(POLL_S)

    def run_one(self, only: int | None = None) -> Job | None:
        """Claim a job and run it to its end, or until `stopping`; the job as it then stands. None: nothing to do.

        only: no other job than this one. Raises StoreError.
        """
        job = jobs.claim(self.store, self.name, self.lease, only=only)
        if job is None:
            return None
        log.info("job %d of project %s (%s), attempt %d", job.id, job.key, job.trigger, job.attempts)
        try:
            with _Held(self.store, job, self.name, self.lease, self.stopping) as held:
                state, result = self._run(job, held)
        except _Lost:
            log.warning("job %d: another worker has it now", job.id)
        except _Stopped:
            jobs.release(self.store, job, self.name)
            log.info("job %d: given back, it goes on from its last checkpoint", job.id)
        except StoreError:
            raise  # the lease runs out, and the job comes back
        except Exception as error:
            if not isinstance(error, SemsamError):
                log.exception("job %d failed", job.id)
            message = str(error) if isinstance(error, SemsamError) else f"{type(error).__name__}: {error}"
            self._finish(job, "failed", message=message[:2000])
        else:
            self._finish(job, state, **result)
        ended = jobs.find(self.store, job.id)
        log.info("job %d: %s %s", job.id, ended.state, ended.message)
        return ended

    def _finish(self, job: Job, state: jobs.State, **result: Any) -> None:
        """End a job, if this worker holds it still; then what only another attempt would have needed goes."""
        if jobs.finish(self.store, job, self.name, state, **result):
            for name in (STATE, CHILD):
                (self.folder(job) / name).unlink(missing_ok=True)

    def folder(self, job: Job) -> Path:
        """Where a job keeps what it has done."""
        return jobs.folder(self.settings.data_dir, job)

    def _run(self, job: Job, held: _Held) -> tuple[jobs.State, dict[str, Any]]:
        folder = self.folder(job)
        made = self._registered(job)
        if made is not None:  # by an attempt that was cut off before the job's end
            verdict = made.figures["gate"]
            if verdict["promoted"] and self.registry.has_been_live(made):
                # whoever has rolled back since has meant it
                return "promoted", self._result(job, made, verdict)
            return self._end(job, held, made, verdict, job.parent)
        held.note(stage="snapshot", steps=self.config.steps)
        taken = self._snapshot(job, folder, held)
        parent = self.registry.find(job.parent) if job.parent else self.registry.live().version
        held.note(stage="fine-tuning", regions=taken.regions, data_digest=taken.digest, parent=parent.version)
        source = f"project_{job.key.project}"
        train, held_out = (taken.samples(self.photos, split, source) for split in ("train", "val"))
        judged = _judged_by(held_out, self.gate)
        if not train or len(judged) < self.gate.min_photos or sum(judged) < self.gate.min_masks:
            return "refused", {"message": self._too_few(train, judged)}
        model, _ = load(parent.weights, device=_device(self.settings))
        agreement = measure_agreement(model, [*train, *held_out], self.gate, on_photo=held.go_on)
        if agreement.reason:
            return "refused", {"message": agreement.reason}
        encoder = None if model.name_head is None else TextEncoder(self.settings.text_encoder)
        child_file = self._learn(model, train, encoder, folder, held, job)
        held.note(stage="gate", step=self.config.steps)
        child, version = load(child_file, device=_device(self.settings))
        compared = compare(
            model,
            child,
            held_out,
            self.gate,
            agreement=agreement,
            encoder=encoder,
            lists=[*train, *held_out],
            on_photo=held.go_on,
        )
        about = {
            "project": str(job.key),
            "job": job.id,
            "from": parent.version,
            "to": version.version,
            "corrections": f"{taken.regions} regions on {len(taken.photos)} photos",
        }
        attachments = _write_report(folder, compared, model, child, about, held.go_on)
        held.note(stage="registering")
        verdict = compared.verdict.to_dict()
        made = self.registry.register(
            child_file,
            parent=parent.version,
            data_digest=taken.digest,
            figures={"job": job.id, "gate": verdict},
            attachments=attachments,
        )
        return self._end(job, held, made, verdict, parent.version)

    def _registered(self, job: Job) -> ModelVersion | None:
        """The version that this job has registered, if it can be served: it has been judged and is not judged again."""
        mine = (version for version in self.registry.all() if version.figures.get("job") == job.id)
        return next((version for version in mine if not self.registry.problems(version)), None)

    def _end(
        self, job: Job, held: _Held, made: ModelVersion, verdict: Mapping[str, Any], parent: str | None
    ) -> tuple[jobs.State, dict[str, Any]]:
        """Activate what was registered, if the gate has promoted it and what it was compared with is live still."""
        result = self._result(job, made, verdict)
        if not verdict["promoted"]:
            return "refused", result
        held.note()
        reason = f"job {job.id}: {verdict['gain']['mean']:+.1f} points on held-out corrections"
        try:
            self.registry.activate(made.version, reason=reason, if_live=parent)
        except VersionError as error:
            return "refused", result | {"message": str(error)}
        return "promoted", result

    def _result(self, job: Job, made: ModelVersion, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """What the store keeps of a job that was judged."""
        return {
            "version": made.version,
            "verdict": verdict,
            "report": str(self.folder(job) / REPORT),
            "message": "; ".join(verdict["reasons"]),
        }

    def _snapshot(self, job: Job, folder: Path, held: _Held) -> snapshot.Snapshot:
        taken = snapshot.read(folder)
        if taken is None:
            try:
                self.refresh(job.key, held.should_stop)
            except Stopped:
                held.go_on()
                raise
            except SemsamError as error:
                log.warning("job %d: corrections as the store has them, Label Studio was not asked: %s", job.id, error)
            taken = snapshot.take(stream_regions(self.store, job.key))
            snapshot.write(taken, folder)
        return taken

    def _too_few(self, train: Sequence[Sample], judged: Sequence[int]) -> str:
        return (
            f"too few corrections: {len(train)} photos to learn from and {len(judged)} photos with {sum(judged)} "
            f"regions of at least {MIN_AREA} pixels held out (a fifth, by the photo's digest), expected at least 1, "
            f"{self.gate.min_photos} and {self.gate.min_masks}; label more photos"
        )

    def _learn(
        self,
        model: SemanticSAM,
        train: Sequence[Sample],
        encoder: TextEncoder | None,
        folder: Path,
        held: _Held,
        job: Job,
    ) -> Path:
        """The child's weights file, half precision as it will be served. Raises _Stopped, _Lost."""
        path = folder / CHILD
        if path.is_file():  # written in one move by an earlier attempt
            return path

        try:
            tuned = fine_tune(
                model,
                train,
                self.config,
                folder,
                replay=self._of_other_projects(job.key),
                encoder=encoder,
                on_step=lambda step: held.note(step=step),
                should_stop=held.should_stop,
            )
        except Stopped:
            held.go_on()  # says whether the job is lost, or the worker stops
            raise
        about = {"job": job.id, "steps": tuned.steps, "seconds": round(tuned.seconds), "names": tuned.named}
        save(path, tuned.model, tuned.model.config, card={"finetuned": about}, half=True)
        return path

    def _of_other_projects(self, key: ProjectKey, most: int = 64) -> list[Sample]:
        """Corrections of other projects, mixed in so that they are not forgotten: one model serves them all."""
        found: list[Sample] = []
        for project in list_projects(self.store):
            if project.key != key and project.deleted_at is None:
                others = snapshot.take(stream_regions(self.store, project.key))
                found += others.samples(self.photos, "train", f"project_{project.key.project}_{project.key.origin}")
        return found[:: max(1, len(found) // most)][:most]


def _device(settings: Settings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _judged_by(held_out: Sequence[Sample], config: GateConfig) -> list[int]:
    """How many masks of each held-out photo the gate will click; photos of which it clicks none are left out."""
    found = []
    for sample in evenly(held_out, config.photos):
        with contextlib.suppress(DataError, ImageError):
            sample.image()
            found.append(len(clickable(sample.regions, sample.masks())))
    return [count for count in found if count]


def _write_report(
    folder: Path,
    compared: Comparison,
    parent: SemanticSAM,
    child: SemanticSAM,
    about: dict[str, Any],
    on_pair: Callable[[], None],
) -> list[Path]:
    (folder / REPORT).write_text(render_report(compared, parent, child, about, on_pair=on_pair), encoding="utf-8")
    (folder / VERDICT).write_text(json.dumps(compared.verdict.to_dict(), indent=1), encoding="utf-8")
    return [folder / REPORT, folder / VERDICT]


def request_earned(store: Store, settings: Settings, at: datetime | None = None) -> list[Job]:
    """Ask for jobs of projects that have enough new corrections, or whose time has come; those that are new."""
    at = at or datetime.now(UTC)
    asked = []
    for project in list_projects(store):
        if project.deleted_at is not None:
            continue
        new, last = jobs.new_corrections(store, project.key)
        trigger: jobs.Trigger | None = None
        if settings.finetune_after_corrections and new >= settings.finetune_after_corrections:
            trigger = "corrections"
        elif settings.finetune_every_hours and new:
            every = timedelta(hours=settings.finetune_every_hours)
            trigger = "schedule" if last is None or at - last >= every else None
        if trigger is not None:
            job, is_new = jobs.request(store, project.key, trigger, at)
            asked += [job] if is_new else []
    return asked


def out_of_the_way(settings: Settings) -> None:
    """Make this process yield to those that answer clicks: low priority, few threads."""
    os.nice(settings.worker_nice)
    torch.set_num_threads(settings.worker_threads or max(1, (os.cpu_count() or 2) // 2))
