"""`semsam serve` in a process of its own, that may be killed and started again on the same folder and port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from benchmarks.machine import free_port
from tests.paths import ROOT

COMMAND = [sys.executable, "-c", "from backend.cli.main import main; main()"]


class ServiceProcess:
    """Its data lie in a folder, its log beside them."""

    def __init__(self, folder: Path, *, prefix: Sequence[str] = (), **settings: object) -> None:
        """prefix: command that starts it. settings: of the service, by their names."""
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"port": self.port, "data_dir": self.data, "sync_seconds": 0, "torch_threads": 1, **settings}
        self._command = [*prefix, *COMMAND, "serve"]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **{f"SEMSAM_{name.upper()}": str(value) for name, value in given.items()},
        }
        self._log = folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> ServiceProcess:
        """Begin; ready: wait until clicks are answered, else until /health is."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self.environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        wanted = "ready" if ready else None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log()[-3000:]
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                found = requests.get(f"{self.url}/health", timeout=5).json()
                if wanted in (None, found["model_state"]):
                    return self
            time.sleep(0.05)
        raise AssertionError(f"not ready in time: {self.log()[-3000:]}")

    def kill(self) -> None:
        """At once, all of it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As a system stops it; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if number == signal.SIGTERM:
            process.send_signal(number)
            try:
                return process.wait(30)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        os.killpg(process.pid, number)
        return process.wait(30)

    @property
    def worker(self) -> int:
        """The process that answers."""
        assert self._process is not None
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def resident_mb(self) -> float:
        """Memory of that process."""
        pages = int(Path(f"/proc/{self.worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.is_file() else ""

    def lines(self, *words: str) -> list[str]:
        """Lines of the log with all of these words."""
        return [line for line in self.log().splitlines() if all(word in line for word in words)]

    def get(self, path: str, timeout: float = 30) -> requests.Response:
        return requests.get(self.url + path, timeout=timeout)

    def post(self, path: str, body: Any, timeout: float = 100) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=timeout)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextlib.contextmanager
def running(folder: Path, **settings: object) -> Iterator[ServiceProcess]:
    service = ServiceProcess(folder, **settings)
    try:
        yield service.start()
    finally:
        service.kill()
