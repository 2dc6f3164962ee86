"""The routes as Label Studio and people call them: answers, errors, headers, log lines."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from backend.errors import BadRequest, NotReady
from backend.web import routes
from tests.backend.web.stand_in import PREDICTION, StandIn, client

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


def test_a_body_of_very_many_lists_or_tasks_is_refused_before_anybody_waits_for_it(
    service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_LISTS", 4)
    http = client(service)
    assert http.post("/setup", json={"a": [[], {}]}).status_code == 200
    answer = http.post("/setup", json={"a": [[], {}, {}]})
    assert answer.status_code == 413
    assert "at most 4 lists and objects, got 5" in answer.json["error"]
    monkeypatch.setattr(routes, "MAX_TASKS", 2)
    assert http.post("/predict", json={"tasks": [0, 0]}).status_code == 200
    assert http.post("/predict", json={"tasks": [0, 0, 0]}).status_code == 413


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
    assert 'semsam_empty_answers_total{project="other",reason="NotReady"} 2.0' in text


def test_two_services_in_one_process_do_not_add_up() -> None:
    one, two = client(StandIn()), client(StandIn())
    one.get("/versions")
    assert 'route="/versions"' in one.get("/metrics").text
    assert 'route="/versions"' not in two.get("/metrics").text


def test_a_place_is_free_again_after_a_prediction_however_it_ended(service: StandIn) -> None:
    http = client(service, threads=1)
    for error in (RuntimeError("broken"), NotReady("loading"), None, None):
        service.error = error
        answer = http.post("/predict", json={"tasks": [{}]})
        http.post("/predict", data=b"{")
    assert answer.json == {"results": [PREDICTION]}
