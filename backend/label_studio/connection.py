"""HTTP to the allowed origins and nowhere else: tokens, redirects, limits of time and size.

An origin is scheme, host and port, all equal. Each redirect is checked anew; a token goes to its own server and is
dropped at the first change of origin. Messages show addresses without their query, which may be a key to a store.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import jwt
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
    SettingsError,
    TokenRefused,
)
from backend.settings import Settings

MAX_REDIRECTS = 3
ACCESS_TOKEN_SECONDS = 300  # what Label Studio gives, for when the access token does not say
ACCESS_TOKEN_MARGIN = 30  # seconds; a token that could expire on the way is not used
_CHUNK = 1 << 16


class Origin(NamedTuple):
    """Where an address leads."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def origin_of(url: str) -> Origin:
    """Origin of an absolute http(s) URL. Raises OriginRefused for anything that two parsers could read differently."""
    if "\\" in url or any(char < " " or char == "\x7f" for char in url):
        raise OriginRefused(f"address {shown(url)}: expected no backslashes or control characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        sent_to = urllib3.util.parse_url(url).host or ""
    except ValueError:  # urllib3's errors are ValueErrors too
        raise OriginRefused(f"address {shown(url)}: its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise OriginRefused(f"address {shown(url)}: expected http://host or https://host, with an optional :port")
    if "@" in parts.netloc:
        raise OriginRefused(f"address {shown(url)}: expected no user name or password in it")
    if sent_to.strip("[]").lower() != host:
        raise OriginRefused(f"address {shown(url)}: expected a plain host name, in ASCII form")
    return Origin(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme])


def shown(url: str) -> str:
    """`url` as it may appear in a log or message: without query, fragment and user, printable, and not long."""
    if url[:5].lower() == "data:":
        return "data:..."
    text = re.split(r"[?#]", url, maxsplit=1)[0]
    text = re.sub(r"^([^/]*//)[^/]*@", r"\1", text)
    return "".join(char if char.isprintable() else "?" for char in text[:200])


@dataclass(eq=False)
class Server:
    """One Label Studio and the token for it: a personal access token (a JWT), an access token or a legacy one.

    Raises SettingsError when the token cannot be one, OriginRefused when the address cannot be used.
    """

    base_url: str
    token: str | None = field(repr=False)
    access: str | None = field(default=None, repr=False, init=False)
    access_until: float = field(default=0.0, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, init=False)

    def __post_init__(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        self.origin = origin_of(self.base_url)
        self.token = (self.token or "").strip() or None
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise SettingsError(f"token for {self.base_url}: expected ASCII text without spaces; is it a whole token?")
        claims = _claims(self.token)
        self.is_jwt = bool(claims)
        #: A personal access token is a JWT *refresh* token: good for fetching access tokens and nothing else.
        self.is_personal = self.is_jwt and claims.get("token_type") != "access"

    def address(self, path: str) -> str:
        """Absolute URL of a path on this server. A prefix that the server lives under is not doubled."""
        path = "/" + path.removeprefix("/")
        prefix = urlsplit(self.base_url).path
        return self.base_url + (path.removeprefix(prefix) if prefix and path.startswith(prefix + "/") else path)


class Connection:
    """Requests to `allowed` origins. Safe to use from several threads."""

    def __init__(
        self, settings: Settings, allowed: Collection[Origin] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """allowed: None is everywhere, for addresses that whoever runs the command has written down."""
        self._settings = settings
        self._allowed_origins = None if allowed is None else frozenset(allowed)
        self._clock = clock
        self._session = requests.Session()
        # A cookie does not know its port: one server's session would be sent to another on the same host.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=settings.threads))
        # Its DEBUG lines hold whole addresses, queries and all.
        logging.getLogger("urllib3").setLevel(logging.INFO)

    def download(self, url: str, server: Server | None) -> bytes:
        """The picture file at `url`: at most `max_image_bytes` and three redirects, none out of the allowed origins.

        `server` is the one whose token the request may carry, if `url` is on it.
        Raises OriginRefused, TokenRefused, NotFound, FetchTimeout, ImageTooLarge, LabelStudioError.
        """
        deadline = self._clock() + self._settings.image_total_timeout
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            origin = self._allowed(url)
            if server is not None and server.origin != origin:
                server = None  # for good: a redirect back does not earn the token again
            with self._answer("GET", url, server, deadline) as response:
                if not response.is_redirect:
                    self._check(response, url, server)
                    if response.headers.get("Content-Type", "").startswith("text/html"):
                        raise LabelStudioError(
                            f"{shown(url)}: answered a web page, not a picture; a login page, perhaps"
                        )
                    limit = self._settings.max_image_bytes
                    return self._read(response, url, limit, deadline, "max_image_bytes")
                url = self._target(response, url)
        raise OriginRefused(f"{shown(first)}: more than {MAX_REDIRECTS} redirects")

    def call(self, method: str, url: str, server: Server, body: Any = None) -> dict[str, Any]:
        """The JSON object that an API call answers; no redirects. Raises as `download` does."""
        self._allowed(url)
        deadline = self._clock() + self._settings.image_total_timeout
        with self._answer(method, url, server, deadline, body) as response:
            self._check(response, url, server)
            return _json(self._read(response, url, self._settings.max_body_bytes, deadline, "max_body_bytes"), url)

    def _target(self, response: requests.Response, url: str) -> str:
        try:
            return urljoin(url, self._session.get_redirect_target(response) or "")
        except ValueError:  # not UTF-8, or brackets that are no IPv6 address
            raise OriginRefused(f"{shown(url)}: redirects to an address that cannot be read") from None

    def _allowed(self, url: str) -> Origin:
        origin = origin_of(url)
        if self._allowed_origins is not None and origin not in self._allowed_origins:
            raise OriginRefused(
                f"{shown(url)}: {origin} is not an allowed origin; if pictures may come from there,"
                " add it to the setting allowed_origins (SEMSAM_ALLOWED_ORIGINS)"
            )
        return origin

    @contextmanager
    def _answer(
        self, method: str, url: str, server: Server | None, deadline: float, body: Any = None
    ) -> Iterator[requests.Response]:
        """The answer to one request; a refused access token is renewed once."""
        header = self._header(server, deadline)
        response = self._send(method, url, header, deadline, body)
        if response.status_code == 401 and server is not None and server.is_personal:
            response.close()
            with server.lock:
                if header == f"Bearer {server.access}":
                    server.access = None
            response = self._send(method, url, self._header(server, deadline), deadline, body)
        with response:
            yield response

    def _header(self, server: Server | None, deadline: float) -> str | None:
        """The Authorization header for `server`."""
        if server is None or server.token is None:
            return None
        if not server.is_personal:
            return f"{'Bearer' if server.is_jwt else 'Token'} {server.token}"
        with server.lock:  # held while asking, so that threads do not ask all at once
            if server.access is None or self._clock() >= server.access_until:
                self._refresh(server, deadline)
            return f"Bearer {server.access}"

    def _refresh(self, server: Server, deadline: float) -> None:
        url = server.address("/api/token/refresh/")
        with self._send("POST", url, None, deadline, {"refresh": server.token}) as response:
            if response.status_code in (400, 401, 403):
                raise TokenRefused(
                    f"Label Studio {server.base_url} does not accept the personal access token: revoked or expired?"
                    " Make a new one under Account & Settings and set it as SEMSAM_LABEL_STUDIO_API_KEY"
                )
            self._check(response, url, server)
            access = _json(self._read(response, url, _CHUNK, deadline, None), url).get("access")
        if not isinstance(access, str) or not re.fullmatch(r"[!-~]+", access):
            raise LabelStudioError(f"{shown(url)}: expected an access token in the answer")
        claims = _claims(access)
        try:
            # A difference, not a time of day: the two clocks need not agree.
            seconds = float(claims["exp"]) - float(claims["iat"])
        except (KeyError, TypeError, ValueError):
            seconds = ACCESS_TOKEN_SECONDS
        server.access = access
        server.access_until = self._clock() + seconds - ACCESS_TOKEN_MARGIN

    def _send(self, method: str, url: str, header: str | None, deadline: float, body: Any = None) -> requests.Response:
        left = deadline - self._clock()
        if left <= 0:
            raise self._late(url, "image_total_timeout")
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
            raise self._late(url, "image_connect_timeout") from None
        except requests.Timeout:
            raise self._late(url, "image_read_timeout") from None
        except requests.RequestException as error:  # its text holds the whole address, so it is not repeated
            raise LabelStudioError(
                f"{shown(url)}: cannot be reached ({type(error).__name__}); is it running, and is the address right?"
                " That of Label Studio is the setting label_studio_url (SEMSAM_LABEL_STUDIO_URL)"
            ) from None

    def _check(self, response: requests.Response, url: str, server: Server | None) -> None:
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

    def _read(self, response: requests.Response, url: str, limit: int, deadline: float, setting: str | None) -> bytes:
        """The body, counted as it comes. The deadline is looked at between pieces: at most one read too late."""
        data = bytearray()
        try:
            # read1 gives what has arrived; read would wait for a whole piece, however slowly it drips
            while piece := response.raw.read1(_CHUNK, decode_content=True):
                data += piece
                if len(data) > limit:
                    if setting is None:
                        raise LabelStudioError(f"{shown(url)}: more than {limit} bytes, expected a short answer")
                    kind = ImageTooLarge if setting == "max_image_bytes" else LabelStudioError
                    raise kind(
                        f"{shown(url)}: more than {limit} bytes, the setting {setting} (SEMSAM_{setting.upper()})"
                    )
                if self._clock() > deadline:
                    raise self._late(url, "image_total_timeout")
        except urllib3.exceptions.ReadTimeoutError:
            raise self._late(url, "image_read_timeout") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LabelStudioError(f"{shown(url)}: the answer broke off ({type(error).__name__})") from None
        return bytes(data)

    def _late(self, url: str, setting: str) -> FetchTimeout:
        seconds = getattr(self._settings, setting)
        return FetchTimeout(
            f"{shown(url)}: no answer in {seconds:g} s, the setting {setting} (SEMSAM_{setting.upper()})"
        )


class _Authorization(AuthBase):
    """Our header or none. Being given at all keeps `requests` from looking into ~/.netrc."""

    def __init__(self, header: str | None) -> None:
        self.header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.header:
            request.headers["Authorization"] = self.header
        return request


def _claims(token: str | None) -> dict[str, Any]:
    """What a JWT says, unchecked; empty for anything else."""
    try:
        return jwt.decode(token or "", options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return {}


def _json(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LabelStudioError(f"{shown(url)}: expected a JSON object in the answer")
    return found
