"""One fine-tuning job, from the corrections to a version that is promoted or refused.

    bring the store up to date -> snapshot of the corrections -> do masks agree with their photos? -> fine-tune -> gate
    -> register -> activate, if promoted

Each step leaves its result in the job's folder, so that a job whose worker died goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from backend.corrections.archive import PhotoArchive
from backend.corrections.labelled_photos import labelled_photos
from backend.corrections.queries import list_projects
from backend.errors import VersionError
from backend.finetuning import snapshot
from backend.finetuning.jobs import CHILD, PHOTOS, REPORT, VERDICT, Job, Lease, State, job_folder
from backend.finetuning.snapshot import Snapshot
from backend.records import ProjectKey
from backend.settings import Settings
from backend.store.database import Store
from backend.versions.registry import Registry
from backend.versions.version import ModelVersion
from semsam_model.checkpoints.checkpoint import load, save
from semsam_model.checkpoints.header import PUBLISHED
from semsam_model.data.folder import evenly
from semsam_model.data.samples import MIN_AREA, Sample, clickable
from semsam_model.data.split import split_of
from semsam_model.errors import DataError, ImageError, SemsamError, Stopped
from semsam_model.finetuning.config import read_finetune_config
from semsam_model.finetuning.loop import STATE, FineTuned, fine_tune
from semsam_model.gate.config import GateConfig
from semsam_model.gate.photo_agreement import PhotoAgreement, measure_agreement
from semsam_model.gate.report import render_report
from semsam_model.gate.verdict import Comparison, compare
from semsam_model.network.model import SemanticSAM
from semsam_model.text_encoder import TextEncoder
from semsam_model.types import ShouldStop

log = logging.getLogger(__name__)

REPLAYED = 64  #: photos of other projects that are mixed in, at most


@dataclass(frozen=True)
class Steps:
    """What a job runs, step by step."""

    #: Bring the store's corrections of a project up to date. A SemsamError is logged, and the job goes on.
    bring_up_to_date: Callable[[ProjectKey, ShouldStop], None] = lambda key, should_stop: None
    measure_agreement: Callable[..., PhotoAgreement] = measure_agreement
    fine_tune: Callable[..., FineTuned] = fine_tune
    compare: Callable[..., Comparison] = compare
    render_report: Callable[..., str] = render_report


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what the store keeps of it: message, version, verdict, report."""

    state: State
    result: Mapping[str, Any]


def teaches(settings: Settings) -> str:
    """What of the answers a job can make better."""
    if settings.engine is not None:
        return f"names and order; masks are those of {settings.engine}, which stays as it is"
    if settings.model in PUBLISHED:
        return "masks; names are those of the embedded model, which stays as it is"
    return "masks, names and order"


@dataclass(frozen=True)
class _Corrections:
    """What a job learns from and is judged by."""

    snapshot: Snapshot
    train: list[Sample]
    held_out: list[Sample]

    @property
    def all(self) -> list[Sample]:
        return [*self.train, *self.held_out]


class JobRunner:
    """Runs the steps of one job after another, in the thread that calls it."""

    def __init__(
        self, settings: Settings, store: Store, registry: Registry, photos: PhotoArchive, steps: Steps
    ) -> None:
        """Raises ConfigError for wrong settings of fine-tuning or gate."""
        self._settings = settings
        self._store = store
        self._photos = photos
        self._steps = steps
        self._config, self._gate = read_finetune_config(GateConfig, settings.finetune_config)
        self.registry = registry

    def folder(self, job: Job) -> Path:
        """Where a job keeps what it has done."""
        return job_folder(self._settings.data_dir, job)

    def run(self, job: Job, lease: Lease) -> Ended:
        """Run a job to its end, from where an earlier attempt left it. Raises Stopped when the lease says so."""
        registered = self._registered(job)
        if registered is not None:
            return self._go_on(job, lease, registered)
        corrections = self._corrections(job, lease)
        parent = self.registry.find(job.parent) if job.parent else self.registry.live().version
        taken = corrections.snapshot
        log.info("job %d teaches %s", job.id, teaches(self._settings))
        lease.note(stage="fine-tuning", regions=taken.regions, data_digest=taken.digest, parent=parent.version)
        if reason := self._too_few(corrections):
            return Ended("refused", {"message": reason})
        model, _ = load(parent.weights, device=self._settings.device)
        agreement = self._steps.measure_agreement(model, corrections.all, self._gate, should_stop=lease.should_stop)
        if agreement.reason:
            return Ended("refused", {"message": agreement.reason})
        encoder = None if model.name_head is None else TextEncoder(self._settings.text_encoder)
        child_file = self._fine_tune(job, lease, model, corrections.train, encoder)
        compared, attachments = self._judge(job, lease, corrections, parent, model, child_file, agreement, encoder)
        lease.note(stage="registering")
        verdict = compared.verdict.to_dict()
        made = self.registry.register(
            child_file,
            parent=parent.version,
            data_digest=taken.digest,
            figures={"job": job.id, "gate": verdict},
            attachments=attachments,
        )
        return self._activate(job, lease, made, verdict, parent.version)

    def clean_up(self, job: Job) -> None:
        """Remove what only another attempt at the job would have needed."""
        for name in (STATE, CHILD):
            (self.folder(job) / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder(job) / PHOTOS, ignore_errors=True)

    def _photos_at_hand(self, job: Job, lease: Lease) -> PhotoArchive:
        """Photos as files, which are there until the job ends, whatever becomes of an object store meanwhile."""
        return self._photos.at_hand(self.folder(job) / PHOTOS, lease.should_stop)

    # ---- the corrections

    def _corrections(self, job: Job, lease: Lease) -> _Corrections:
        lease.note(stage="snapshot", steps=self._config.steps)
        folder = self.folder(job)
        taken = snapshot.read(folder)
        if taken is None:
            try:
                self._steps.bring_up_to_date(job.key, lease.should_stop)
            except Stopped:
                raise
            except SemsamError as error:
                log.warning("job %d: corrections as the store has them, not brought up to date: %s", job.id, error)
            taken = snapshot.take(self._store, job.key, folder)
        source, photos = f"project_{job.key.project}", self._photos_at_hand(job, lease)
        train, held_out = (taken.samples(photos, split, source) for split in ("train", "val"))
        return _Corrections(taken, train, held_out)

    def _too_few(self, corrections: _Corrections) -> str | None:
        """Why there are too few corrections to learn from or to be judged by; None where there are enough."""
        photos, gate = len(corrections.train), self._gate
        judged = _masks_judged(corrections.held_out, gate)
        if photos and len(judged) >= gate.min_photos and sum(judged) >= gate.min_masks:
            return None
        return (
            f"too few corrections: {photos} photos to learn from and {len(judged)} photos with {sum(judged)} "
            f"regions of at least {MIN_AREA} pixels held out (a fifth, by the photo's digest), expected at least 1, "
            f"{gate.min_photos} and {gate.min_masks}; label more photos"
        )

    def _of_other_projects(self, key: ProjectKey, archive: PhotoArchive) -> list[Sample]:
        """Corrections of other projects, so that they are not forgotten: one model serves all projects.

        The photos are drawn first, by their digests, which favour none; then the regions of those alone are read.
        """
        others = [each.key for each in list_projects(self._store) if each.key != key and each.deleted_at is None]
        photos = sorted((sha256, other) for other in others for sha256 in labelled_photos(self._store, other))
        there = (photo for photo in photos if split_of(photo[0]) == "train" and archive.has(photo[0]))
        drawn: dict[ProjectKey, list[str]] = {}
        for sha256, other in islice(there, REPLAYED):
            drawn.setdefault(other, []).append(sha256)
        found: list[Sample] = []
        for other in sorted(drawn):
            source = f"project_{other.project}_{other.origin}"
            found += snapshot.newest_samples(self._store, other, drawn[other], archive, source)
        return found

    # ---- the child

    def _fine_tune(
        self, job: Job, lease: Lease, model: SemanticSAM, train: Sequence[Sample], encoder: TextEncoder | None
    ) -> Path:
        """The child's weights file, in half precision as it will be served. Raises Stopped."""
        path = self.folder(job) / CHILD
        if path.is_file():  # written in one move by an earlier attempt
            return path
        tuned = self._steps.fine_tune(
            model,
            train,
            self._config,
            self.folder(job),
            replay=self._of_other_projects(job.key, self._photos_at_hand(job, lease)),
            encoder=encoder,
            on_step=lambda step: lease.note(step=step),
            should_stop=lease.should_stop,
        )
        card = {"job": job.id, "steps": tuned.steps, "seconds": round(tuned.seconds), "names": tuned.named}
        save(path, tuned.model, tuned.model.config, card={"finetuned": card}, half=True)
        return path

    def _judge(
        self,
        job: Job,
        lease: Lease,
        corrections: _Corrections,
        parent: ModelVersion,
        model: SemanticSAM,
        child_file: Path,
        agreement: PhotoAgreement,
        encoder: TextEncoder | None,
    ) -> tuple[Comparison, list[Path]]:
        """Compare the parent's model with its child; also the files of the report and the verdict. Raises Stopped."""
        lease.note(stage="gate", step=self._config.steps)
        child, version = load(child_file, device=self._settings.device)
        compared = self._steps.compare(
            model,
            child,
            corrections.held_out,
            self._gate,
            agreement=agreement,
            encoder=encoder,
            lists=corrections.all,
            should_stop=lease.should_stop,
        )
        taken = corrections.snapshot
        about = {
            "project": str(job.key),
            "job": job.id,
            "from": parent.version,
            "to": version.version,
            "corrections": f"{taken.regions} regions on {len(taken.photos)} photos",
            "teaches": teaches(self._settings),
        }
        page, figures = self.folder(job) / REPORT, self.folder(job) / VERDICT
        html = self._steps.render_report(compared, model, child, about, should_stop=lease.should_stop)
        page.write_text(html, encoding="utf-8")
        figures.write_text(json.dumps(compared.verdict.to_dict(), indent=1), encoding="utf-8")
        return compared, [page, figures]

    # ---- the version

    def _registered(self, job: Job) -> ModelVersion | None:
        """The version that an earlier attempt registered, if it can be served: it is not judged again."""
        mine = (version for version in self.registry.all() if version.figures.get("job") == job.id)
        return next((version for version in mine if not self.registry.problems(version)), None)

    def _go_on(self, job: Job, lease: Lease, registered: ModelVersion) -> Ended:
        """End a job whose earlier attempt was cut off after it had registered its version."""
        verdict = registered.figures["gate"]
        if verdict["promoted"] and self.registry.has_been_live(registered):
            # where another version is live by now, someone has rolled back, and meant it
            return Ended("promoted", self._result(job, registered, verdict))
        return self._activate(job, lease, registered, verdict, job.parent)

    def _activate(
        self, job: Job, lease: Lease, made: ModelVersion, verdict: Mapping[str, Any], parent: str | None
    ) -> Ended:
        """Activate the version if the gate has promoted it and its parent is still the live one."""
        result = self._result(job, made, verdict)
        if not verdict["promoted"]:
            return Ended("refused", result)
        lease.note()
        reason = f"job {job.id}: {verdict['gain']['mean']:+.1f} points on held-out corrections"
        try:
            self.registry.activate(made.version, reason=reason, if_live=parent)
        except VersionError as error:
            return Ended("refused", result | {"message": str(error)})
        return Ended("promoted", result)

    def _result(self, job: Job, made: ModelVersion, verdict: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": made.version,
            "verdict": verdict,
            "report": str(self.folder(job) / REPORT),
            "message": "; ".join(verdict["reasons"]),
        }


def _masks_judged(held_out: Sequence[Sample], config: GateConfig) -> list[int]:
    """How many masks of each held-out photo the gate will click; photos of which it clicks none are left out."""
    found = []
    for sample in evenly(held_out, config.photos):
        with contextlib.suppress(DataError, ImageError):
            sample.image()
            found.append(len(clickable(sample.regions, sample.masks())))
    return [count for count in found if count]
