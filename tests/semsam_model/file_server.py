"""A real HTTP server on 127.0.0.1 that serves one body and can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    body: bytes
    etag: str | None = '"one"'
    ranges: bool = True  #: False: Range is ignored
    honest: bool = True  #: False: If-Range is ignored, a range of whatever is there now is served
    shift: int = 0  #: ranges begin this many bytes later than asked for, and say so
    cut_after: int | None = None  #: bytes of each body after which the connection breaks
    length: bool = True  #: False: no Content-Length, the end of the connection is the end of the body
    status: int = 200
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)  #: headers of the requests so far

    @contextmanager
    def running(self) -> Iterator[FileServer]:
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/files/weights.pth"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers))
        start, status = 0, self.status
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = not self.honest or request.headers.get("If-Range") in (None, self.etag)
        if wanted and self.ranges and same and status == 200:
            start, status = int(wanted[1]) + self.shift, 206
        if start and start >= len(self.body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        part = self.body[start:]
        request.send_response(status)
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.length:
            request.send_header("Content-Length", str(len(part)))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.end_headers()
        with suppress(ConnectionError):  # the client may have seen enough
            request.wfile.write(part[: self.cut_after])
        request.close_connection = True
