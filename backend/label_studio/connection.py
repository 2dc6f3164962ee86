"""HTTP to the allowed origins and nowhere else: tokens, redirects, limits of time and size.

An origin is scheme, host and port, all equal. Each redirect is checked anew; a token goes to its own server and is
dropped at the first change of origin. Messages show addresses without their query, which may be a key to a store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from backend.errors import (
    FetchTimeout,
    ImageTooLarge,
    LabelStudioError,
    NotFound,
    OriginRefused,
    TokenRefused,
    Unreachable,
)
from backend.label_studio.servers import Origin, Server, jwt_claims, origin_of, shown
from backend.settings import Settings

MAX_REDIRECTS = 3
ACCESS_TOKEN_SECONDS = 300  # what Label Studio gives, for when the access token does not say
ACCESS_TOKEN_MARGIN = 30  # seconds; a token that could expire on the way is not used
_CHUNK = 1 << 16


@dataclass(frozen=True)
class _Limit:
    """How large an answer may be; what is said when it is larger, after "more than N bytes, "."""

    max_bytes: int
    explanation: str
    error: type[LabelStudioError | ImageTooLarge] = LabelStudioError


_TOKEN_LIMIT = _Limit(_CHUNK, "expected a short answer")


class Connection:
    """Requests to `allowed` origins. Safe to use from several threads."""

    def __init__(
        self, settings: Settings, allowed: Collection[Origin] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """allowed: None is everywhere, for addresses that whoever runs the command has written down."""
        self._settings = settings
        self._allowed_origins = None if allowed is None else frozenset(allowed)
        self._image_limit = _Limit(settings.max_image_bytes, _setting("max_image_bytes"), ImageTooLarge)
        self._body_limit = _Limit(settings.max_body_bytes, _setting("max_body_bytes"))
        self._clock = clock
        self._session = requests.Session()
        # a cookie does not know its port: one server's session would be sent to another on the same host
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=settings.threads))
        # its DEBUG lines hold whole addresses, queries and all
        logging.getLogger("urllib3").setLevel(logging.INFO)

    def download(self, url: str, server: Server | None) -> bytes:
        """The photo's file at `url`: at most `max_image_bytes` and three redirects, none out of the allowed origins.

        `server` is the one whose token the request may carry, if `url` is on it.
        Raises OriginRefused, TokenRefused, NotFound, FetchTimeout, ImageTooLarge, LabelStudioError.
        """
        deadline = self._clock() + self._settings.image_total_timeout
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            origin = self._check_allowed(url)
            if server is not None and server.origin != origin:
                server = None  # for good: a redirect back does not earn the token again
            with self._request("GET", url, server, deadline) as response:
                if not response.is_redirect:
                    _raise_for_status(response, url, server)
                    if response.headers.get("Content-Type", "").startswith("text/html"):
                        raise LabelStudioError(f"{shown(url)}: answered a web page, not a photo; a login page, perhaps")
                    return self._read_body(response, url, deadline, self._image_limit)
                url = self._redirect_target(response, url)
        raise OriginRefused(f"{shown(first)}: more than {MAX_REDIRECTS} redirects")

    def call(self, method: str, url: str, server: Server, body: Any = None) -> dict[str, Any]:
        """The JSON object that an API call answers; no redirects. Raises as `download` does."""
        found = self.call_any(method, url, server, body)
        if not isinstance(found, dict):
            raise LabelStudioError(f"{shown(url)}: expected a JSON object in the answer")
        return found

    def call_any(self, method: str, url: str, server: Server, body: Any = None) -> Any:
        """As `call`, whatever JSON it is. Where Label Studio refuses what was sent, the error says what it said."""
        self._check_allowed(url)
        deadline = self._clock() + self._settings.image_total_timeout
        with self._request(method, url, server, deadline, body) as response:
            if body is not None and response.status_code in (400, 403):
                said = _refusal(self._read_body(response, url, deadline, self._body_limit))
                raise LabelStudioError(f"{shown(url)}: answered {response.status_code}: {said}")
            _raise_for_status(response, url, server)
            return _json(self._read_body(response, url, deadline, self._body_limit), url)

    def _redirect_target(self, response: requests.Response, url: str) -> str:
        try:
            return urljoin(url, self._session.get_redirect_target(response) or "")
        except ValueError:  # not UTF-8, or brackets that are no IPv6 address
            raise OriginRefused(f"{shown(url)}: redirects to an address that cannot be read") from None

    def _check_allowed(self, url: str) -> Origin:
        origin = origin_of(url)
        if self._allowed_origins is not None and origin not in self._allowed_origins:
            raise OriginRefused(
                f"{shown(url)}: {origin} is not an allowed origin; if photos may come from there,"
                " add it to the setting allowed_origins (SEMSAM_ALLOWED_ORIGINS)"
            )
        return origin

    @contextmanager
    def _request(
        self, method: str, url: str, server: Server | None, deadline: float, body: Any = None
    ) -> Iterator[requests.Response]:
        """The answer to one request; a refused access token is renewed once."""
        header = self._authorization(server, deadline)
        response = self._send(method, url, header, deadline, body)
        if response.status_code == 401 and server is not None and server.is_personal:
            response.close()
            with server.lock:
                if header == f"Bearer {server.access}":
                    server.access = None
            response = self._send(method, url, self._authorization(server, deadline), deadline, body)
        with response:
            yield response

    def _authorization(self, server: Server | None, deadline: float) -> str | None:
        """The Authorization header for `server`; a personal access token is exchanged for an access token."""
        if server is None or server.token is None:
            return None
        if not server.is_personal:
            return f"{'Bearer' if server.is_jwt else 'Token'} {server.token}"
        with server.lock:  # held while asking, so that threads do not ask all at once
            if server.access is None or self._clock() >= server.access_until:
                self._renew_access_token(server, deadline)
            return f"Bearer {server.access}"

    def _renew_access_token(self, server: Server, deadline: float) -> None:
        url = server.address("/api/token/refresh/")
        with self._send("POST", url, None, deadline, {"refresh": server.token}) as response:
            if response.status_code in (400, 401, 403):
                raise TokenRefused(
                    f"Label Studio {server.base_url} does not accept the personal access token: revoked or expired?"
                    " Make a new one under Account & Settings and set it as SEMSAM_LABEL_STUDIO_API_KEY"
                )
            _raise_for_status(response, url, server)
            access = _json_object(self._read_body(response, url, deadline, _TOKEN_LIMIT), url).get("access")
        if not isinstance(access, str) or not re.fullmatch(r"[!-~]+", access):
            raise LabelStudioError(f"{shown(url)}: expected an access token in the answer")
        claims = jwt_claims(access)
        try:
            # a difference, not a time of day: the two clocks need not agree
            seconds = float(claims["exp"]) - float(claims["iat"])
        except (KeyError, TypeError, ValueError):
            seconds = ACCESS_TOKEN_SECONDS
        server.access = access
        server.access_until = self._clock() + seconds - ACCESS_TOKEN_MARGIN

    def _send(self, method: str, url: str, header: str | None, deadline: float, body: Any = None) -> requests.Response:
        left = deadline - self._clock()
        if left <= 0:
            raise self._timeout(url, "image_total_timeout")
        try:
            return self._session.request(
                method,
                url,
                json=body,
                auth=_Authorization(header),
                timeout=(min(left, self._settings.image_connect_timeout), min(left, self._settings.image_read_timeout)),
                allow_redirects=False,
                stream=True,
                headers={"Accept-Encoding": "identity"},
            )
        except requests.ConnectTimeout:
            raise self._timeout(url, "image_connect_timeout") from None
        except requests.Timeout:
            raise self._timeout(url, "image_read_timeout") from None
        except requests.RequestException as error:  # its text holds the whole address, so it is not repeated
            raise Unreachable(
                f"{shown(url)}: cannot be reached ({type(error).__name__}); is it running, and is the address right?"
                " That of Label Studio is the setting label_studio_url (SEMSAM_LABEL_STUDIO_URL)"
            ) from None

    def _read_body(self, response: requests.Response, url: str, deadline: float, limit: _Limit) -> bytes:
        """The body, counted as it comes. The deadline is looked at between pieces: at most one read too late."""
        data = bytearray()
        try:
            # read1 gives what has arrived; read would wait for a whole piece, however slowly it drips
            while piece := response.raw.read1(_CHUNK, decode_content=True):
                data += piece
                if len(data) > limit.max_bytes:
                    raise limit.error(f"{shown(url)}: more than {limit.max_bytes} bytes, {limit.explanation}")
                if self._clock() > deadline:
                    raise self._timeout(url, "image_total_timeout")
        except urllib3.exceptions.ReadTimeoutError:
            raise self._timeout(url, "image_read_timeout") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LabelStudioError(f"{shown(url)}: the answer broke off ({type(error).__name__})") from None
        return bytes(data)

    def _timeout(self, url: str, setting: str) -> FetchTimeout:
        seconds = getattr(self._settings, setting)
        return FetchTimeout(f"{shown(url)}: no answer in {seconds:g} s, {_setting(setting)}")


class _Authorization(AuthBase):
    """Our header or none. Being given at all keeps `requests` from looking into ~/.netrc."""

    def __init__(self, header: str | None) -> None:
        self.header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.header:
            request.headers["Authorization"] = self.header
        return request


def _raise_for_status(response: requests.Response, url: str, server: Server | None) -> None:
    status = response.status_code
    if status in (200, 201):
        return
    if status == 404:
        raise NotFound(f"{shown(url)}: not found (404)")
    if status in (401, 403) and server is not None:
        if server.token is None:
            why = "no token is configured"
        elif server.is_jwt:
            why = "the token is expired, or its user may not see this"
        else:
            why = "wrong, or a legacy token, which organisations allow or not; a personal access token works"
        raise TokenRefused(
            f"{shown(url)}: Label Studio answered {status}: {why}; the setting is label_studio_api_key"
            " (SEMSAM_LABEL_STUDIO_API_KEY), or label_studio_keys for further servers"
        )
    if response.is_redirect:
        raise LabelStudioError(f"{shown(url)}: redirects elsewhere; set label_studio_url to the address it ends at")
    raise LabelStudioError(f"{shown(url)}: answered {status}, expected 200")


def _setting(name: str) -> str:
    return f"the setting {name} (SEMSAM_{name.upper()})"


def _refusal(data: bytes) -> str:
    """Why Label Studio refused, in one line without markup."""
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(data)
        data = json.dumps(found.get("validation_errors") or found.get("detail") or found).encode()
    return re.sub(r"<[^>]*>", "", " ".join(data.decode("utf-8", "replace").split()))[:500]


def _json(data: bytes, url: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise LabelStudioError(f"{shown(url)}: expected JSON in the answer") from None


def _json_object(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LabelStudioError(f"{shown(url)}: expected a JSON object in the answer")
    return found
