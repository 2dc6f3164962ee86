"""The real server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import requests

from backend.settings import Settings
from backend.web.server import EXIT_CANNOT_LISTEN, serve
from tests.backend.web.stand_in import PREDICTION

BLOCKED = """
import logging, threading
from backend.web.app import create_app
from backend.web.server import serve
from backend.metrics import Metrics
from backend.settings import Settings
from tests.backend.web.stand_in import StandIn

class Stuck(StandIn):
    def predict_request(self, body, request_id):
        print("inside", flush=True)
        threading.Event().wait()

logging.basicConfig(level=logging.INFO)
settings = Settings(port=0, threads=2, queued=2, queue_seconds=1)
serve(settings, lambda settings: create_app(settings, Stuck(), Metrics()), lambda settings: None)
"""

SCRIPT = """
import logging, sys
from backend.web.app import create_app
from backend.web.server import serve
from backend.errors import NotReady
from backend.metrics import Metrics
from backend.settings import Settings
from tests.backend.web.stand_in import StandIn

def build(settings):
    if sys.argv[1] == "broken":
        raise NotReady("no weights at all")
    return create_app(settings, StandIn(), Metrics())

logging.basicConfig(level=logging.INFO)
serve(Settings(port=0, threads=2, max_body_bytes=1000), build, lambda settings: None)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    running = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "sound"], stderr=subprocess.PIPE, text=True, env=environment
    )
    with running:
        yield running
        running.kill()


@pytest.mark.slow
def test_the_real_server_answers_keeps_to_the_body_limit_and_stops_when_told(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    line = next(line for line in process.stderr if "listening on" in line)
    url = line.split()[-1]
    with requests.Session() as http:
        assert http.get(url + "/health", timeout=30).json()["status"] == "UP"
        answer = http.post(url + "/predict", json={"tasks": [{}]}, timeout=30)
        assert answer.json() == {"results": [PREDICTION]}
        # In pieces, without a length to go by
        assert http.post(url + "/setup", data=iter([b"{}", b" " * 998]), timeout=30).status_code == 200
        too_long = http.post(url + "/setup", data=iter([b" " * 600] * 2), timeout=30)
        assert (too_long.status_code, too_long.json()["status"]) == (413, 413)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


BUSY = """
import sys, threading
import torch
from flask import Flask
from backend.settings import Settings
from backend.web.server import CLOSE, serve

def build(settings):
    torch.set_num_threads(1)
    network, photo = torch.nn.Sequential(*[torch.nn.Conv2d(8, 8, 3) for _ in range(10)]), torch.rand(1, 8, 64, 64)
    begun = threading.Event()

    def busy():
        while True:
            network(photo)
            begun.set()

    threading.Thread(target=busy, daemon=True).start()
    begun.wait()
    app = Flask("busy")
    app.extensions[CLOSE] = lambda: print("closed", file=sys.stderr)
    print("busy", file=sys.stderr, flush=True)
    return app

serve(Settings(port=0), build, lambda settings: None)
"""


@pytest.mark.slow
def test_told_to_stop_while_the_network_runs_it_closes_what_is_open_and_ends_without_a_word() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        assert next(running.stderr) == "busy\n"
        time.sleep(0.5)  # gunicorn listens to signals a moment later
        running.send_signal(signal.SIGTERM)
        said = running.stderr.read()
        assert running.wait(30) == 0
    assert said == "closed\n"


@pytest.mark.slow
def test_while_every_prediction_is_stuck_health_and_setup_answer_and_further_clicks_get_a_busy_answer() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    body = b'{"tasks": [{}, {}]}'
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        subprocess.Popen(
            [sys.executable, "-c", BLOCKED],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        ) as running,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(os.killpg, running.pid, signal.SIGKILL)  # its threads are stuck: it cannot end by itself
        assert running.stdout is not None and running.stderr is not None
        url = next(line for line in running.stderr if "listening on" in line).split()[-1]
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))

        def click() -> socket.socket:
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(head + body)
            return connection

        for _ in range(2):
            click()
            assert running.stdout.readline() == "inside\n"
        waiting = [click() for _ in range(4)]
        for _ in range(3):
            # Label Studio waits 1 s and 3 s for these
            assert requests.get(url + "/health", timeout=1).json()["status"] == "UP"
            assert requests.post(url + "/setup", json={"project": "1.2"}, timeout=3).status_code == 200
        for connection in waiting:
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            assert [entry["result"] for entry in json.load(answer)["results"]] == [[], []]
        text = requests.get(url + "/metrics", timeout=5).text
        assert 'semsam_empty_answers_total{project="other",reason="busy"} 8.0' in text
        assert "busy" in next(line for line in running.stderr if "empty answers" in line)


@pytest.mark.slow
def test_a_service_that_cannot_start_ends_the_process_with_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "broken"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode != 0
    assert "semsam: no weights at all" in done.stderr
    assert "Traceback" not in done.stderr


SEMSAM = [sys.executable, "-c", "from backend.cli.main import main; main()"]


@pytest.mark.slow
def test_whoever_connects_is_answered_at_once_though_the_model_is_still_loading(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "SEMSAM_PORT": str(address[1])}
    environment["SEMSAM_DATA_DIR"] = str(tmp_path)
    with subprocess.Popen([*SEMSAM, "serve"], stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            while True:
                assert running.poll() is None
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, timeout=5) as first:
                    first.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = HTTPResponse(first)
                    answer.begin()
                    health = json.load(answer)
                    break
                time.sleep(0.02)
            assert health["status"] == "UP"
            assert health["model_state"] == "loading"  # so nobody waited for torch
            assert health["model_version"].startswith("mobile-")
        finally:
            running.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"not weights"])
def test_wrong_weights_are_one_line_an_exit_code_and_no_open_port(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content:
        path.write_bytes(content)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "SEMSAM_PORT": "0", "SEMSAM_WEIGHTS": str(path)}
    done = subprocess.run([*SEMSAM, "serve"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr


@pytest.mark.slow
def test_the_collector_passes_over_what_was_loaded_and_over_nothing_before() -> None:
    program = """
import gc
from backend.web.server import pass_over_loaded

gc.freeze()
pass_over_loaded(gc.unfreeze)
print(len(gc.get_objects()), gc.get_freeze_count())
"""
    # a process of its own: what is passed over is never collected
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    looked_at, passed_over = map(int, done.stdout.split())
    assert looked_at < 1000 < 10_000 < passed_over


def test_a_taken_port_is_one_clear_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def never(_: Settings) -> Any:
        raise AssertionError("nothing may be built for a port that cannot be had")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as exit_:
            serve(Settings(port=port), never, never)
    assert exit_.value.code == EXIT_CANNOT_LISTEN
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(port) in said
    assert "SEMSAM_PORT" in said
