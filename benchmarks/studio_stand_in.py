"""A server that lists tasks as Label Studio does, few of which have changed: for benchmarks of large stores."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.made_store import LABEL_CONFIG, SEEN, rows_as_posted

LATER = "2026-11-01T00:00:00Z"  #: when the changed ones changed


@contextlib.contextmanager
def listing(port: int, annotations: int, projects: int, changed: Collection[int] = ()) -> Iterator[str]:
    """Its address, with the tasks of a store that `made_store.fill` made.

    changed: tasks whose annotation was changed since; looked at with each request.
    """

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece: the second of two would wait 40 ms for the first to be acknowledged

        def do_GET(self) -> None:
            found = answer(self.path)
            body = json.dumps(found).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    def answer(path: str) -> dict[str, Any]:
        if found := re.fullmatch(r"/api/projects/(\d+)/", path):
            number = int(found[1])
            return {"id": number, "title": f"Project {number}", "label_config": LABEL_CONFIG}
        query = parse_qs(urlsplit(path).query)
        if "project" not in query:
            return {}
        if "query" in query:  # some, with their annotations; or which tasks come next
            wanted = json.loads(query["query"][0]).get("selectedItems", {}).get("included", [])
            return {"tasks": [whole(number) for number in wanted], "total": len(wanted)}
        mine = range(int(query["project"][0]) - 1, annotations, projects)
        size = int(query["page_size"][0])
        first = (int(query["page"][0]) - 1) * size
        tasks = [{"id": n, "updated_at": LATER if n in changed else SEEN} for n in mine[first : first + size]]
        return {"tasks": tasks, "total": len(mine)}

    def whole(number: int) -> dict[str, Any]:
        own = {"id": number, "updated_at": LATER, "created_at": SEEN, "result": rows_as_posted()}
        return {"id": number, "data": {"image": f"/data/local-files/?d={number}.jpg"}, "annotations": [own]}

    server = ThreadingHTTPServer(("127.0.0.1", port), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
