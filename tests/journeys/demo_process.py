"""The demo as `make run` starts it, in a process of its own on a data folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from backend.demo.project import ProjectMaker
from backend.demo.servers import HOST, Credentials
from tests.paths import ROOT

QUICK_JOBS = Path(__file__).with_name("finetune.yaml")
SETTINGS = {
    "SEMSAM_FINETUNE_CONFIG": str(QUICK_JOBS),
    "SEMSAM_WORKER_NICE": "0",
    "SEMSAM_PREANNOTATE_THRESHOLD": "0.2",  # so that the samples have parts among what is offered
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class DemoProcess:
    """Starts at once; `stop` must be called. Free ports are chosen for both servers."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self.backend_port = free_port(), free_port()
        self.url, self.backend_url = f"http://{HOST}:{self.port}", f"http://{HOST}:{self.backend_port}"
        program = "import pathlib, backend.demo.run as demo; "
        program += f"demo.run({self.port}, {self.backend_port}, data=pathlib.Path({str(data)!r}))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, **SETTINGS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> str:
        """What it has printed when it says that it is ready; AssertionError with it when the demo ends instead."""
        assert self._process.stdout is not None
        printed = ""
        for line in self._process.stdout:
            printed += line
            if "Ctrl-C here stops everything" in line:
                return printed
        raise AssertionError(f"the demo ended: {printed}")

    def wait_until_ended(self) -> tuple[int, str]:
        """Exit code, and all that it still printed."""
        printed = self._process.communicate(timeout=120)[0]
        return self._process.returncode, printed

    def stop(self) -> tuple[int, str]:
        """Ctrl-C; exit code, and the rest of what it printed."""
        self._process.send_signal(signal.SIGINT)
        return self.wait_until_ended()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def credentials(self) -> Credentials:
        return Credentials(**json.loads((self.data / "credentials.json").read_text()))

    @property
    def api(self) -> ProjectMaker:
        return ProjectMaker(self.url, self.credentials.token)
