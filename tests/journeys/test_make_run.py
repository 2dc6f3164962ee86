"""The demo as `make run` starts it: from nothing, again, and at its end."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.demo import PROJECT_TITLE, ProjectMaker
from backend.demo_servers import HOST, check_port
from tests.journeys.conftest import ROOT, Studio, free_port

pytestmark = pytest.mark.browser


class Demo:
    """`run` in a process of its own, as its own data folder has it."""

    def __init__(self, data: Path, port: int, backend_port: int) -> None:
        self.port, self.backend_port = port, backend_port
        self._data = data
        program = "import pathlib, backend.demo as demo; "
        program += f"demo.run({port}, {backend_port}, data=pathlib.Path({str(data)!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_until_ready(self) -> str:
        """What it has printed until it said that it is ready."""
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if "Ctrl-C here stops everything" in line:
                return printed
        raise AssertionError(f"the demo ended: {printed}")

    def stop(self) -> str:
        """Ctrl-C; the rest of what it prints."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=60)[0]

    def credentials(self) -> dict[str, str]:
        return json.loads((self._data / "credentials.json").read_text())

    def contents(self) -> dict[str, Any]:
        """Project, tasks, connections and webhooks, as Label Studio has them."""
        api = ProjectMaker(f"http://{HOST}:{self.port}", self.credentials()["token"])
        (project,) = api.call("GET", "/api/projects")["results"]
        here = {"project": project["id"]}
        return {
            "project": (project["id"], project["title"], project["show_collab_predictions"]),
            "tasks": [task["id"] for task in api.call("GET", "/api/tasks", params=here)["tasks"]],
            "connections": [
                (found["url"], found["is_interactive"], found["state"])
                for found in api.call("GET", "/api/ml", params=here)
            ],
            "webhooks": [found["url"] for found in api.call("GET", "/api/webhooks/", params=here)],
        }


def test_the_demo_starts_from_nothing_finds_everything_again_and_leaves_no_server_behind(tmp_path: Path) -> None:
    first = Demo(tmp_path / "data", free_port(), free_port())
    try:
        printed = first.wait_until_ready()
        contents = first.contents()
    finally:
        first.stop()
    credentials = first.credentials()
    assert f"http://{HOST}:{first.port}/projects/1/" in printed
    assert credentials["email"] in printed
    assert credentials["password"] in printed
    backend = f"http://{HOST}:{first.backend_port}"
    assert contents["project"] == (1, PROJECT_TITLE, False)
    assert len(contents["tasks"]) == len(list((ROOT / "samples").glob("*.jpg")))
    assert contents["connections"] == [(backend, True, "CO")]
    assert contents["webhooks"] == [f"{backend}/webhook"]
    assert stat.S_IMODE((tmp_path / "data" / "credentials.json").stat().st_mode) == 0o600
    for log in (tmp_path / "data" / "logs").iterdir():
        assert credentials["token"] not in log.read_text()
        assert credentials["password"] not in log.read_text()
    assert first.process.returncode == 0
    check_port(first.port, "PORT")
    check_port(first.backend_port, "BACKEND_PORT")

    # on other ports: the connection and its webhook must follow
    second = Demo(tmp_path / "data", free_port(), free_port())
    try:
        second.wait_until_ready()
        again = second.contents()
        third = Demo(tmp_path / "data", free_port(), free_port())
        refused = third.process.communicate(timeout=60)[0]
    finally:
        second.stop()
    assert second.credentials() == credentials
    backend = f"http://{HOST}:{second.backend_port}"
    moved = {"connections": [(backend, True, "CO")], "webhooks": [f"{backend}/webhook"]}
    assert again == contents | moved
    assert third.process.returncode != 0
    assert "running already" in refused


def test_label_studio_connects_to_the_backend_and_to_no_other_private_address(studio: Studio) -> None:
    project = studio.api.make("only the backend", "<View></View>", [], studio.backend_url)
    (connection,) = studio.api.call("GET", "/api/ml", params={"project": project.id})
    assert (connection["url"], connection["state"]) == (studio.backend_url, "CO")
    port = studio.backend_url.rpartition(":")[2]
    for host in ("127.0.0.2", "10.0.0.1", "192.168.0.1"):
        with pytest.raises(Exception, match="reserved network address"):
            studio.api.call("POST", "/api/ml", json={"project": project.id, "url": f"http://{host}:{port}"})
