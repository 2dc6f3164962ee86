"""The same service under label-studio-ml 2.x, where that is installed (requirements-label-studio-ml.txt).

    label-studio-ml 2.x:  init_app(model_class=backend.ls_ml.SemanticSAMBackend)

label-studio-ml builds a model object for each request, so the service, which owns the network, is made once a process.
Version 1.0.9, the only one on the package registry, has another interface and cannot live beside Flask 3.
"""

from __future__ import annotations

import functools
from typing import Any

try:
    from label_studio_ml.model import LabelStudioMLBase
    from label_studio_ml.response import ModelResponse
except ImportError as error:  # 1.0.9 has no response module
    raise ImportError(
        "backend.ls_ml needs label-studio-ml 2.x: install requirements-label-studio-ml.txt as it says, "
        "or serve with `semsam serve`, which needs no label-studio-ml"
    ) from error

from backend.metrics import Metrics
from backend.service.service import SemsamService, build_service
from backend.settings import load_settings


class SemanticSAMBackend(LabelStudioMLBase):
    """Adapter: hands each request to the service with what the framework knows of the project."""

    @classmethod
    @functools.cache
    def service(cls) -> SemsamService:
        """The process's one service, made at first use from the environment."""
        return build_service(load_settings(), Metrics())

    def setup(self) -> None:
        self.set("model_version", self.service().model_version)

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> ModelResponse:
        predictions = self.service().predict(tasks, context, label_config=self.label_config, project=self.project_id)
        # not that of now: another model may have taken over while this one answered
        version = predictions[0]["model_version"] if predictions else self.service().model_version
        return ModelResponse(predictions=predictions, model_version=version)

    def fit(self, event: str, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self.service().fit(event, data, **kwargs)
