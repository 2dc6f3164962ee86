"""What the status page shows, read from the store: plain values, no HTML.

Only light columns are read: no mask leaves the database.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from cachetools import TTLCache

from backend.corrections.queries import count, count_all, count_waiting, list_projects, newest_suggestion_outcomes
from backend.doctor.checks import Finding
from backend.errors import NotStored, StoreError
from backend.finetuning.jobs import Job, find, last_judged, list_jobs, report_file
from backend.records import Counts, ProjectKey, StoredProject, SuggestionOutcome
from backend.store.database import Store

log = logging.getLogger(__name__)

STATUS_S = 5.0  #: seconds that the status is kept
#: Masks that the curves run over: the newest ones that were taken from what a click suggested.
RECENT = 2000
JOBS = 8  #: fine-tuning jobs, the newest
POINTS = 20  #: of a curve, at most
EACH = 10  #: masks that a point stands for, at least, unless it is the only one


@dataclass(frozen=True)
class ProjectStatus:
    """One project and what it has given."""

    project: StoredProject
    counts: Counts

    @property
    def accepted(self) -> float | None:
        """Share of the masks submitted that were accepted as they were suggested; None without any."""
        return self.counts.by_outcome["accepted"] / self.counts.regions if self.counts.regions else None


@dataclass(frozen=True)
class Point:
    """Some masks that were taken from suggestions one after another; a share is None where nothing can be said."""

    masks: int
    since: datetime
    until: datetime
    level: float | None  #: share that was the suggestion ranked first, and so of the level that the model would choose
    label: float | None  #: share, of those whose outline stayed, that kept the label suggested
    seconds: float | None  #: median from the answer until the annotator went on, at most


@dataclass(frozen=True)
class ClickPath:
    """How clicks of one project, or of all that have no entry of their own, come through to an answer."""

    project: ProjectKey | None
    findings: tuple[Finding, ...]  #: of the doctor; none where it has not looked yet
    refused: tuple[str, ...]  #: webhooks, in words, since the process began
    empty_answers: Mapping[str, int]  #: by reason, since the process began

    @property
    def wrong(self) -> int:
        """How many things somebody has to set right."""
        return sum(each.wrong for each in self.findings) + len(self.refused)


@dataclass(frozen=True)
class Status:
    """Everything; `overall` is one point over all of the curve's masks, None where there are none."""

    projects: tuple[ProjectStatus, ...] = ()
    curve: tuple[Point, ...] = ()
    overall: Point | None = None
    jobs: tuple[Job, ...] = ()  #: of fine-tuning, newest first
    last_gate: Job | None = None  #: the newest job that the gate has judged
    waiting: int = 0  #: webhook events that are acknowledged and not processed yet
    problem: str = ""  #: why the store cannot be read
    paths: tuple[ClickPath, ...] = ()  #: of each project, and last of all others together, where they have any

    def with_paths(
        self,
        findings: Mapping[ProjectKey, Sequence[Finding]],
        refused: Mapping[ProjectKey | None, Sequence[str]],
        empty: Mapping[ProjectKey | None, Mapping[str, int]],
    ) -> Status:
        """With what is known of clicks' way in each project: in the store, or in one of these, None for all others."""
        projects = {each.project.key for each in self.projects}.union(findings, refused, empty)
        return replace(
            self,
            paths=tuple(
                ClickPath(
                    key, tuple(findings.get(key, ())) if key else (), tuple(refused.get(key, ())), empty.get(key, {})
                )
                for key in [*sorted(each for each in projects if each), *({None} & projects)]
            ),
        )


@dataclass(frozen=True)
class GateReport:
    """What the gate said about a fine-tuning job that it has judged."""

    job: Job
    html: str | None  #: the report as the job wrote it; None where the files are gone and the figures alone are left


class StatusReader:
    """Reads the status and the gate's reports. Thread-safe; the store is asked for the status once in `keep_s`."""

    def __init__(self, store: Store, data_dir: Path, keep_s: float = STATUS_S) -> None:
        self._store = store
        self._data_dir = data_dir
        self._kept: TTLCache[str, Status] = TTLCache(1, keep_s)
        self._lock = threading.Lock()

    def status(self) -> Status:
        """What annotators' work has come to, at most `keep_s` old; without the store, why that is not known."""
        with self._lock:  # however many ask at the same time, the store is read once
            if (kept := self._kept.get("")) is None:
                try:
                    kept = read_status(self._store)
                except StoreError as error:
                    log.warning("status: %s", error)
                    kept = Status(problem=str(error))
                self._kept[""] = kept
        return kept

    def gate_report(self, number: int) -> GateReport:
        """What the gate said about a fine-tuning job.

        Raises NotStored for a job that there is not, or that the gate has not judged; StoreError.
        """
        job = find(self._store, number)
        if (file := report_file(self._data_dir, job)) is not None:
            with contextlib.suppress(OSError):  # removed this moment
                return GateReport(job, file.read_text(encoding="utf-8"))
        if not job.verdict:
            why = f": {job.message}" if job.message else ""
            raise NotStored(f"job {number}: {job.state}, the gate has not judged it{why}")
        return GateReport(job, None)


def read_status(store: Store) -> Status:
    """The state of the store now. Raises StoreError."""
    outcomes = newest_suggestion_outcomes(store, RECENT)
    projects = [project for project in list_projects(store) if not project.deleted_at]
    counts = count_all(store)
    return Status(
        projects=tuple(ProjectStatus(each, counts.get(each.key) or count(store, each.key)) for each in projects),
        curve=tuple(_point(chunk) for chunk in _chunks(outcomes)),
        overall=_point(outcomes) if outcomes else None,
        jobs=tuple(list_jobs(store, most=JOBS)),
        last_gate=last_judged(store),
        waiting=count_waiting(store),
    )


def _chunks(outcomes: Sequence[SuggestionOutcome]) -> list[Sequence[SuggestionOutcome]]:
    """In order, in as many equal parts as there may be points."""
    parts = min(POINTS, max(len(outcomes) // EACH, 1))
    edges = [round(k * len(outcomes) / parts) for k in range(parts + 1)]
    return [outcomes[a:b] for a, b in pairwise(edges) if b > a]


def _point(outcomes: Sequence[SuggestionOutcome]) -> Point:
    labels = [each.outcome == "accepted" for each in outcomes if each.outcome in ("accepted", "relabelled")]
    seconds = [each.seconds for each in outcomes if each.seconds is not None]
    return Point(
        masks=len(outcomes),
        since=outcomes[0].updated_at,
        until=outcomes[-1].updated_at,
        level=_share([each.rank == 1 for each in outcomes]),
        label=_share(labels),
        seconds=statistics.median(seconds) if seconds else None,
    )


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
