"""A project as its Label Studio administers it: its connections to backends, its webhooks, its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backend.errors import LabelStudioError
from backend.label_studio.client import LabelStudio
from backend.label_studio.label_config import LabelConfig
from backend.records import ProjectKey

#: Label Studio versions whose smart tool sends no prompts: its requests cannot be answered.
WITHOUT_PROMPTS = ("1.23.0",)


@dataclass(frozen=True)
class StudioProject:
    """Reads what it is asked for when it is first asked for it. Its methods raise LabelStudioError, OriginRefused."""

    label_studio: LabelStudio
    key: ProjectKey

    @cached_property
    def name(self) -> str:
        """Of the project, as `LabelStudio` takes it."""
        return self.label_studio.project_on(self.key.origin, self.key.project)

    @cached_property
    def token_kind(self) -> str | None:
        """What our token for its server is, in words; None for none."""
        return self.label_studio.token_kind(self.name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The project itself."""
        return self.label_studio.get_project(self.key.project, project=self.name)

    @cached_property
    def config(self) -> LabelConfig:
        """Raises BadRequest too."""
        return LabelConfig.parse(str(self.settings.get("label_config") or ""))

    @cached_property
    def version(self) -> str:
        """Of Label Studio, such as "1.23.2"."""
        return str(self.call("GET", "/api/version").get("release") or "unknown")

    def connections(self) -> list[dict[str, Any]]:
        """Every backend that it is connected to."""
        return self._list(f"/api/ml?project={self.key.project}")

    def webhooks(self) -> list[dict[str, Any]]:
        """Its webhooks, and those of all projects."""
        return self._list(f"/api/webhooks/?project={self.key.project}")

    @cached_property
    def first_task(self) -> dict[str, Any] | None:
        """With its data; None where it has none."""
        return self.label_studio.first_task(self.key.project, project=self.name)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An object of its API."""
        found = self.label_studio.call(method, path, project=self.name, body=body)
        if not isinstance(found, dict):
            raise LabelStudioError(f"{path}: expected a JSON object in the answer")
        return found

    def _list(self, path: str) -> list[dict[str, Any]]:
        found = self.label_studio.call("GET", path, project=self.name)
        if not isinstance(found, list):
            raise LabelStudioError(f"{path}: expected a JSON list in the answer")
        return [each for each in found if isinstance(each, dict)]


def of_backend(listed: list[dict[str, Any]], address: str) -> list[dict[str, Any]]:
    """Of connections or webhooks, those to this address."""
    return [each for each in listed if str(each.get("url", "")).rstrip("/") == address.rstrip("/")]
