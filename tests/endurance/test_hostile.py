"""Whatever comes is answered, no answer tells of our insides, and /health is answered throughout.

How fast /health is answered is measured by `make soak` alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.backend.annotations import CONFIG, annotation, event
from tests.endurance import hostile
from tests.endurance.clicks import click
from tests.endurance.conftest import Shared
from tests.endurance.report import Report
from tests.paths import ROOT

pytestmark = pytest.mark.slow

#: Statuses that say that a request is wrong, or was worked on. Nothing here may be ours: 500 and above.
FINE = {200, 400, 401, 404, 405, 411, 413, 415, 422}
EXAMPLES_A_MINUTE = 100  #: for each route, of `make soak`
HEALTH_S = 1.0  #: of `make soak`


@pytest.fixture
def pulse(shared: Shared, minutes: float, report: Report, request: pytest.FixtureRequest) -> Iterator[None]:
    """/health is asked throughout the test, and in the end the log tells of no surprise."""
    before = len(shared.service.log())
    command = [sys.executable, "-m", "tests.endurance.pulse", shared.service.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            yield
            seen = json.loads(process.communicate()[0])
        finally:
            process.kill()
    assert not seen["failures"]
    said = shared.service.log()[before:]
    assert "Traceback" not in said and "unexpected failure" not in said, said[said.find("unexpected") - 500 :][:4000]
    slowest = max(seen["seconds"])
    report.note(request.node.name, f"/health asked {len(seen['seconds'])} times, slowest {slowest:.2f} s")
    if minutes:
        assert slowest <= HEALTH_S


def check(answer: requests.Response, body: Any = None) -> None:
    assert answer.status_code in FINE, (answer.status_code, answer.text[:300])
    assert "Traceback" not in answer.text and "/semsam_model/" not in answer.text and "root:" not in answer.text
    if answer.status_code == 200 and answer.request.path_url == "/predict":
        assert len(answer.json()["results"]) == len(body["tasks"])


@pytest.mark.usefixtures("pulse")
@pytest.mark.parametrize("route", hostile.SENT)
def test_bodies_with_anything_in_any_place(shared: Shared, minutes: float, route: str) -> None:
    @settings(
        max_examples=max(40, int(EXAMPLES_A_MINUTE * minutes)),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(body=hostile.bodies(route))
    def fuzz(body: Any) -> None:
        # each on a connection of its own: one that is kept may be closed just when it is used again
        check(requests.post(shared.service.url + route, data=json.dumps(body).encode(), timeout=100), body)

    fuzz()
    time.sleep(1)  # events are worked in after they were acknowledged


@given(path=st.sampled_from(["/gate/{}", "/{}", "/predict/{}", "/gate/1/{}"]), part=st.text(max_size=20))
@settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate])
def test_addresses_of_any_kind(shared: Shared, path: str, part: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        with contextlib.suppress(requests.exceptions.InvalidURL, UnicodeError):
            check(requests.request(method, shared.service.url + path.format(part), timeout=30))


@pytest.mark.usefixtures("pulse")
def test_bombs(shared: Shared) -> None:
    service = shared.service
    memory = service.resident_mb()
    for name, (content, headers) in hostile.raw_bombs().items():
        for route in hostile.SENT:
            answer = requests.post(service.url + route, data=content, headers=headers, timeout=100)
            assert answer.status_code in FINE and "Traceback" not in answer.text, (name, route, answer.text[:300])
    for name, address in hostile.photo_bombs().items():
        body = click(1, "x")
        body["tasks"][0]["data"]["image"] = address
        answer = service.post("/predict", body)
        assert answer.status_code == 200, name
        (result,) = answer.json()["results"]
        assert not result["result"] or "text" in name or "GIF" in name, name
    for name, config in hostile.config_bombs().items():
        assert service.post("/predict", click(1, shared.photos[0]) | {"label_config": config}).status_code in FINE, name
        assert service.post("/setup", hostile.SETUP | {"schema": config}).status_code in FINE, name
    for number, (name, row) in enumerate(hostile.region_bombs().items(), start=100):
        body = event("ANNOTATION_CREATED", annotation=annotation(number, [row], task=number))
        assert service.post("/webhook", body).status_code == 200, name
    time.sleep(2)
    assert service.post("/predict", click(2, shared.photos[0])).json()["results"][0]["result"]
    assert service.resident_mb() < memory + 1000
    assert CONFIG


@pytest.mark.usefixtures("pulse")
def test_a_thousand_connections_that_say_nothing_or_little(shared: Shared, minutes: float) -> None:
    address = ("127.0.0.1", shared.service.port)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    openings = [b"", b"P", head, head + b"\r\n{", b"GET /health HTTP/1.1\r\nX-Long: "]
    until = time.monotonic() + (60 * minutes / 15 if minutes else 3)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(1000)]
        for number, each in enumerate(silent):
            each.sendall(openings[number % len(openings)])
        while time.monotonic() < until:
            for number, each in enumerate(silent[2::5], start=2):  # these send on, slowly
                with contextlib.suppress(OSError):
                    each.sendall(b"X: y\r\n" if number % 5 == 2 else b" ")
            assert shared.service.post("/predict", click(3, shared.photos[1])).json()["results"][0]["result"]
            time.sleep(0.5)
