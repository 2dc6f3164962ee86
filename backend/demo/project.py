"""The demo project in a running Label Studio: labeling config, sample photos, connection and webhook.

Every step finds what an earlier run has made and leaves it as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend.errors import DemoError

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT_TITLE = "semsam demo"
CONNECTION_TITLE = "semsam"


@dataclass(frozen=True)
class DemoProject:
    """A project in Label Studio that is connected to the backend. `tasks`: ids in the order of the photographs."""

    id: int
    tasks: list[int]


class ProjectMaker:
    """Makes projects in a running Label Studio, through its API."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Token {token}"

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON that Label Studio's API answers (None for an empty answer); DemoError for anything but success."""
        try:
            response = self._session.request(method, self._url + path, timeout=60, **arguments)
        except requests.RequestException as error:
            raise DemoError(f"Label Studio at {self._url} does not answer: {error}") from None
        if response.status_code == 401:
            raise DemoError(
                f"Label Studio at {self._url} does not know the token: its data and credentials.json do not belong "
                "together. Restore the one that was lost, or move the data folder away to start afresh"
            )
        if not response.ok:
            raise DemoError(f"Label Studio refused {method} {path} with {response.status_code}: {_reason(response)}")
        return response.json() if response.content else None

    def make(
        self,
        title: str,
        labeling_config: str,
        photographs: Sequence[Path],
        backend_url: str,
        webhook_secret: str | None = None,
    ) -> DemoProject:
        """The project `title` with one task for each photograph and an interactive connection to `backend_url`.

        `webhook_secret`: the header of its webhook, by which the backend knows it; None leaves the header as it is.
        """
        projects = self.call("GET", "/api/projects", params={"title": title, "page_size": 100})["results"]
        project = next((found["id"] for found in projects if found["title"] == title), None)
        if project is None:
            # with shared predictions on, opening a task would ask the backend for masks that nobody has clicked for
            settings = {"title": title, "label_config": labeling_config, "show_collab_predictions": False}
            project = self.call("POST", "/api/projects", json=settings)["id"]
        tasks = self._tasks(project)
        if not tasks and photographs:
            with contextlib.ExitStack() as stack:
                files = {photo.name: (photo.name, stack.enter_context(photo.open("rb"))) for photo in photographs}
                self.call("POST", f"/api/projects/{project}/import", files=files)
            tasks = self._tasks(project)
        self._connect(project, backend_url)
        if webhook_secret is not None:
            self._show_secret(project, f"{backend_url}/webhook", webhook_secret)
        return DemoProject(project, tasks)

    def _tasks(self, project: int) -> list[int]:
        answer = self.call("GET", "/api/tasks", params={"project": project, "page_size": 100, "fields": "all"})
        return sorted(task["id"] for task in answer["tasks"])

    def _connect(self, project: int, backend_url: str) -> None:
        wanted = {"project": project, "url": backend_url, "title": CONNECTION_TITLE, "is_interactive": True}
        connections = self.call("GET", "/api/ml", params={"project": project})
        ours = next((found for found in connections if found["title"] == CONNECTION_TITLE), None)
        if ours is None:
            self.call("POST", "/api/ml", json=wanted)
        elif ours["url"] != backend_url:
            self.call("PATCH", f"/api/ml/{ours['id']}", json=wanted)
            # Label Studio made a webhook with the connection and would leave it at the old address
            for webhook in self.call("GET", "/api/webhooks/", params={"project": project}):
                if webhook["url"] == f"{ours['url']}/webhook":
                    self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json={"url": f"{backend_url}/webhook"})

    def _show_secret(self, project: int, url: str, secret: str) -> None:
        """Label Studio makes a webhook with each connection when it can, but without our header."""
        wanted = {"url": url, "headers": {"X-Semsam-Secret": secret}}
        ours = [one for one in self.call("GET", "/api/webhooks/", params={"project": project}) if one["url"] == url]
        for webhook in ours:
            if webhook.get("headers") != wanted["headers"]:
                self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json=wanted)
        if not ours:
            every = {"project": project, "send_payload": True, "send_for_all_actions": True}
            self.call("POST", "/api/webhooks/", json=wanted | every)


def _reason(response: requests.Response) -> str:
    """Why Label Studio refused, in one line without markup."""
    try:
        body = response.json()
        text = json.dumps(body.get("validation_errors") or body["detail"])
    except (ValueError, KeyError, AttributeError):
        text = response.text
    return re.sub(r"<[^>]*>", "", " ".join(text.split()))[:500]


def prepare(
    label_studio_url: str, token: str, backend_url: str, root: Path | None = None, webhook_secret: str | None = None
) -> DemoProject:
    """The demo project in a Label Studio that already runs, with `configs/labeling.xml` and `samples/*.jpg` of `root`.

    `backend_url` is the backend as Label Studio reaches it; `root` the repository (default: the one of this file).
    `webhook_secret` as in `ProjectMaker.make`. Raises DemoError.
    """
    root = root or REPOSITORY
    config = (root / "configs" / "labeling.xml").read_text()
    photographs = sorted((root / "samples").glob("*.jpg"))
    maker = ProjectMaker(label_studio_url, token)
    return maker.make(PROJECT_TITLE, config, photographs, backend_url, webhook_secret)
