from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import BadRequest, NotReady
from backend.finetuning.jobs import Job
from backend.metrics import Metrics
from backend.records import ProjectKey
from backend.service.status import GateReport, Status
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.server import EXIT_CANNOT_LISTEN, serve

PREDICTION = {"result": [{"id": "a"}], "score": 0.5, "model_version": "v1"}


class StandIn:
    """A service that remembers what it was asked and answers what it is told to."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.request_ids: list[str] = []
        self.error: Exception | None = None
        self.results: Any = None
        self.version = "v1"

    def _asked(self, body: Any) -> None:
        self.bodies.append(body)
        if self.error:
            raise self.error

    def health(self) -> dict[str, Any]:
        return {"status": "UP", "model_version": self.version, "model_state": "loading"}

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._asked(body)
        return {"model_version": self.version}

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        self.request_ids.append(request_id)
        self._asked(body)
        return [PREDICTION for _ in body["tasks"]] if self.results is None else self.results

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._asked(body)
        return {"status": "noted"}

    def status(self) -> Status:
        return Status()

    def gate_report(self, job: int) -> GateReport:
        self._asked(job)
        found = Job(job, ProjectKey("http://ls", 1), "refused", "button", requested_at=datetime(2026, 3, 1, tzinfo=UTC))
        return GateReport(found, f"<p>job {job}</p>")

    def versions(self) -> dict[str, Any]:
        return {"versions": [self.version], "live": self.version}


@pytest.fixture
def service() -> StandIn:
    return StandIn()


def client(service: StandIn, **changes: Any) -> FlaskClient:
    return create_app(Settings(**changes), service, Metrics()).test_client()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# ---- what Label Studio calls


def test_health_setup_versions_and_webhook_answer_what_the_service_says(service: StandIn) -> None:
    http = client(service)
    assert http.get("/health").json == service.health()
    assert http.post("/setup", json={"project": "1.2"}).json == {"model_version": "v1"}
    assert http.get("/versions").json == {"versions": ["v1"], "live": "v1"}
    assert http.post("/webhook", json={"action": "START_TRAINING"}).json == {"status": "noted"}
    assert service.bodies == [{"project": "1.2"}, {"action": "START_TRAINING"}]


@pytest.mark.parametrize("extra", [{"levels": 6}, '{"levels": 6}', "", None])
def test_setup_passes_extra_parameters_on_as_object_or_text(service: StandIn, extra: Any) -> None:
    assert client(service).post("/setup", json={"extra_params": extra}).status_code == 200
    assert service.bodies == [{"extra_params": extra}]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_predict_gives_one_entry_for_each_task(service: StandIn, count: int) -> None:
    answer = client(service).post("/predict", json={"tasks": [{"id": i} for i in range(count)]})
    assert answer.status_code == 200
    assert answer.json == {"results": [PREDICTION] * count}


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), NotReady("loading"), BadRequest("label_config: odd"), KeyError("x")]
)
def test_predict_answers_empty_and_logs_why_when_the_service_fails(
    service: StandIn, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    service.error = error
    answer = client(service).post("/predict", json={"tasks": [{}, {}]}, headers={"X-Request-Id": "abc-1"})
    assert answer.status_code == 200
    assert [entry["result"] for entry in answer.json["results"]] == [[], []]
    assert any("abc-1" in record.getMessage() and record.levelno >= logging.WARNING for record in caplog.records)
    assert str(error.args[0]) in caplog.text
    assert service.request_ids == ["abc-1"]


@pytest.mark.parametrize("results", [[], [PREDICTION] * 3, None, [{"score": float("nan")}] * 2, [{"result": {1}}] * 2])
def test_predict_answers_empty_when_the_service_gives_what_label_studio_cannot_read(
    service: StandIn, results: Any
) -> None:
    service.results = results if results is not None else 5
    answer = client(service).post("/predict", json={"tasks": [{}, {}]})
    assert answer.status_code == 200
    assert [entry["result"] for entry in answer.json["results"]] == [[], []]


@pytest.mark.parametrize("tasks", [None, {}, "x", 3])
def test_predict_without_a_list_of_tasks_is_a_bad_request_that_says_so(service: StandIn, tasks: Any) -> None:
    answer = client(service).post("/predict", json={"tasks": tasks})
    assert answer.status_code == 400
    assert "tasks: expected a list" in answer.json["error"]
    assert service.bodies == []


@pytest.mark.parametrize("route", ["/predict", "/setup", "/webhook"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"[" * 100_000, b"null"])
def test_a_body_that_is_no_json_object_is_a_bad_request(service: StandIn, route: str, data: bytes) -> None:
    answer = client(service).post(route, data=data)
    assert answer.status_code == 400
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert service.bodies == []


def test_the_type_header_of_a_body_does_not_matter(service: StandIn) -> None:
    assert client(service).post("/setup", data=b"{}", content_type="text/plain").status_code == 200


def test_a_body_over_the_limit_is_refused_with_the_setting_to_change(service: StandIn) -> None:
    http = client(service, max_body_bytes=100)
    assert http.post("/setup", data=b"{}" + b" " * 98).status_code == 200
    answer = http.post("/setup", data=b"{}" + b" " * 99)
    assert answer.status_code == 413
    assert "max_body_bytes" in answer.json["error"]


# ---- errors


@pytest.mark.parametrize(
    ("method", "route", "status"), [("GET", "/nothing", 404), ("GET", "/predict", 405), ("PUT", "/", 405)]
)
def test_unknown_routes_and_methods_are_answered_as_json(
    service: StandIn, method: str, route: str, status: int
) -> None:
    answer = client(service).open(route, method=method)
    assert answer.status_code == status
    assert answer.json["status"] == status
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert ("Allow" in answer.headers) == (status == 405)


def test_an_unexpected_error_shows_the_client_its_request_id_and_nothing_of_the_inside(
    service: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = RuntimeError("secret inside")
    answer = client(service).post("/setup", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "secret inside" in caplog.text
    assert answer.json["request_id"] in caplog.text


def test_an_error_of_ours_has_its_own_status_and_no_live_markup(service: StandIn) -> None:
    service.error = NotReady("<script>alert(1)</script>")
    answer = client(service).post("/setup", json={})
    assert answer.status_code == 503
    assert answer.json["error"] == "<script>alert(1)</script>"
    assert "<" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("wanted", ["a b", "x" * 65, "a\tb", "<b>"])
def test_a_strange_request_id_is_replaced(service: StandIn, wanted: str) -> None:
    answer = client(service).get("/health", headers={"X-Request-Id": wanted})
    assert re.fullmatch("[0-9a-f]{12}", answer.headers["X-Request-Id"])


# ---- who may call


ROUTES = [
    ("GET", "/"),
    ("GET", "/gate/1"),
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("GET", "/versions"),
    ("GET", "/metrics"),
    ("GET", "/no"),
]


@pytest.mark.parametrize(("method", "route"), [*ROUTES, ("POST", "/webhook")])
def test_with_a_password_every_route_but_health_asks_for_it(service: StandIn, method: str, route: str) -> None:
    http = client(service, basic_auth_user="someone", basic_auth_pass="wörd€")
    without = http.open(route, method=method, json={"tasks": []})
    assert without.status_code == 401
    assert without.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert without.json["request_id"]
    assert http.open(route, method=method, json={"tasks": []}, headers=basic("someone", "wörd€")).status_code != 401
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        basic("someone", "wrong"),
        basic("other", "wörd"),
        basic("", ""),
        basic("someone", "wör"),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"someone:w\xf7rd").decode()},
        {"Authorization": "Basic ö".encode().decode("latin-1")},
        {"Authorization": "Basic " + base64.b64encode(b"someone").decode()},
        {"Authorization": "Bearer wörd".encode().decode("latin-1")},
        {"Authorization": "Basic"},
    ],
)
def test_wrong_credentials_are_refused_and_not_logged(
    service: StandIn, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    caplog.set_level(logging.DEBUG)
    http = client(service, basic_auth_user="someone", basic_auth_pass="wörd")
    assert http.post("/setup", json={}, headers=headers).status_code == 401
    assert service.bodies == []
    assert "wörd" not in caplog.text
    assert "wrong" not in caplog.text.replace("missing or wrong", "")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_user_and_password_can_be_used(service: StandIn, user: str, password: str) -> None:
    http = client(service, basic_auth_user=user, basic_auth_pass=password)
    assert http.post("/setup", json={}, headers=basic(user, password)).status_code == 200
    assert http.post("/setup", json={}, headers=basic(user, password + "x")).status_code == 401


def test_a_password_may_come_in_latin_1_as_label_studio_sends_it(service: StandIn) -> None:
    http = client(service, basic_auth_user="someone", basic_auth_pass="wörd")
    headers = {"Authorization": "Basic " + base64.b64encode("someone:wörd".encode("latin-1")).decode()}
    assert http.post("/setup", json={}, headers=headers).status_code == 200


def test_a_webhook_secret_guards_the_webhook_alone(service: StandIn) -> None:
    http = client(service, webhook_secret="sésame")
    secret = {"X-Semsam-Secret": "sésame"}
    assert http.post("/webhook", json={}).status_code == 401
    assert http.post("/webhook", json={}, headers={"X-Semsam-Secret": "other"}).status_code == 401
    assert http.post("/webhook", json={}, headers=basic("", "")).status_code == 401
    assert http.post("/webhook", json={}, headers=secret).status_code == 200
    # Label Studio's Start Training button sends no headers of the webhook's, and asks for no more than a click may
    assert http.post("/webhook", json={"action": "START_TRAINING"}).status_code == 200
    assert http.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 401
    assert http.post("/webhook", json={"action": "START_TRAINING", "x": "x" * 5_000_000}).status_code == 413
    assert http.post("/setup", json={}).status_code == 200


def test_the_webhook_takes_its_secret_or_the_password_and_other_routes_the_password_only(service: StandIn) -> None:
    http = client(service, webhook_secret="sesame", basic_auth_user="u", basic_auth_pass="p")
    assert http.post("/webhook", json={"action": "START_TRAINING"}).status_code == 401
    secret = {"X-Semsam-Secret": "sesame"}
    assert http.post("/webhook", json={}, headers=secret).status_code == 200
    assert http.post("/webhook", json={}, headers=basic("u", "p")).status_code == 200
    assert http.post("/setup", json={}, headers=secret).status_code == 401


# ---- what people look at


def test_the_page_shows_version_health_and_address_and_escapes_them(service: StandIn) -> None:
    service.version = "<b>v1</b>"
    http = client(service)
    page = http.get("/")
    assert page.mimetype == "text/html"
    assert "&lt;b&gt;v1" in page.text
    assert "<b>" not in page.text
    assert "http://localhost" in page.text
    assert "loading" in page.text
    head = http.head("/")
    assert (head.status_code, head.data) == (200, b"")


def test_a_gate_report_is_shown_as_the_job_wrote_it_and_may_load_nothing(service: StandIn) -> None:
    page = client(service).get("/gate/7")
    assert page.text == "<p>job 7</p>"
    assert service.bodies == [7]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"


def test_each_request_is_one_log_line_with_project_and_number_of_tasks(
    service: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    http = client(service)
    http.post("/predict", json={"project": "45.17", "tasks": [{}, {}]}, headers={"X-Request-Id": "one"})
    http.post("/webhook", json={"project": {"id": 45}}, headers={"X-Request-Id": "two"})
    http.post("/setup", json={"project": "a\nrequest forged \ud800"}, headers={"X-Request-Id": "three"})
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("request ")]
    assert len(lines) == 3
    assert re.fullmatch(r"request one POST /predict 200 \d+ ms project 45\.17 tasks 2", lines[0])
    assert re.fullmatch(r"request two POST /webhook 200 \d+ ms project 45 tasks -", lines[1])
    assert "\n" not in lines[2]
    assert lines[2].isascii()


def test_metrics_count_requests_by_route_and_empty_answers_by_reason(service: StandIn) -> None:
    http = client(service)
    service.error = NotReady("loading")
    http.post("/predict", json={"tasks": [{}, {}]})
    for path in ("/a", "/b", "/c"):
        http.get(path)
    text = http.get("/metrics").text
    assert 'semsam_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'semsam_requests_total{route="other",status="404"} 3.0' in text
    assert 'semsam_empty_answers_total{reason="NotReady"} 2.0' in text


def test_two_services_in_one_process_do_not_add_up() -> None:
    one, two = client(StandIn()), client(StandIn())
    one.get("/versions")
    assert 'route="/versions"' in one.get("/metrics").text
    assert 'route="/versions"' not in two.get("/metrics").text


def test_metrics_tell_stages_cache_model_and_events_and_keep_unknown_events_together() -> None:
    metrics = Metrics()
    metrics.stage("encode", 0.5)
    metrics.cache_hit()
    metrics.cache_miss()
    metrics.cache_size(1000, 2)
    metrics.model_ready("mobile", "v1")
    for action in ("ANNOTATION_CREATED", "x1", "x2"):
        metrics.event(action)
    text = metrics.render().decode()
    for line in (
        'semsam_predict_seconds_sum{stage="encode"} 0.5',
        "semsam_embedding_cache_hits_total 1.0",
        "semsam_embedding_cache_misses_total 1.0",
        "semsam_embedding_cache_bytes 1000.0",
        "semsam_embedding_cache_entries 2.0",
        'semsam_model_info{name="mobile",version="v1"} 1.0',
        'semsam_events_total{action="ANNOTATION_CREATED"} 1.0',
        'semsam_events_total{action="other"} 2.0',
    ):
        assert line in text


# ---- the process

BLOCKED = """
import logging, threading
from backend.web.app import create_app
from backend.web.server import serve
from backend.metrics import Metrics
from backend.settings import Settings
from tests.backend.web.test_app import StandIn

class Stuck(StandIn):
    def predict_request(self, body, request_id):
        print("inside", flush=True)
        threading.Event().wait()

logging.basicConfig(level=logging.INFO)
serve(Settings(port=0, threads=2), lambda settings: create_app(settings, Stuck(), Metrics()), lambda settings: None)
"""

SCRIPT = """
import logging, sys
from backend.web.app import create_app
from backend.web.server import serve
from backend.errors import NotReady
from backend.metrics import Metrics
from backend.settings import Settings
from tests.backend.web.test_app import StandIn

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
        assert 'semsam_empty_answers_total{reason="busy"} 8.0' in text
        assert "busy" in next(line for line in running.stderr if "empty answers" in line)


def test_a_place_is_free_again_after_a_prediction_however_it_ended(service: StandIn) -> None:
    http = client(service, threads=1)
    for error in (RuntimeError("broken"), NotReady("loading"), None, None):
        service.error = error
        answer = http.post("/predict", json={"tasks": [{}]})
        http.post("/predict", data=b"{")
    assert answer.json == {"results": [PREDICTION]}


def test_a_service_that_cannot_start_ends_the_process_with_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "broken"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode != 0
    assert "semsam: no weights at all" in done.stderr
    assert "Traceback" not in done.stderr


SEMSAM = [sys.executable, "-c", "from backend.cli.main import main; main()"]


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
