"""The label-studio-ml adapter. The real 2.x framework is not on the package registry, so where it is not installed a
stand-in of its two modules, with the methods of 2.x that the adapter uses, takes its place."""

import importlib
import sys
import types
from typing import Any

import pytest

try:
    import label_studio_ml.response  # noqa: F401

    INSTALLED = True
except ImportError:
    INSTALLED = False


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> None:
    """label_studio_ml.model and .response, as far as the adapter sees them."""

    class LabelStudioMLBase:
        def __init__(self, project_id: str, label_config: str) -> None:
            self.project_id, self.label_config, self.values = project_id, label_config, dict[str, str]()
            self.setup()

        def set(self, key: str, value: str) -> None:
            self.values[key] = value

        def setup(self) -> None: ...

    class ModelResponse(types.SimpleNamespace): ...

    for name, content in {"model": LabelStudioMLBase, "response": ModelResponse}.items():
        module = types.ModuleType(f"label_studio_ml.{name}")
        setattr(module, content.__name__, content)
        monkeypatch.setitem(sys.modules, f"label_studio_ml.{name}", module)
    monkeypatch.setitem(sys.modules, "label_studio_ml", types.ModuleType("label_studio_ml"))
    monkeypatch.delitem(sys.modules, "backend.ls_ml", raising=False)


class Service:
    model_version = "mobile-1"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def predict(self, tasks: Any, context: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.asked.append((tasks, context, kwargs))
        return [{"result": [], "score": 0.0, "model_version": "mobile-1"}]

    def fit(self, event: str, data: Any, **kwargs: Any) -> dict[str, Any]:
        return {"action": event}


@pytest.mark.skipif(INSTALLED, reason="label-studio-ml 2.x is installed")
def test_without_the_framework_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "backend.ls_ml", raising=False)
    with pytest.raises(ImportError, match=r"requirements-label-studio-ml\.txt"):
        importlib.import_module("backend.ls_ml")


@pytest.mark.skipif(INSTALLED, reason="label-studio-ml 2.x is installed")
@pytest.mark.usefixtures("framework")
def test_requests_reach_the_service_with_the_projects_own_config() -> None:
    service = Service()

    class Backend(importlib.import_module("backend.ls_ml").SemanticSAMBackend):  # type: ignore[misc]
        @classmethod
        def service(cls) -> Service:
            return service

    backend = Backend("7", "<View/>")
    assert backend.values == {"model_version": "mobile-1"}
    response = backend.predict([{"id": 1}], {"result": []})
    assert response.predictions == [{"result": [], "score": 0.0, "model_version": "mobile-1"}]
    assert service.asked == [([{"id": 1}], {"result": []}, {"label_config": "<View/>", "project": "7"})]
    assert backend.fit("START_TRAINING", {}) == {"action": "START_TRAINING"}
