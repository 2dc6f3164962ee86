"""What the gate decided about a job, as the pages show it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from semsam_model.gate.verdict_table import VerdictTable, read_verdict

if TYPE_CHECKING:  # the store and its libraries
    from backend.finetuning.jobs import Job


@dataclass(frozen=True)
class Gate:
    """A judged job."""

    job: Job
    verdict: VerdictTable

    @property
    def promoted(self) -> bool:
        return self.job.state == "promoted"


def read_gate(job: Job) -> Gate | None:
    """None for a job that the gate has not judged."""
    if not job.verdict:
        return None
    verdict = read_verdict(job.verdict)
    if not verdict.reasons and job.state != "promoted" and job.message:  # better than its parent, and not activated
        verdict = replace(verdict, reasons=(job.message,))
    return Gate(job, verdict)
