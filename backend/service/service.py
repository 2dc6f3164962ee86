"""What the backend does, apart from HTTP: the face of the service, each method a step into one of its parts.

The methods `predict` and `fit` have the signature of label-studio-ml 2.x, so that `backend.ls_ml` can serve the same
object under that framework; `backend.web.app` serves it under Flask.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import StoreError
from backend.inference.label_embeddings import LabelVectors
from backend.inference.predictor import Predictor
from backend.label_studio.requests import parse_setup
from backend.service.event_handler import EventHandler
from backend.service.predictions import PredictionService
from backend.service.status import GateReport, Status, StatusReader
from backend.versions.registry import Registry

log = logging.getLogger(__name__)


class SemsamService:
    """Thread-safe. Built by `wiring`."""

    def __init__(
        self,
        predictor: Predictor,
        label_vectors: LabelVectors,
        predictions: PredictionService,
        events: EventHandler,
        registry: Registry,
        status: StatusReader,
        closing: contextlib.ExitStack,
    ) -> None:
        """closing: what `close` does."""
        self._predictor = predictor
        self._label_vectors = label_vectors
        self._predictions = predictions
        self._events = events
        self._registry = registry
        self._status = status
        self._closing = closing

    def close(self) -> None:
        """Stop what runs in the background and give connections back."""
        self._closing.close()

    # ---- what Label Studio asks about us: answered from memory

    @property
    def model_version(self) -> str:
        """Version of the model that answers, or of the one that is loading."""
        return self._predictor.version_name

    def health(self) -> dict[str, Any]:
        """Always answers; says whether clicks are served yet, and why not."""
        answer = {"status": "UP", "model_version": self.model_version, "model_state": self._predictor.state}
        return answer | ({"problem": self._predictor.problem} if self._predictor.problem else {})

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A project introduces itself: note its server, look at its labeling config, name the model."""
        setup = parse_setup(body)
        self._events.introduced(setup)
        for problem in setup.problems:
            log.warning("project %s: %s", setup.project, problem)
        if setup.config:
            self._label_vectors.prepare(setup.config)
        return {"model_version": self.model_version}

    def versions(self) -> dict[str, Any]:
        """`versions`: names of those that can be made live, `live`: of the one that is, `details` of each.

        Without the store only the version that answers is known, and `details` are missing.
        """
        try:
            live = self._registry.live().version
            every = [version for version in self._registry.all() if version.model == live.model]
        except StoreError as error:
            log.warning("versions: only the one that answers is known: %s", error)
            return {"versions": [self.model_version], "live": self.model_version}
        details = [{k: v for k, v in version.to_dict().items() if k != "weights"} for version in every]
        return {"versions": [version.version for version in every], "live": live.version, "details": details}

    def status(self) -> Status:
        """What annotators' work has come to; without the store, why that is not known."""
        return self._status.status()

    def gate_report(self, job: int) -> GateReport:
        """What the gate said about a fine-tuning job. Raises NotStored, StoreError as `StatusReader.gate_report`."""
        return self._status.gate_report(job)

    # ---- predictions

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """label-studio-ml 2.x: `tasks` and `context` as Label Studio sends them; kwargs label_config, project."""
        body = {
            "tasks": list(tasks),
            "label_config": kwargs.get("label_config"),
            "project": kwargs.get("project"),
            "params": {"context": context},
        }
        return self.predict_request(body, kwargs.get("request_id") or uuid.uuid4().hex)

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        """The body of POST /predict -> one prediction for each task, in order. Raises BadRequest."""
        return self._predictions.predict(body, request_id)

    # ---- events

    def fit(self, event: str, data: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """label-studio-ml 2.x: something happened in a project. Noted; nothing trains inside a request."""
        return self.event({**data, "action": event})

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A webhook event, on disk when this returns. Raises BadRequest, StoreError, LabelStudioError."""
        return self._events.event(body)
