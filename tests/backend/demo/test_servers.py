from __future__ import annotations

import ipaddress
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.demo.servers import HOST, Credentials, Server, banned_subnets, check_port
from backend.errors import DemoError

ADDRESSES = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
# half of the addresses near the borders of the network that is let through
NEAR = st.integers(-40, 40).map(lambda offset: ipaddress.IPv4Address("10.213.77.0") + offset)


@settings(deadline=None, max_examples=200)
@given(address=ADDRESSES | NEAR)
def test_exactly_the_allowed_network_is_taken_out_of_the_reserved_ones(address: ipaddress.IPv4Address) -> None:
    allowed = ipaddress.ip_network("10.213.77.0/28")

    def within(subnets: list[str]) -> bool:
        return any(address in ipaddress.ip_network(subnet) for subnet in subnets)

    nothing_allowed = banned_subnets("8.8.8.8/32")  # a public address lies in no reserved network
    assert within(banned_subnets(str(allowed))) == (within(nothing_allowed) and address not in allowed)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "172.20.0.5", "192.168.1.1", "169.254.169.254", "::1"])
def test_private_addresses_stay_refused_unless_allowed(address: str) -> None:
    banned = [ipaddress.ip_network(subnet) for subnet in banned_subnets("127.0.0.1/32")]
    assert any(ipaddress.ip_address(address) in subnet for subnet in banned) == (address != "127.0.0.1")


def test_credentials_are_made_once_kept_private_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "data" / "credentials.json"
    made = Credentials.load_or_create(path)
    assert Credentials.load_or_create(path) == made
    assert Credentials.load_or_create(tmp_path / "other.json").token != made.token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert len(bytes.fromhex(made.token)) == 20
    assert made.token not in repr(made)
    assert made.password not in repr(made)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"email": "a"}'])
def test_a_broken_credentials_file_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content)
    with pytest.raises(DemoError, match=r"credentials\.json"):
        Credentials.load_or_create(path)
    assert path.read_text() == content


def test_a_taken_port_is_refused_with_the_variable_that_changes_it() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(DemoError, match=rf"port {port} .*BACKEND_PORT="):
            check_port(port, "BACKEND_PORT")
    check_port(port, "BACKEND_PORT")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stopping_a_server_ends_its_children_even_those_that_do_not_listen(tmp_path: Path) -> None:
    stubborn = "(trap '' TERM; exec sleep 600) & echo $! > child; wait"
    server = Server("It", ["sh", "-c", f"cd {tmp_path}; {stubborn}"], {}, f"http://{HOST}:1/", tmp_path / "log")
    _wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    child = int((tmp_path / "child").read_text())
    assert _alive(child)
    server.stop()
    _wait_for(lambda: not _alive(child))


def test_a_server_that_ends_before_it_is_healthy_is_reported_with_its_log(tmp_path: Path) -> None:
    server = Server("It", ["sh", "-c", "echo no luck; exit 3"], {}, f"http://{HOST}:1/", tmp_path / "log")
    with pytest.raises(DemoError, match=rf"It stopped with exit code 3.*{tmp_path}/log"):
        server.wait_until_healthy(20)
    assert (tmp_path / "log").read_text() == "no luck\n"
    server.stop()


def test_a_server_whose_process_lives_but_does_not_answer_is_given_up_in_time(tmp_path: Path) -> None:
    server = Server("It", ["sleep", "600"], {}, f"http://{HOST}:1/", tmp_path / "log")
    try:
        with pytest.raises(DemoError, match="did not answer"):
            server.wait_until_healthy(0.5)
    finally:
        server.stop()
    with pytest.raises(DemoError, match=rf"exit code -{signal.SIGTERM}"):
        server.check_running()
