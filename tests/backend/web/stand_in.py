"""A service that needs no model, and the application over it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask.testing import FlaskClient

from backend.finetuning.jobs import Job
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.status import GateReport, Status
from backend.settings import Settings
from backend.web.app import create_app

PREDICTION = {"result": [{"id": "a"}], "score": 0.5, "model_version": "v1"}


class StandIn:
    """A service that remembers what it was asked and answers what it is told to."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.refused: list[Any] = []
        self.request_ids: list[str] = []
        self.error: Exception | None = None
        self.results: Any = None
        self.version = "v1"

    def note(self, body: Any) -> None:
        self.bodies.append(body)
        if self.error:
            raise self.error

    def health(self) -> dict[str, Any]:
        return {"status": "UP", "model_version": self.version, "model_state": "loading"}

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.note(body)
        return {"model_version": self.version}

    def project_of(self, body: Any) -> None:
        return None

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        self.request_ids.append(request_id)
        self.note(body)
        return [PREDICTION for _ in body["tasks"]] if self.results is None else self.results

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.note(body)
        return {"status": "noted"}

    def refused_event(self, body: Any) -> None:
        self.refused.append(body)

    def status(self) -> Status:
        return Status()

    def gate_report(self, job: int) -> GateReport:
        self.note(job)
        found = Job(job, ProjectKey("http://ls", 1), "refused", "button", requested_at=datetime(2026, 3, 1, tzinfo=UTC))
        return GateReport(found, f"<p>job {job}</p>")

    def versions(self) -> dict[str, Any]:
        return {"versions": [self.version], "live": self.version}


def client(service: Any, **changes: Any) -> FlaskClient:
    """changes: of the settings."""
    return create_app(Settings(**changes), service, Metrics()).test_client()
