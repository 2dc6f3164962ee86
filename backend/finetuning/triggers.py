"""Which projects get a fine-tuning job without anyone asking for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backend.corrections.queries import list_projects
from backend.finetuning import jobs
from backend.finetuning.jobs import Job
from backend.settings import Settings
from backend.store.database import Store


def request_due(store: Store, settings: Settings, at: datetime | None = None) -> list[Job]:
    """Request jobs for projects with enough new corrections, or whose schedule is due; the jobs that are new."""
    at = at or datetime.now(UTC)
    requested = []
    for project in list_projects(store):
        if project.deleted_at is not None:
            continue
        trigger = _trigger(*jobs.new_corrections(store, project.key), settings, at)
        if trigger is not None:
            job, is_new = jobs.request(store, project.key, trigger, at)
            requested += [job] if is_new else []
    return requested


def _trigger(new: int, last: datetime | None, settings: Settings, at: datetime) -> jobs.Trigger | None:
    """Why a project with so many new corrections, whose last job was requested at `last`, is due; None: it is not."""
    if settings.finetune_after_corrections and new >= settings.finetune_after_corrections:
        return "corrections"
    if settings.finetune_every_hours and new:
        every = timedelta(hours=settings.finetune_every_hours)
        return "schedule" if last is None or at - last >= every else None
    return None
