"""The HTTP side of every made Label Studio: a token is asked for, and something held in memory answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "0123456789abcdef0123456789abcdef01234567"
Answer = tuple[int, bytes]  #: status and body


@contextlib.contextmanager
def answering(
    get: Callable[[str], Answer], post: Callable[[bytes], Answer] | None = None, *, token: str | None = TOKEN
) -> Iterator[str]:
    """Address of a server that answers GET by the path with its query, and POST, where it can be, by the body.

    Without the token both are asked all the same, but it answers 401; None: everybody may ask.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(get(self.path))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer((501, b"") if post is None else post(content))

        def _answer(self, answer: Answer) -> None:
            status, body = (
                answer if token is None or self.headers.get("Authorization") == f"Token {token}" else (401, b"")
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()
