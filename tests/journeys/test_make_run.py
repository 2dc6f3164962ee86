"""The demo as `make run` starts it: from nothing, again, and at its end."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from backend.demo.project import PROJECT_TITLE
from backend.demo.servers import check_port
from backend.errors import DemoError
from tests.journeys.conftest import Studio
from tests.journeys.demo_process import DemoProcess
from tests.paths import SAMPLES

pytestmark = pytest.mark.browser


def contents(demo: DemoProcess) -> dict[str, Any]:
    """The demo's project, tasks, connections and webhooks, as Label Studio has them."""
    api = demo.api
    (project,) = api.call("GET", "/api/projects", params={"title": PROJECT_TITLE})["results"]
    here = {"project": project["id"]}
    return {
        "project": (project["id"], project["title"], project["show_collab_predictions"]),
        "tasks": [task["id"] for task in api.call("GET", "/api/tasks", params=here)["tasks"]],
        "connections": [
            (found["url"], found["is_interactive"], found["state"]) for found in api.call("GET", "/api/ml", params=here)
        ],
        "webhooks": [found["url"] for found in api.call("GET", "/api/webhooks/", params=here)],
    }


def copy_of(data: Path, to: Path) -> Path:
    """A data folder as it is now, though its Label Studio runs."""
    shutil.copytree(data, to)
    name = Path("label-studio") / "label_studio.sqlite3"
    with (
        contextlib.closing(sqlite3.connect(data / name)) as source,
        contextlib.closing(sqlite3.connect(to / name)) as target,
    ):
        source.backup(target)
    return to


def test_the_first_start_makes_the_project_and_says_how_to_log_in(studio: Studio) -> None:
    made = contents(studio.demo)
    assert made["project"][1:] == (PROJECT_TITLE, False)
    assert len(made["tasks"]) == len(list(SAMPLES.glob("*.jpg")))
    assert made["connections"] == [(studio.backend_url, True, "CO")]
    assert made["webhooks"] == [f"{studio.backend_url}/webhook"]
    (webhook,) = studio.api.call("GET", "/api/webhooks/", params={"project": made["project"][0]})
    assert webhook["headers"] == {"X-Semsam-Secret": studio.credentials.webhook_secret}
    assert f"{studio.url}/projects/{made['project'][0]}/" in studio.printed
    assert studio.credentials.email in studio.printed
    assert studio.credentials.password in studio.printed


def test_secrets_are_in_one_private_file_and_in_no_log(studio: Studio) -> None:
    assert stat.S_IMODE((studio.demo.data / "credentials.json").stat().st_mode) == 0o600
    logs = list((studio.demo.data / "logs").iterdir())
    assert {log.stem for log in logs} == {"label-studio", "backend", "worker"}
    for log in logs:
        assert studio.credentials.token not in log.read_text()
        assert studio.credentials.password not in log.read_text()
        assert studio.credentials.webhook_secret not in log.read_text()


def test_a_second_start_on_other_ports_finds_everything_and_leaves_no_server_behind(
    studio: Studio, tmp_path: Path
) -> None:
    first = contents(studio.demo)
    second = DemoProcess(copy_of(studio.demo.data, tmp_path / "data"))
    try:
        second.wait_until_ready()
        again = contents(second)
        code, printed = DemoProcess(second.data).wait_until_ended()
        assert code != 0
        assert "running already" in printed
    finally:
        code, printed = second.stop()
    # the connection and its webhook follow the backend to its new port
    moved = {"connections": [(second.backend_url, True, "CO")], "webhooks": [f"{second.backend_url}/webhook"]}
    assert again == first | moved
    assert code == 0, printed
    check_port(second.port, "PORT")
    check_port(second.backend_port, "BACKEND_PORT")


def test_label_studio_connects_to_the_backend_and_to_no_other_private_address(studio: Studio) -> None:
    project = studio.api.make("only the backend", "<View></View>", [], studio.backend_url)
    (connection,) = studio.api.call("GET", "/api/ml", params={"project": project.id})
    assert (connection["url"], connection["state"]) == (studio.backend_url, "CO")
    port = studio.backend_url.rpartition(":")[2]
    for host in ("127.0.0.2", "10.0.0.1", "192.168.0.1"):
        with pytest.raises(DemoError, match="reserved network address"):
            studio.api.call("POST", "/api/ml", json={"project": project.id, "url": f"http://{host}:{port}"})
