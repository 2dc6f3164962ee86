"""Addresses, Label Studio servers with their tokens, and which server a project lives on."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt
import urllib3

from backend.errors import LabelStudioError, OriginRefused, SettingsError
from semsam_model.errors import SemsamError

log = logging.getLogger(__name__)

_MAX_REMEMBERED = 4096  # projects, and names a server gives itself; /setup may be called by anyone who may call us
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Origin(NamedTuple):
    """Scheme, host and port of an address."""

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


def is_same_server(a: str, b: str) -> bool:
    """Whether two origins are one server: the names of this machine for itself are one."""
    first, second = ((*urlsplit(each)[:1], urlsplit(each).hostname, urlsplit(each).port) for each in (a, b))
    if first[1] in _LOOPBACK and second[1] in _LOOPBACK:
        return (first[0], first[2]) == (second[0], second[2])
    return first == second


def shown(url: str) -> str:
    """`url` as it may appear in a log or message: without query, fragment and user, printable, and not long."""
    if url[:5].lower() == "data:":
        return "data:..."
    text = re.split(r"[?#]", url, maxsplit=1)[0]
    text = re.sub(r"^([^/]*//)[^/]*@", r"\1", text)
    return "".join(char if char.isprintable() else "?" for char in text[:200])


def jwt_claims(token: str | None) -> dict[str, Any]:
    """What a JWT says, unchecked; empty for anything else."""
    try:
        return jwt.decode(token or "", options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return {}


def token_kind(token: str | None) -> str | None:
    """What a token is, in words; None for none."""
    if not (token or "").strip():
        return None
    kind = jwt_claims(token).get("token_type")
    if kind is None:
        return "legacy token, which works where the organisation allows these"
    return "access token, which expires in minutes" if kind == "access" else "personal access token"


@dataclass(eq=False)
class Server:
    """One Label Studio and the token for it: a personal access token (a JWT), an access token or a legacy one.

    Raises SettingsError when the token cannot be one, OriginRefused when the address cannot be used.
    """

    base_url: str
    token: str | None = field(repr=False)
    access: str | None = field(default=None, repr=False, init=False)  #: access token, of a personal one
    access_until: float = field(default=0.0, init=False)  #: on the clock of the `Connection`
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, init=False)

    def __post_init__(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        self.origin = origin_of(self.base_url)
        self.token = (self.token or "").strip() or None
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise SettingsError(f"token for {self.base_url}: expected ASCII text without spaces; is it a whole token?")
        claims = jwt_claims(self.token)
        self.is_jwt = bool(claims)
        #: A personal access token is a JWT *refresh* token: good for fetching access tokens and nothing else.
        self.is_personal = self.is_jwt and claims.get("token_type") != "access"

    def address(self, path: str) -> str:
        """Absolute URL of a path on this server. A prefix that the server lives under is not doubled."""
        path = "/" + path.removeprefix("/")
        prefix = urlsplit(self.base_url).path
        return self.base_url + (path.removeprefix(prefix) if prefix and path.startswith(prefix + "/") else path)


class Servers:
    """The Label Studio servers of this backend and the projects that are known to live on them. Thread-safe."""

    def __init__(self, tokens: Mapping[str, str | None], other_origins: Iterable[str] = ()) -> None:
        """tokens: address of a server -> its token. other_origins: where photos may be fetched from without a token."""
        servers = [Server(base_url, token) for base_url, token in tokens.items()]
        self._servers: dict[Origin, Server] = {server.origin: server for server in servers}
        self._other_origins = {origin_of(url) for url in other_origins}
        self._projects: OrderedDict[str, Server | str] = OrderedDict()  #: project -> its server, or why there is none
        self._aliases: dict[Origin, Server] = {}  #: name that the only server gives itself -> that server
        self._lock = threading.Lock()

    @property
    def origins(self) -> frozenset[Origin]:
        """Every origin that may be asked for something."""
        return frozenset(self._servers.keys() | self._other_origins)

    def connect(self, project: str, hostname: str, access_token: str | None = None) -> None:
        """Remember the server of a project by the address that Label Studio gives for itself. Never raises."""
        found: Server | str
        try:
            found = self._named(hostname, access_token)
        except SemsamError as error:
            found = str(error)
            log.warning("project %s: %s", project, error)
        with self._lock:
            self._projects[project] = found
            self._projects.move_to_end(project)
            while len(self._projects) > _MAX_REMEMBERED:
                self._projects.popitem(last=False)

    def _named(self, hostname: str, access_token: str | None) -> Server:
        """The server that calls itself `hostname`, with the token of its /setup where none is configured."""
        only = next(iter(self._servers.values())) if len(self._servers) == 1 else None
        try:
            origin = origin_of(hostname)
        except OriginRefused:
            if only is None:
                raise
            return only
        known = self._servers.get(origin)
        if known is not None:
            return Server(known.base_url, access_token) if known.token is None and access_token else known
        if origin in self._other_origins:
            return Server(hostname, access_token)
        if only is not None:
            # in containers, Label Studio's name for itself is rarely the one it is reached by
            with self._lock:
                if origin not in self._aliases and len(self._aliases) < _MAX_REMEMBERED:
                    self._aliases[origin] = only
                    log.info("Label Studio calls itself %s; it is reached at %s", shown(hostname), only.base_url)
            return only
        raise OriginRefused(
            f"Label Studio {shown(hostname)}: expected one of this backend's servers, {self._addresses()};"
            " add it and its token to the setting label_studio_keys (SEMSAM_LABEL_STUDIO_KEYS)"
        )

    def add_project(self, origin: str, project: int) -> str:
        """Remember that `project` lives on the server at `origin`; the name under which `of` finds that server.

        Raises OriginRefused when none of this backend's servers is there.
        """
        name = f"{project} on {origin}"
        with self._lock:
            servers = [*self._servers.values(), *(each for each in self._projects.values() if isinstance(each, Server))]
            there = [each for each in servers if str(each.origin) == origin]
            there = there or [each for each in servers if is_same_server(str(each.origin), origin)]
            if there:
                # one that /setup brought a token for goes before the same server without one
                self._projects[name] = min(there, key=lambda each: each.token is None)
                return name
        raise OriginRefused(
            f"project {project}: its Label Studio {origin} is none of this backend's servers, {self._addresses()};"
            " set label_studio_url (LABEL_STUDIO_URL) to it, or add it to label_studio_keys (SEMSAM_LABEL_STUDIO_KEYS)"
        )

    def of(self, project: str | None) -> Server:
        """The server that a project lives on. Raises OriginRefused, LabelStudioError when nobody knows."""
        with self._lock:
            found = self._projects.get(project) if project is not None else None
        if isinstance(found, Server):
            return found
        if found is not None:
            raise OriginRefused(found)
        if len(self._servers) == 1:
            return next(iter(self._servers.values()))
        raise LabelStudioError(
            f"project {project}: this backend serves {self._addresses()} and learns from /setup where a project lives;"
            " open the project's Settings > Model once"
        )

    def reach(self, url: str, project: str | None) -> tuple[str, Server | None]:
        """The address under which `url` is reached, and the server whose token it may carry, if any."""
        origin = origin_of(url)
        with self._lock:
            own = self._projects.get(project) if project is not None else None
            alias = self._aliases.get(origin)
        if alias is not None:
            parts = urlsplit(url)
            url = alias.address(parts.path + (f"?{parts.query}" if parts.query else ""))
            origin = alias.origin
        # the project's own entry may hold a token from /setup, where none is configured
        return url, own if isinstance(own, Server) and own.origin == origin else self._servers.get(origin)

    def _addresses(self) -> str:
        return ", ".join(sorted(server.base_url for server in self._servers.values()))
