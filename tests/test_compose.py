"""docker-compose.yml and Dockerfile, as far as they can be checked where no Docker engine runs."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.demo.servers import HOST, Credentials, banned_subnets, label_studio_environment
from backend.settings import load_settings, plain
from tests.paths import ROOT

LABEL_STUDIO_WAITS_S = 100  #: for an answer to a click


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_label_studio_may_call_the_compose_network_and_no_other_private_one(compose: dict[str, Any]) -> None:
    (network,) = compose["networks"]["semsam"]["ipam"]["config"]
    banned = compose["services"]["label-studio"]["environment"]["LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS"]
    assert banned.split(",") == banned_subnets(network["subnet"])


def test_label_studio_is_configured_as_by_make_run_except_for_its_secrets_and_its_network(
    compose: dict[str, Any],
) -> None:
    here = compose["services"]["label-studio"]["environment"]
    there = label_studio_environment(f"http://{HOST}:8080", Credentials("annotator@example.com", "p", "t"))
    differs = {
        "LABEL_STUDIO_HOST",
        "LABEL_STUDIO_PASSWORD",
        "LABEL_STUDIO_USER_TOKEN",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS",
    }
    assert {k: v for k, v in here.items() if k not in differs} == {k: v for k, v in there.items() if k not in differs}


@pytest.mark.parametrize("service", ["backend", "backend-2", "worker", "demo"])
def test_the_backend_reads_every_variable_that_compose_gives_it(compose: dict[str, Any], service: str) -> None:
    environment = compose["services"][service]["environment"]
    settings = load_settings(environ={**environment, "LABEL_STUDIO_API_KEY": "key", "SEMSAM_DATA_DIR": "/data"})
    assert settings.label_studio_url == "http://label-studio:8080"
    assert plain(settings.label_studio_api_key) == "key"


def test_every_volume_and_network_that_a_service_uses_is_declared(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= compose["volumes"].keys()
        assert {config["source"] for config in service.get("configs", [])} <= compose["configs"].keys()
        assert set(service["networks"]) <= compose["networks"].keys()
        assert service.get("depends_on", {}).keys() <= compose["services"].keys()


def test_the_worker_has_the_store_and_the_files_of_the_backend(compose: dict[str, Any]) -> None:
    backend, worker = (compose["services"][name] for name in ("backend", "worker"))
    assert worker["environment"]["SEMSAM_DATABASE_URL"] == backend["environment"]["SEMSAM_DATABASE_URL"]
    assert "backend:/data" in backend["volumes"] and "backend:/data" in worker["volumes"]


def test_both_backends_share_everything_but_their_name(compose: dict[str, Any]) -> None:
    first, second = (dict(compose["services"][name]) for name in ("backend", "backend-2"))
    assert (first.pop("networks"), second.pop("networks")) == (
        {"semsam": {"aliases": ["backend.semsam.internal"]}},
        ["semsam"],
    )
    assert second.pop("profiles") == ["scale"]
    assert first == second


def test_what_the_profile_scale_starts_is_complete(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert all("scale" in service.get("profiles", ["scale"]) for service in services.values())
    alone = {name for name, service in services.items() if not service.get("profiles")}
    needed = {
        (name, on)
        for name in alone
        for on, how in services[name].get("depends_on", {}).items()
        if how.get("required", True)
    }
    assert {on for _, on in needed} <= alone, "without a profile everything starts that is waited for"


def test_the_proxy_hands_on_to_both_backends_what_they_take_and_waits_as_long_as_label_studio(
    compose: dict[str, Any],
) -> None:
    (config,) = compose["services"]["proxy"]["configs"]
    text = (ROOT / compose["configs"][config["source"]]["file"]).read_text()
    backends = {name for name in compose["services"] if name.startswith("backend")}
    assert set(re.findall(r"^\s*server (\S+):9090 ", text, re.MULTILINE)) == backends
    for name in backends:
        assert "--port 9090" in compose["services"][name]["command"][-1]
    assert set(compose["services"]["proxy"]["depends_on"]) == backends
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(megabytes) * 2**20 >= load_settings(environ={}).max_body_bytes
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(seconds) >= LABEL_STUDIO_WAITS_S
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("body", "data"),
    [
        ({"tasks": [{"id": 1, "data": {"image": "/data/upload/1/a.png"}}]}, '{"image": "/data/upload/1/a.png"}'),
        ({"task": {"id": 1, "data": {"image": "a", "n": 1}}, "action": "x"}, '{"image": "a", "n": 1}'),
        ({"project": "1.17"}, None),
    ],
)
def test_the_proxy_finds_the_photo_in_what_label_studio_posts(body: dict[str, Any], data: str | None) -> None:
    (pattern,) = re.findall(r'"~(.*)" \$data;', (ROOT / "configs" / "nginx.conf").read_text())
    pattern = pattern.replace('\\"', '"').replace("(?<", "(?P<")
    found = re.search(pattern, json.dumps(body))
    assert (found and found["data"]) == data


def test_the_worker_has_time_to_give_its_job_back_when_it_is_asked_to_stop(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert "exec semsam worker" in worker["command"][-1], "the signal reaches it, not a shell"
    amount, unit = re.fullmatch(r"(\d+)([sm])", worker["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(amount) * {"s": 1, "m": 60}[unit] >= 60, "a photo in the gate may take a while on a busy machine"


def test_only_this_machine_reaches_the_published_port(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:${PORT:-8080}:8080"]


@pytest.mark.parametrize(("prepared", "status"), [(True, 0), (False, 3)])
def test_the_demo_service_ends_by_saying_where_to_go_and_who_to_be_only_when_the_project_is_there(
    prepared: bool, status: int, compose: dict[str, Any], tmp_path: Path
) -> None:
    program = tmp_path / "semsam"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    shell, option, script = compose["services"]["demo"]["command"]
    script = script.replace("$$", "$").replace("${PORT:-8080}", "8081")  # as compose does
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([shell, option, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    said = done.stdout
    account = compose["services"]["label-studio"]["environment"]["LABEL_STUDIO_USERNAME"]
    reader = "docker compose exec label-studio cat /credentials/password"
    assert [words in said for words in ("http://localhost:8081", account, reader)] == [prepared] * 3


def test_compose_and_make_install_the_same_label_studio() -> None:
    versions = {
        name: re.findall(r"(?:label-studio==|LABEL_STUDIO_VERSION=|semsam-label-studio:)(\d[\d.]*)", text)
        for name in ("Dockerfile", "docker-compose.yml", "scripts/install.sh")
        if (text := (ROOT / name).read_text())
    }
    assert all(versions.values()), versions
    assert len({version for found in versions.values() for version in found}) == 1, versions


def test_every_stage_runs_as_a_plain_user_with_a_health_check_and_copies_what_is_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", dockerfile, re.MULTILINE | re.DOTALL))
    assert stages.keys() == {"base", "label-studio", "semsam"}
    for name in ("label-studio", "semsam"):
        assert "\nUSER semsam\n" in stages[name]
        assert "\nHEALTHCHECK " in stages[name]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE):
        for source in [word for word in line.split() if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), source
            assert source in sent, source
