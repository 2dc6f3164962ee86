"""The folder of a fine-tuning job, DATA/jobs/NUMBER: where each step leaves its result, and what is cleared away."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backend.finetuning.jobs import Job, list_ended
from backend.store.database import Store

CHILD = "child.safetensors"  #: weights of the model that came out, until they lie beside their version
REPORT, VERDICT = "gate.html", "gate.json"  #: of the gate; kept beside the version, too
RECENT = timedelta(hours=1)  #: for which the files of an ended job are not cleared away


def job_folder(data_dir: Path, job: Job) -> Path:
    """Where a job keeps what it has done."""
    return data_dir / "jobs" / str(job.id)


def report_file(data_dir: Path, job: Job) -> Path | None:
    """The gate's report where it still lies: in the job's folder, else beside its version; None where in neither.

    Looked for by number and version, not by the path that the worker saved: the data folder may have been moved, and
    no file outside it may be read.
    """
    folders = [job_folder(data_dir, job)]
    if job.version is not None:
        folders.append(data_dir / "versions" / job.version)
    files = [folder / REPORT for folder in folders]
    inside = data_dir.resolve()
    return next((file for file in files if file.is_file() and file.resolve().is_relative_to(inside)), None)


def clear_job_files(
    store: Store, data_dir: Path, versions: Collection[str], *, dry_run: bool = False, at: datetime | None = None
) -> dict[int, int]:
    """Remove the files of ended jobs whose version is none of `versions`, or that made none, but for the gate's report.

    Jobs of the last hour stay as they are. Number of the job -> bytes that went, or, with dry_run, would. at: now, if
    not given.
    """
    cleared: dict[int, int] = {}
    for job in list_ended(store, before=(at or datetime.now(UTC)) - RECENT):
        folder = job_folder(data_dir, job)
        if job.version in versions or not folder.is_dir():
            continue
        files = [path for path in folder.iterdir() if path.is_file() and path.name != REPORT]
        if files:
            cleared[job.id] = sum(path.stat().st_size for path in files)
        if not dry_run:
            for path in files:
                path.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    return cleared
