from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import (
    BadRequest,
    FetchTimeout,
    ImageTooLarge,
    LabelStudioError,
    NotFound,
    OriginRefused,
    SettingsError,
    TokenRefused,
)
from backend.label_studio.client import LabelStudio
from backend.label_studio.connection import Origin, Server, origin_of, shown
from backend.settings import Settings
from semsam_model.errors import SemsamError

LEGACY = "canary0123456789abcdef0123456789abcdef01"
PICTURE = bytes(range(256)) * 40


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@dataclass
class Web:
    """A server on 127.0.0.1 whose routes are functions of the handler; it remembers what it was asked."""

    routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                web.requests.append(Request(self.command, self.path, dict(self.headers), body))
                route = web.routes.get(self.path.split("?")[0])
                route(self) if route else reply(self, b"absent", 404)

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up on a body over the limit is what some tests are about

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def reply(handler: BaseHTTPRequestHandler, body: bytes = PICTURE, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def picture(handler: BaseHTTPRequestHandler) -> None:
    reply(handler)


def guarded(*allowed: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: (
        reply(handler) if handler.headers.get("Authorization") in allowed else reply(handler, b"", 401)
    )


def redirect(target: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, b"", status, Location=target)


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Makes servers; all are stopped at the end."""
    made: list[Web] = []

    def make(**routes: Callable[[BaseHTTPRequestHandler], None]) -> Web:
        made.append(Web({"/" + name: route for name, route in routes.items()}))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def studio(web: Callable[..., Web]) -> Web:
    server = web()
    server.routes["/data/upload/1/a.png"] = guarded(f"Token {LEGACY}")
    return server


def client(studio: Web, **changes: Any) -> LabelStudio:
    changes.setdefault("label_studio_api_key", LEGACY)
    return LabelStudio(Settings(label_studio_url=studio.url, **changes))


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


# ---- where pictures come from


def test_an_uploaded_picture_is_fetched_with_the_token(studio: Web) -> None:
    assert client(studio).fetch_image("/data/upload/1/a.png") == PICTURE


@pytest.mark.parametrize("value", ["data/upload/1/a.png", " /data/upload/1/a.png "])
def test_a_path_without_leading_slash_or_with_spaces_around_means_the_same(studio: Web, value: str) -> None:
    assert client(studio).fetch_image(value) == PICTURE


def test_an_absolute_address_on_label_studio_gets_the_token(studio: Web) -> None:
    assert client(studio).fetch_image(studio.url + "/data/upload/1/a.png") == PICTURE


def test_a_local_files_address_is_asked_of_label_studio_with_its_query(studio: Web) -> None:
    studio.routes["/data/local-files/"] = guarded(f"Token {LEGACY}")
    assert client(studio).fetch_image("/data/local-files/?d=sub/x%20y.png") == PICTURE
    assert studio.requests[-1].path == "/data/local-files/?d=sub/x%20y.png"


def test_a_server_under_a_prefix_is_asked_under_it_once(web: Callable[..., Web]) -> None:
    studio = web()
    studio.routes["/ls/data/upload/a.png"] = picture
    api = LabelStudio(Settings(label_studio_url=studio.url + "/ls/"))
    assert api.fetch_image("/data/upload/a.png") == api.fetch_image("/ls/data/upload/a.png") == PICTURE


@pytest.mark.parametrize("uri", ["s3://bucket/a b.png", "gs://bucket/é.png", "azure-blob://box/a.png"])
def test_a_picture_in_a_cloud_store_comes_through_a_presigned_address(
    studio: Web, web: Callable[..., Web], uri: str
) -> None:
    store = web(signed=picture)
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary", 303)
    assert client(studio, allowed_origins=(store.url,)).fetch_image(uri, task_id=7) == PICTURE
    sent = studio.requests[-1].path.split("fileuri=")[1]
    assert base64.urlsafe_b64decode(sent.replace("%3D", "=")).decode() == uri
    assert store.requests[-1].authorization is None


def test_a_picture_in_a_cloud_store_may_be_proxied_by_label_studio(studio: Web) -> None:
    studio.routes["/tasks/7/presign/"] = guarded(f"Token {LEGACY}")
    assert client(studio).fetch_image("s3://bucket/a.png", task_id=7) == PICTURE


def test_a_cloud_picture_without_its_task_is_a_bad_request(studio: Web) -> None:
    with pytest.raises(BadRequest, match="task"):
        client(studio).fetch_image("s3://bucket/a.png")


def test_a_store_that_is_not_allowed_is_refused_with_the_setting_to_change(
    studio: Web, web: Callable[..., Web]
) -> None:
    store = web(signed=picture)
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary", 303)
    with pytest.raises(OriginRefused, match=f"127.0.0.1:{store.port}.*allowed_origins") as caught:
        client(studio).fetch_image("s3://bucket/a.png", task_id=7)
    assert "canary" not in str(caught.value)
    assert store.requests == []


def test_a_picture_elsewhere_needs_its_origin_allowed_and_gets_no_token(studio: Web, web: Callable[..., Web]) -> None:
    other = web(picture=picture)
    with pytest.raises(OriginRefused, match="allowed_origins"):
        client(studio).fetch_image(other.url + "/picture")
    assert other.requests == []
    assert client(studio, allowed_origins=(other.url,)).fetch_image(other.url + "/picture?q=1") == PICTURE
    assert other.requests[-1].authorization is None


def test_another_name_of_the_same_machine_is_another_origin(studio: Web) -> None:
    with pytest.raises(OriginRefused):
        client(studio).fetch_image(f"http://localhost:{studio.port}/data/upload/1/a.png")


@pytest.mark.parametrize(
    "value", ["file:///etc/passwd", "ftp://host/a", "C:\\photos\\a.png", "gopher://x", "javascript:1"]
)
def test_other_schemes_are_refused(studio: Web, value: str) -> None:
    with pytest.raises(OriginRefused, match="expected"):
        client(studio).fetch_image(value)


@pytest.mark.parametrize("value", ["", "  ", None, 3, {"a": 1}])
def test_no_address_at_all_is_a_bad_request(studio: Web, value: Any) -> None:
    with pytest.raises(BadRequest):
        client(studio).fetch_image(value)


def test_a_data_address_brings_its_own_bytes_within_the_limit(studio: Web) -> None:
    value = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    assert client(studio, max_image_bytes=len(PICTURE)).fetch_image(value) == PICTURE
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        client(studio, max_image_bytes=len(PICTURE) - 5).fetch_image(value)
    for broken in ("data:image/png;base64,?!", "data:text/html;base64,AAAA", "data:image/png,abc", "data:"):
        with pytest.raises(BadRequest):
            client(studio).fetch_image(broken)


# ---- redirects and tokens


def test_the_token_is_dropped_at_a_change_of_origin_and_not_taken_up_again(
    studio: Web, web: Callable[..., Web]
) -> None:
    other = web(back=redirect(studio.url + "/end"))
    studio.routes["/start"] = redirect(other.url + "/back")
    studio.routes["/end"] = picture
    assert client(studio, allowed_origins=(other.url,)).fetch_image("/start") == PICTURE
    assert [r.authorization for r in studio.requests] == [f"Token {LEGACY}", None]
    assert [r.authorization for r in other.requests] == [None]


def test_a_redirect_on_the_same_server_keeps_the_token(studio: Web) -> None:
    studio.routes["/start"] = redirect("/data/upload/1/a.png", 301)
    assert client(studio).fetch_image("/start") == PICTURE


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "//localhost/x", "http://169.254.169.254/latest", "ftp://h/x"]
)
def test_a_redirect_out_of_the_allowed_origins_is_refused(studio: Web, target: str) -> None:
    studio.routes["/start"] = redirect(target)
    with pytest.raises(OriginRefused):
        client(studio).fetch_image("/start")


def test_three_redirects_are_followed_and_a_fourth_is_not(studio: Web) -> None:
    for step in range(4):
        studio.routes[f"/{step}"] = redirect(f"/{step + 1}")
    studio.routes["/4"] = picture
    assert client(studio).fetch_image("/1") == PICTURE
    with pytest.raises(OriginRefused, match="3 redirects"):
        client(studio).fetch_image("/0")


def test_no_password_file_and_no_cookie_is_sent_along(
    studio: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    studio.routes["/a"] = lambda handler: reply(handler, Set_Cookie="session=canary; Path=/")
    api = client(studio, label_studio_api_key=None)
    api.fetch_image("/a")
    api.fetch_image("/a")
    assert [(r.authorization, r.headers.get("Cookie")) for r in studio.requests] == [(None, None)] * 2


def test_a_refused_token_says_which_setting_to_change(studio: Web) -> None:
    for key, said in ((None, "no token is configured"), ("wrong", "personal access token")):
        with pytest.raises(TokenRefused, match=f"{said}.*label_studio_api_key"):
            client(studio, label_studio_api_key=key).fetch_image("/data/upload/1/a.png")


def test_a_token_pasted_with_a_newline_is_trimmed_and_one_with_spaces_stops_the_start(studio: Web) -> None:
    assert client(studio, label_studio_api_key=f" {LEGACY}\n").fetch_image("/data/upload/1/a.png") == PICTURE
    with pytest.raises(SettingsError) as caught:
        client(studio, label_studio_api_key=f"Token {LEGACY}")
    assert LEGACY not in str(caught.value)


# ---- personal access tokens


class Tokens:
    """The part of Label Studio that changes a personal access token into access tokens, and a picture behind them."""

    def __init__(self, studio: Web, lifetime: int = 300) -> None:
        self.studio = studio
        self.lifetime = lifetime
        self.personal = self._token("refresh", 10**6)
        self.issued: list[str] = []
        self.valid: set[str] = set()
        studio.routes["/api/token/refresh/"] = self._refresh
        studio.routes["/picture"] = self._picture

    def _token(self, kind: str, seconds: int) -> str:
        # The server's clock is years off, as clocks in containers may be.
        claims = {"token_type": kind, "iat": 1_000_000, "exp": 1_000_000 + seconds, "jti": str(time.monotonic_ns())}
        return jwt.encode(claims, "k" * 32, algorithm="HS256")

    def _refresh(self, handler: BaseHTTPRequestHandler) -> None:
        if json.loads(self.studio.requests[-1].body) != {"refresh": self.personal}:
            return reply(handler, b"{}", 401)
        self.issued.append(self._token("access", self.lifetime))
        self.valid = {self.issued[-1]}
        return reply(handler, json.dumps({"access": self.issued[-1]}).encode())

    def _picture(self, handler: BaseHTTPRequestHandler) -> None:
        allowed = handler.headers.get("Authorization", "").removeprefix("Bearer ") in self.valid
        reply(handler) if allowed else reply(handler, b"", 401)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_personal_access_token_is_changed_once_and_never_sent_as_itself(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    assert api.fetch_image("/picture") == api.fetch_image("/picture") == PICTURE
    assert len(tokens.issued) == 1
    assert all(tokens.personal not in str(request.headers) for request in studio.requests)


@pytest.mark.parametrize("lifetime", [60, 300])
def test_an_access_token_is_renewed_shortly_before_it_expires(studio: Web, lifetime: int) -> None:
    tokens = Tokens(studio, lifetime)
    clock = Clock()
    api = LabelStudio(Settings(label_studio_url=studio.url, label_studio_api_key=tokens.personal), clock)
    api.fetch_image("/picture")
    clock.now = lifetime - 31
    api.fetch_image("/picture")
    assert len(tokens.issued) == 1
    clock.now = lifetime - 29
    api.fetch_image("/picture")
    assert len(tokens.issued) == 2


def test_an_access_token_refused_early_is_renewed_once(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    api.fetch_image("/picture")
    tokens.valid.clear()
    assert api.fetch_image("/picture") == PICTURE
    studio.routes["/picture"] = lambda handler: reply(handler, b"", 401)
    before = len(studio.requests)
    with pytest.raises(TokenRefused):
        api.fetch_image("/picture")
    assert len(studio.requests) - before == 3  # asked, changed the token, asked again


def test_threads_that_need_a_token_at_once_share_one(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: api.fetch_image("/picture"), range(8))) == {PICTURE}
    assert len(tokens.issued) == 1


def test_a_revoked_personal_access_token_says_what_to_do(studio: Web) -> None:
    tokens = Tokens(studio)
    personal, tokens.personal = tokens.personal, "another"
    with pytest.raises(TokenRefused, match="SEMSAM_LABEL_STUDIO_API_KEY") as caught:
        client(studio, label_studio_api_key=personal).fetch_image("/picture")
    assert personal not in str(caught.value)


def test_an_access_token_given_as_the_key_is_used_as_it_is(studio: Web) -> None:
    tokens = Tokens(studio)
    access = tokens._token("access", 300)
    tokens.valid = {access}
    assert client(studio, label_studio_api_key=access).fetch_image("/picture") == PICTURE


# ---- limits


def test_a_picture_at_the_byte_limit_passes_and_one_byte_more_is_refused(studio: Web) -> None:
    studio.routes["/a"] = picture
    assert client(studio, max_image_bytes=len(PICTURE)).fetch_image("/a") == PICTURE
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        client(studio, max_image_bytes=len(PICTURE) - 1).fetch_image("/a")


def test_an_endless_picture_without_a_length_is_cut_off_at_the_limit(studio: Web) -> None:
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)
            sent.append(65536)

    studio.routes["/a"] = endless
    with pytest.raises(ImageTooLarge):
        client(studio, max_image_bytes=200_000).fetch_image("/a")


def test_a_small_packed_answer_that_unpacks_over_the_limit_is_refused(studio: Web) -> None:
    packed = gzip.compress(bytes(5_000_000))
    assert len(packed) < 100_000
    studio.routes["/a"] = lambda handler: reply(handler, packed, Content_Encoding="gzip")
    with pytest.raises(ImageTooLarge):
        client(studio, max_image_bytes=100_000).fetch_image("/a")


def test_a_picture_that_ends_before_its_length_is_refused(studio: Web) -> None:
    def short(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, PICTURE, Content_Length=str(len(PICTURE) + 10), Connection="close")
        handler.close_connection = True

    studio.routes["/a"] = short
    with pytest.raises(LabelStudioError, match="broke off"):
        client(studio).fetch_image("/a")


def test_a_server_that_drips_meets_the_total_deadline(studio: Web) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            clock.now += 1.0
            time.sleep(0.001)

    clock = Clock()
    studio.routes["/a"] = drip
    api = LabelStudio(Settings(label_studio_url=studio.url, image_total_timeout=20), clock)
    with pytest.raises(FetchTimeout, match="image_total_timeout"):
        api.fetch_image("/a")
    assert clock.now < 10_000  # bytes; whoever waits for a whole piece gets 65 536


def test_a_server_that_says_nothing_meets_the_read_timeout(studio: Web) -> None:
    done = threading.Event()
    studio.routes["/a"] = lambda handler: done.wait(5) and None
    try:
        with pytest.raises(FetchTimeout, match="image_read_timeout"):
            client(studio, image_read_timeout=0.05).fetch_image("/a?X-Signature=canary")
    finally:
        done.set()


def test_a_server_that_is_not_there_is_named_with_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LabelStudioError, match=f"{url}.*label_studio_url"):
            LabelStudio(Settings(label_studio_url=url)).fetch_image("/a")


@pytest.mark.parametrize("status", [204, 206, 304, 400, 500, 503])
def test_an_answer_that_is_no_picture_is_an_error(studio: Web, status: int) -> None:
    studio.routes["/a"] = lambda handler: reply(handler, b"", status)
    with pytest.raises(LabelStudioError, match=str(status)):
        client(studio).fetch_image("/a")


def test_a_login_page_is_not_taken_for_a_picture(studio: Web) -> None:
    studio.routes["/a"] = lambda handler: reply(handler, b"<html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(LabelStudioError, match="login"):
        client(studio).fetch_image("/a")


def test_a_missing_path_on_disk_says_how_to_allow_it(studio: Web) -> None:
    with pytest.raises(NotFound, match="local_files_root"):
        client(studio).fetch_image("/photos/a.png")
    with pytest.raises(NotFound) as caught:
        client(studio).fetch_image("/data/upload/1/absent.png")
    assert "local_files_root" not in str(caught.value)


# ---- files on disk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(PICTURE)
    (folder / "inside.png").symlink_to(folder / "sub" / "a b.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    return folder


def test_paths_inside_the_folder_are_read_without_asking_anyone(studio: Web, root: Path) -> None:
    api = client(studio, local_files_root=root)
    for value in ("sub/a b.png", str(root / "sub" / "a b.png"), "/data/local-files/?d=sub/a%20b.png", "inside.png"):
        assert api.fetch_image(value) == PICTURE
    assert studio.requests == []


@pytest.mark.parametrize(
    "value",
    [
        "../secret.png",
        "sub/../../secret.png",
        "outside.png",
        "up/secret.png",
        "{root}/../secret.png",
        "{root}x/../secret.png/../root/../secret.png",
        "/etc/passwd",
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=..%2Fsecret.png",
        "/data/local-files/?d=outside.png",
        "/data/local-files/?d=/../secret.png",
        "a\0b",
        "sub",
    ],
)
def test_nothing_outside_the_folder_is_read(studio: Web, root: Path, value: str) -> None:
    with pytest.raises((OriginRefused, NotFound)):
        client(studio, local_files_root=root).fetch_image(value.format(root=root))


def test_without_a_folder_nothing_is_read_from_disk(studio: Web, root: Path) -> None:
    with pytest.raises(NotFound):
        client(studio).fetch_image(str(root / "sub" / "a b.png"))


def test_a_file_on_disk_meets_the_byte_limit_and_a_pipe_is_refused(studio: Web, root: Path) -> None:
    os.mkfifo(root / "pipe")
    api = client(studio, local_files_root=root, max_image_bytes=len(PICTURE) - 1)
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        api.fetch_image("sub/a b.png")
    with pytest.raises(OriginRefused, match="pipe"):
        api.fetch_image("pipe")


def test_what_is_not_in_the_folder_is_asked_of_label_studio(studio: Web, root: Path) -> None:
    assert client(studio, local_files_root=root).fetch_image("/data/upload/1/a.png") == PICTURE
    studio.routes["/data/local-files/"] = picture
    assert client(studio, local_files_root=root).fetch_image("/data/local-files/?d=other.png") == PICTURE


# ---- several Label Studio servers


def test_each_server_gets_its_own_token_and_a_project_is_read_from_its_own(web: Callable[..., Web]) -> None:
    one, two = web(a=guarded("Token one")), web()
    two.routes["/a"] = lambda h: reply(h, b"two") if h.headers["Authorization"] == "Token two" else reply(h, b"", 401)
    api = LabelStudio(
        Settings(label_studio_url=one.url, label_studio_api_key="one", label_studio_keys={two.url: "two"})
    )
    api.connect("1.11", one.url)
    api.connect("1.22", two.url + "/")
    assert api.fetch_image("/a", project="1.11") == PICTURE
    assert api.fetch_image("/a", project="1.22") == b"two"
    assert api.fetch_image(two.url + "/a", project="1.11") == b"two"
    assert {request.authorization for request in one.requests} == {"Token one"}
    assert {request.authorization for request in two.requests} == {"Token two"}


def test_a_project_of_unknown_home_is_refused_rather_than_guessed(web: Callable[..., Web]) -> None:
    one, two = web(a=picture), web(a=picture)
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
    assert api.fetch_image("/data/upload/1/a.png", project="1.11") == PICTURE
    assert api.fetch_image(f"http://localhost:{studio.port}/data/upload/1/a.png?x=1", project="1.11") == PICTURE
    assert studio.requests[-1].path == "/data/upload/1/a.png?x=1"


def test_an_allowed_origin_is_never_taken_for_another_name_of_the_server(studio: Web, web: Callable[..., Web]) -> None:
    other = web(picture=picture)
    api = client(studio, allowed_origins=(other.url,))
    api.connect("1.11", other.url, "setup-token")
    assert api.fetch_image(other.url + "/picture", project="2.22") == PICTURE
    assert [request.authorization for request in other.requests] == [None]
    assert studio.requests == []


@pytest.mark.parametrize("hostname", ["", "not an address", "http://u:p@h", "http://h:99999"])
def test_a_setup_with_a_strange_host_name_changes_nothing(studio: Web, hostname: str) -> None:
    api = client(studio)
    api.connect("1.11", hostname, "setup-token")
    assert api.fetch_image("/data/upload/1/a.png", project="1.11") == PICTURE


def test_the_token_from_setup_is_used_only_where_no_key_is_configured(studio: Web) -> None:
    studio.routes["/a"] = picture
    for key, expected in ((None, "Token setup-token"), (LEGACY, f"Token {LEGACY}")):
        api = client(studio, label_studio_api_key=key)
        api.connect("1.11", studio.url, "setup-token")
        api.fetch_image("/a", project="1.11")
        assert studio.requests[-1].authorization == expected


def test_the_token_from_setup_goes_to_the_host_it_came_from_alone(studio: Web, web: Callable[..., Web]) -> None:
    studio.routes["/a"] = picture
    api = client(studio, label_studio_api_key=None)
    api.connect("1.11", f"http://localhost:{studio.port}", "setup-token")
    api.fetch_image("/a", project="1.11")
    assert studio.requests[-1].authorization is None
    bad = LabelStudio(Settings(label_studio_url=studio.url))
    bad.connect("1.11", studio.url, "two words")
    with pytest.raises(SemsamError):
        bad.fetch_image("/a", project="1.11")


# ---- API


def test_the_api_is_called_with_the_token(studio: Web) -> None:
    answers = {
        "/api/tasks/7/": {"id": 7},
        "/api/predictions/": {"id": 1},
        "/api/current-user/whoami": {"id": 2},
        "/api/version/": {"release": "1.23.2"},
    }
    for path, answer in answers.items():
        body = json.dumps(answer).encode()
        studio.routes[path] = lambda handler, body=body: reply(handler, body, 201 if handler.command == "POST" else 200)
    api = client(studio)
    assert api.get_task(7) == {"id": 7}
    assert api.create_prediction({"task": 7, "result": []}) == {"id": 1}
    assert json.loads(studio.requests[-1].body) == {"task": 7, "result": []}
    assert api.whoami() == {"id": 2}
    assert api.version()["release"] == "1.23.2"
    assert {request.authorization for request in studio.requests} == {f"Token {LEGACY}"}


@pytest.mark.parametrize(("body", "status"), [(b"[]", 200), (b"<html>", 200), (b"", 200), (b"{}", 302), (b"{}", 500)])
def test_an_api_answer_that_is_no_object_is_an_error(studio: Web, body: bytes, status: int) -> None:
    studio.routes["/api/version/"] = lambda handler: reply(handler, body, status, Location="http://elsewhere/")
    with pytest.raises(LabelStudioError):
        client(studio).version()


# ---- secrets


def test_no_secret_is_ever_in_a_log_line_or_a_message(
    studio: Web, web: Callable[..., Web], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(studio)
    store = web(signed=lambda handler: reply(handler, b"", 403))
    studio.routes["/tasks/7/presign/"] = redirect(store.url + "/signed?X-Signature=canary-query")
    studio.routes["/elsewhere"] = redirect("http://user:canary-query@third/x?X-Signature=canary-query")
    messages = []
    for key in (LEGACY, tokens.personal, "canary-\u20ac", None):
        try:
            api = client(studio, label_studio_api_key=key, allowed_origins=(store.url,))
        except SettingsError as error:
            messages.append(str(error))
            continue
        api.connect("1.11", studio.url, "canary-setup")
        for value in (
            "s3://bucket/a.png?x=canary-query",
            "/picture",
            "/elsewhere",
            "/data/upload/1/a.png",
            "http://canary-query@h/",
            "data:image/png;base64,canary-query",
            store.url + "/signed?X-Signature=canary-query",
            "http://127.0.0.1:1/?X-Signature=canary-query",
        ):
            try:
                api.fetch_image(value, project="1.11", task_id=7)
            except SemsamError as error:
                messages.append(f"{error!r} {error.__cause__!r}")
        messages.append(repr(vars(api)))
    assert len(messages) > 20
    assert any("picture not fetched" in record.getMessage() for record in caplog.records)
    for text in [*messages, caplog.text]:
        for secret in ("canary", tokens.personal, *tokens.issued):
            assert secret not in text


def test_a_server_is_printed_without_its_token() -> None:
    assert "canary" not in repr(Server("http://h", "canary"))
