"""Whoever sends slowly, or nothing, keeps nobody from being answered."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from backend.web.arrival import HEAD, WHOLE, look_at
from tests.backend.web.stand_in import PREDICTION

SCRIPT = """
import logging, os
from backend.web import arrival
from backend.web.app import create_app
from backend.web.server import serve
from backend.metrics import Metrics
from backend.settings import Settings
from tests.backend.web.stand_in import StandIn

arrival.PATIENCE_S, arrival.LARGE, arrival.CONNECTIONS = 2.0, 2, int(os.environ["CONNECTIONS"])
logging.basicConfig(level=logging.INFO)
settings = Settings(port=0, threads=2, queued=2, max_body_bytes=8 * 2**20)
serve(settings, lambda settings: create_app(settings, StandIn(), Metrics()), lambda settings: None)
"""


Say = Callable[[bytes], socket.socket]


@contextlib.contextmanager
def running(connections: int) -> Iterator[str]:
    """Its address."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "CONNECTIONS": str(connections)}
    command = [sys.executable, "-c", SCRIPT]
    with (
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(os.killpg, process.pid, signal.SIGKILL)
        assert process.stderr is not None
        yield next(line for line in process.stderr if "listening on" in line).split()[-1]


@contextlib.contextmanager
def connecting(url: str) -> Iterator[Say]:
    """A way to open connections that say so much; all are closed in the end."""
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    with contextlib.ExitStack() as stack:

        def say(content: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(content)
            return connection

        yield say


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running(connections=400) as url:
        yield url


@pytest.fixture
def say(server: str) -> Iterator[Say]:
    with connecting(server) as say:
        yield say


def head(length: int, path: str = "/predict", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *more, f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


def answered(connection: socket.socket) -> tuple[int, Any]:
    answer = HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


BODY = b'{"tasks": [{}]}'
EXPECTED = (200, {"results": [PREDICTION]})


@pytest.mark.slow
def test_health_and_clicks_are_answered_whatever_others_do_not_send(server: str, say: Say) -> None:
    silent = list[socket.socket]()
    for content in (b"", b"POST /pre", head(1000) + b"{", head(2 * WHOLE) + b" " * (WHOLE + 1)):
        silent += [say(content) for _ in range(60)]
        assert requests.get(f"{server}/health", timeout=5).json()["status"] == "UP"
        assert answered(say(head(len(BODY)) + BODY)) == EXPECTED
    time.sleep(3)
    for each in silent[:180:20]:  # nobody waits for ever
        each.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(10) == b""


@pytest.mark.slow
def test_where_all_connections_are_taken_the_longest_silent_one_goes() -> None:
    with running(connections=40) as url, connecting(url) as say:
        silent = [say(b"") for _ in range(60)]
        assert requests.get(f"{url}/health", timeout=5).json()["status"] == "UP"
        silent[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""


@pytest.mark.slow
def test_requests_are_answered_however_they_are_cut_into_pieces(say: Say) -> None:
    pieces = [head(len(BODY)), BODY[:5], BODY[5:]]
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    connection = say(b"")
    for content in (pieces, [head(len(BODY)) + BODY], [*head(len(BODY)).splitlines(True), BODY]):
        for piece in content:  # one connection: it is kept for the next request
            connection.sendall(piece)
            time.sleep(0.02)
        assert answered(connection) == EXPECTED
    assert answered(say(chunked)) == EXPECTED
    large = BODY[:-1] + b" " * (3 * WHOLE) + b"}"
    for _ in range(4):  # more than are read at once
        assert answered(say(head(len(large)) + large)) == EXPECTED
    waits = say(head(len(BODY), "/predict", "Expect: 100-continue"))
    assert waits.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    waits.sendall(BODY)
    assert answered(waits) == EXPECTED
    assert HTTPResponse(odd := say(b"nonsense\r\n\r\n")).fp and odd.recv(12) == b"HTTP/1.1 400"


@pytest.mark.slow
@pytest.mark.parametrize("length", [HEAD + 10, 40 * HEAD])
def test_who_is_refused_reads_why_however_much_it_has_sent(say: Say, length: int) -> None:
    refused = [say(b"x" * length) for _ in range(5)]
    time.sleep(0.2)  # a reset by then would take the answers with it
    assert [each.recv(10) for each in refused] == 5 * [b"HTTP/1.1 4"]
    assert answered(say(head(len(BODY)) + BODY)) == EXPECTED


@pytest.mark.slow
def test_who_was_answered_and_does_not_close_its_connection_keeps_nobody_waiting(server: str, say: Say) -> None:
    refused = [say(b"nonsense\r\n\r\n") for _ in range(30)]
    last = [say(b"GET /health HTTP/1.0\r\n\r\n") for _ in range(30)]
    assert requests.get(f"{server}/health", timeout=5).json()["status"] == "UP"
    for connection, status in ((refused[-1], b"400"), (last[-1], b"200")):
        said = b"".join(iter(lambda each=connection: each.recv(4096), b""))
        assert said[9:12] == status


@given(st.integers(0, 3 * WHOLE), st.lists(st.integers(1, 40), max_size=8), st.booleans())
def test_what_is_missing_is_what_a_thread_waits_for(length: int, cuts: list[int], upper: bool) -> None:
    whole = head(length, "/webhook", "X-Odd: content-length: 5")
    whole = whole.replace(b"Content-Length", b"CONTENT-LENGTH") if upper else whole
    arrived = bytearray()
    for cut in cuts:
        arrived += whole[len(arrived) : len(arrived) + cut]
        assert look_at(arrived).missing == (1 if len(arrived) < len(whole) else min(length, WHOLE))
    at_once = look_at(whole)
    assert (at_once.missing, at_once.is_large, at_once.rest) == (min(length, WHOLE), length > WHOLE, length)
    there = look_at(whole + bytes(min(length, WHOLE)))
    assert (there.missing, there.rest) == (0, max(0, length - WHOLE))
