"""Made web servers on 127.0.0.1, and the part of Label Studio that gives out access tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt

from backend.label_studio.client import LabelStudio
from backend.settings import Settings

LEGACY = "canary0123456789abcdef0123456789abcdef01"
PHOTO = bytes(range(256)) * 40


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


def reply(handler: BaseHTTPRequestHandler, body: bytes = PHOTO, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def photo(handler: BaseHTTPRequestHandler) -> None:
    reply(handler)


def guarded(*allowed: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: (
        reply(handler) if handler.headers.get("Authorization") in allowed else reply(handler, b"", 401)
    )


def redirect(target: str, status: int = 302) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, b"", status, Location=target)


class Tokens:
    """The part of Label Studio that changes a personal access token into access tokens, and a photo behind them."""

    def __init__(self, studio: Web, lifetime: int = 300) -> None:
        self.studio = studio
        self.lifetime = lifetime
        self.personal = self.make_token("refresh", 10**6)
        self.issued: list[str] = []
        self.valid: set[str] = set()
        studio.routes["/api/token/refresh/"] = self._refresh
        studio.routes["/photo"] = self._photo

    def make_token(self, kind: str, seconds: int) -> str:
        # The server's clock is years off, as clocks in containers may be.
        claims = {"token_type": kind, "iat": 1_000_000, "exp": 1_000_000 + seconds, "jti": str(time.monotonic_ns())}
        return jwt.encode(claims, "k" * 32, algorithm="HS256")

    def _refresh(self, handler: BaseHTTPRequestHandler) -> None:
        if json.loads(self.studio.requests[-1].body) != {"refresh": self.personal}:
            return reply(handler, b"{}", 401)
        self.issued.append(self.make_token("access", self.lifetime))
        self.valid = {self.issued[-1]}
        return reply(handler, json.dumps({"access": self.issued[-1]}).encode())

    def _photo(self, handler: BaseHTTPRequestHandler) -> None:
        allowed = handler.headers.get("Authorization", "").removeprefix("Bearer ") in self.valid
        reply(handler) if allowed else reply(handler, b"", 401)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def client(studio: Web, **changes: Any) -> LabelStudio:
    changes.setdefault("label_studio_api_key", LEGACY)
    return LabelStudio(Settings(label_studio_url=studio.url, **changes))
