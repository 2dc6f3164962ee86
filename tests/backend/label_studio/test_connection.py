"""HTTP to the allowed origins: redirects, tokens, limits."""

import gzip
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from backend.errors import (
    FetchTimeout,
    ImageTooLarge,
    LabelStudioError,
    OriginRefused,
    SettingsError,
    TokenRefused,
)
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from tests.backend.label_studio.web import LEGACY, PHOTO, Clock, Tokens, Web, client, photo, redirect, reply

# ---- redirects and tokens


def test_the_token_is_dropped_at_a_change_of_origin_and_not_taken_up_again(
    studio: Web, web: Callable[..., Web]
) -> None:
    other = web(back=redirect(studio.url + "/end"))
    studio.routes["/start"] = redirect(other.url + "/back")
    studio.routes["/end"] = photo
    assert client(studio, allowed_origins=(other.url,)).fetch_image("/start") == PHOTO
    assert [r.authorization for r in studio.requests] == [f"Token {LEGACY}", None]
    assert [r.authorization for r in other.requests] == [None]


def test_a_redirect_on_the_same_server_keeps_the_token(studio: Web) -> None:
    studio.routes["/start"] = redirect("/data/upload/1/a.png", 301)
    assert client(studio).fetch_image("/start") == PHOTO


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
    studio.routes["/4"] = photo
    assert client(studio).fetch_image("/1") == PHOTO
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
    assert client(studio, label_studio_api_key=f" {LEGACY}\n").fetch_image("/data/upload/1/a.png") == PHOTO
    with pytest.raises(SettingsError) as caught:
        client(studio, label_studio_api_key=f"Token {LEGACY}")
    assert LEGACY not in str(caught.value)


# ---- personal access tokens


def test_a_personal_access_token_is_changed_once_and_never_sent_as_itself(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    assert api.fetch_image("/photo") == api.fetch_image("/photo") == PHOTO
    assert len(tokens.issued) == 1
    assert all(tokens.personal not in str(request.headers) for request in studio.requests)


@pytest.mark.parametrize("lifetime", [60, 300])
def test_an_access_token_is_renewed_shortly_before_it_expires(studio: Web, lifetime: int) -> None:
    tokens = Tokens(studio, lifetime)
    clock = Clock()
    api = LabelStudio(Settings(label_studio_url=studio.url, label_studio_api_key=tokens.personal), clock)
    api.fetch_image("/photo")
    clock.now = lifetime - 31
    api.fetch_image("/photo")
    assert len(tokens.issued) == 1
    clock.now = lifetime - 29
    api.fetch_image("/photo")
    assert len(tokens.issued) == 2


def test_an_access_token_refused_early_is_renewed_once(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    api.fetch_image("/photo")
    tokens.valid.clear()
    assert api.fetch_image("/photo") == PHOTO
    studio.routes["/photo"] = lambda handler: reply(handler, b"", 401)
    before = len(studio.requests)
    with pytest.raises(TokenRefused):
        api.fetch_image("/photo")
    assert len(studio.requests) - before == 3  # asked, changed the token, asked again


def test_threads_that_need_a_token_at_once_share_one(studio: Web) -> None:
    tokens = Tokens(studio)
    api = client(studio, label_studio_api_key=tokens.personal)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: api.fetch_image("/photo"), range(8))) == {PHOTO}
    assert len(tokens.issued) == 1


def test_a_revoked_personal_access_token_says_what_to_do(studio: Web) -> None:
    tokens = Tokens(studio)
    personal, tokens.personal = tokens.personal, "another"
    with pytest.raises(TokenRefused, match="SEMSAM_LABEL_STUDIO_API_KEY") as caught:
        client(studio, label_studio_api_key=personal).fetch_image("/photo")
    assert personal not in str(caught.value)


def test_an_access_token_given_as_the_key_is_used_as_it_is(studio: Web) -> None:
    tokens = Tokens(studio)
    access = tokens.make_token("access", 300)
    tokens.valid = {access}
    assert client(studio, label_studio_api_key=access).fetch_image("/photo") == PHOTO


# ---- limits


def test_a_photo_at_the_byte_limit_passes_and_one_byte_more_is_refused(studio: Web) -> None:
    studio.routes["/a"] = photo
    assert client(studio, max_image_bytes=len(PHOTO)).fetch_image("/a") == PHOTO
    with pytest.raises(ImageTooLarge, match="max_image_bytes"):
        client(studio, max_image_bytes=len(PHOTO) - 1).fetch_image("/a")


def test_an_endless_photo_without_a_length_is_cut_off_at_the_limit(studio: Web) -> None:
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


def test_a_photo_that_ends_before_its_length_is_refused(studio: Web) -> None:
    def short(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, PHOTO, Content_Length=str(len(PHOTO) + 10), Connection="close")
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
def test_an_answer_that_is_no_photo_is_an_error(studio: Web, status: int) -> None:
    studio.routes["/a"] = lambda handler: reply(handler, b"", status)
    with pytest.raises(LabelStudioError, match=str(status)):
        client(studio).fetch_image("/a")


def test_a_login_page_is_not_taken_for_a_photo(studio: Web) -> None:
    studio.routes["/a"] = lambda handler: reply(handler, b"<html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(LabelStudioError, match="login"):
        client(studio).fetch_image("/a")
