"""Addresses, and which server a project lives on."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import (
    LabelStudioError,
    OriginRefused,
)
from backend.label_studio.client import LabelStudio
from backend.label_studio.servers import Origin, Server, Servers, origin_of, shown
from backend.settings import Settings
from semsam_model.errors import SemsamError
from tests.backend.label_studio.web import LEGACY, PHOTO, Web, client, guarded, photo, reply

# ---- addresses


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a",
        "http:///a",
        "http://host:0/a",
        "http://host:99999/a",
        "http://user@host/a",
        "http://allowed\\@evil/a",
        "http://host\n/a",
        "http://ⓔvil.example/a",
        "http://ho%73t/a",
        "http://[::1/a",
        "//host/a",
        "host",
    ],
)
def test_an_address_that_could_be_read_two_ways_has_no_origin(url: str) -> None:
    with pytest.raises(OriginRefused):
        origin_of(url)


def test_origins_are_equal_only_when_scheme_host_and_port_are() -> None:
    assert origin_of("http://Host/a?b") == origin_of("http://host:80") == Origin("http", "host", 80)
    assert (
        len({origin_of(u) for u in ("http://h", "https://h", "http://h:81", "http://h.", "http://hh", "http://[::1]")})
        == 6
    )


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30), st.text(max_size=300))
def test_an_address_is_shown_without_query_user_or_control_characters(path: str, query: str) -> None:
    text = shown(f"http://someone:canary@host/{path.replace('canary', '')}?canary={query}")
    assert "canary" not in text
    assert text.isprintable()
    assert len(text) <= 200


def test_a_server_is_printed_without_its_token() -> None:
    assert "canary" not in repr(Server("http://h", "canary"))


# ---- several Label Studio servers


def test_each_server_gets_its_own_token_and_a_project_is_read_from_its_own(web: Callable[..., Web]) -> None:
    one, two = web(a=guarded("Token one")), web()
    two.routes["/a"] = lambda h: reply(h, b"two") if h.headers["Authorization"] == "Token two" else reply(h, b"", 401)
    api = LabelStudio(
        Settings(label_studio_url=one.url, label_studio_api_key="one", label_studio_keys={two.url: "two"})
    )
    api.connect("1.11", one.url)
    api.connect("1.22", two.url + "/")
    assert api.fetch_image("/a", project="1.11") == PHOTO
    assert api.fetch_image("/a", project="1.22") == b"two"
    assert api.fetch_image(two.url + "/a", project="1.11") == b"two"
    assert {request.authorization for request in one.requests} == {"Token one"}
    assert {request.authorization for request in two.requests} == {"Token two"}


def test_a_project_of_unknown_home_is_refused_rather_than_guessed(web: Callable[..., Web]) -> None:
    one, two = web(a=photo), web(a=photo)
    api = LabelStudio(Settings(label_studio_url=one.url, label_studio_keys={two.url: "two"}))
    with pytest.raises(LabelStudioError, match="/setup"):
        api.fetch_image("/a", project="1.11")
    api.connect("1.11", "http://third:8080")
    with pytest.raises(OriginRefused, match=r"third.*label_studio_keys"):
        api.fetch_image("/a", project="1.11")
    assert one.requests == two.requests == []


def test_a_single_server_may_call_itself_by_another_name(studio: Web) -> None:
    api = client(studio)
    api.connect("1.11", f"http://localhost:{studio.port}")
    assert api.fetch_image("/data/upload/1/a.png", project="1.11") == PHOTO
    assert api.fetch_image(f"http://localhost:{studio.port}/data/upload/1/a.png?x=1", project="1.11") == PHOTO
    assert studio.requests[-1].path == "/data/upload/1/a.png?x=1"


def test_an_allowed_origin_is_never_taken_for_another_name_of_the_server(studio: Web, web: Callable[..., Web]) -> None:
    other = web(photo=photo)
    api = client(studio, allowed_origins=(other.url,))
    api.connect("1.11", other.url, "setup-token")
    assert api.fetch_image(other.url + "/photo", project="2.22") == PHOTO
    assert [request.authorization for request in other.requests] == [None]
    assert studio.requests == []


@pytest.mark.parametrize("hostname", ["", "not an address", "http://u:p@h", "http://h:99999"])
def test_a_setup_with_a_strange_host_name_changes_nothing(studio: Web, hostname: str) -> None:
    api = client(studio)
    api.connect("1.11", hostname, "setup-token")
    assert api.fetch_image("/data/upload/1/a.png", project="1.11") == PHOTO


def test_the_token_from_setup_is_used_only_where_no_key_is_configured(studio: Web) -> None:
    studio.routes["/a"] = photo
    for key, expected in ((None, "Token setup-token"), (LEGACY, f"Token {LEGACY}")):
        api = client(studio, label_studio_api_key=key)
        api.connect("1.11", studio.url, "setup-token")
        api.fetch_image("/a", project="1.11")
        assert studio.requests[-1].authorization == expected


def test_the_token_from_setup_goes_to_the_host_it_came_from_alone(studio: Web, web: Callable[..., Web]) -> None:
    studio.routes["/a"] = photo
    api = client(studio, label_studio_api_key=None)
    api.connect("1.11", f"http://localhost:{studio.port}", "setup-token")
    api.fetch_image("/a", project="1.11")
    assert studio.requests[-1].authorization is None
    bad = LabelStudio(Settings(label_studio_url=studio.url))
    bad.connect("1.11", studio.url, "two words")
    with pytest.raises(SemsamError):
        bad.fetch_image("/a", project="1.11")


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://localhost:8081", False),
        ("https://localhost:8080", False),
        ("http://host:8080", False),
    ],
)
def test_names_of_this_machine_for_itself_are_one_server(stored: str, found: bool) -> None:
    servers = Servers({"http://localhost:8080": "token"})
    if found:
        assert servers.of(servers.add_project(stored, 1)).base_url == "http://localhost:8080"
    else:
        with pytest.raises(OriginRefused, match="LABEL_STUDIO_URL"):
            servers.add_project(stored, 1)
