"""Who may call what."""

from __future__ import annotations

import base64
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backend.web.stand_in import StandIn, client


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


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
    # refused, but something changed there
    assert service.refused == [{}, {}, {}, {"action": "ANNOTATION_CREATED"}, None]
    assert http.post("/setup", json={}).status_code == 200


def test_the_webhook_takes_its_secret_or_the_password_and_other_routes_the_password_only(service: StandIn) -> None:
    http = client(service, webhook_secret="sesame", basic_auth_user="u", basic_auth_pass="p")
    assert http.post("/webhook", json={"action": "START_TRAINING"}).status_code == 401
    secret = {"X-Semsam-Secret": "sesame"}
    assert http.post("/webhook", json={}, headers=secret).status_code == 200
    assert http.post("/webhook", json={}, headers=basic("u", "p")).status_code == 200
    assert http.post("/setup", json={}, headers=secret).status_code == 401
