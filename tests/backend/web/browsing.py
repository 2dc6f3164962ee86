"""The application on a port of this machine, and a browser to look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page
from werkzeug.serving import make_server

from backend.metrics import Metrics
from backend.service.status import GateReport, Status, StatusReader
from backend.settings import Settings
from backend.store.database import Store
from backend.web.app import create_app
from tests.chromium import launched

READY = {"status": "UP", "model_version": "mobile-1", "model_state": "ready"}


class StoreOnly:
    """A service that has a store and no model."""

    def __init__(self, store: Store, data_dir: Path = Path("nowhere")) -> None:
        self._reader = StatusReader(store, data_dir, keep_s=0)

    def health(self) -> dict[str, Any]:
        return READY

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def predict_request(self, body: Any, request_id: str) -> list[dict[str, Any]]:
        return []

    def event(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, Any]:
        made = {"created_at": "2026-03-01T21:04:11+00:00", "parent": "mobile-3f0a9d2c6e17", "pruned_at": None}
        old = {"number": 0, "version": "mobile-3f0a9d2c6e17", "parent": None, "created_at": None, "pruned_at": None}
        new = {"number": 1, "version": "mobile-81b2c44d90fe"} | made
        return {"versions": [old["version"], new["version"]], "live": new["version"], "details": [old, new]}

    def gate_report(self, job: int) -> GateReport:
        return self._reader.gate_report(job)

    def status(self) -> Status:
        return self._reader.status()


@contextmanager
def served(service: Any, **settings: Any) -> Iterator[str]:
    """The application itself on a port of this machine."""
    server = make_server("127.0.0.1", 0, create_app(Settings(**settings), service, Metrics()), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def browser_page(**context: Any) -> Iterator[Page]:
    with launched() as browser:
        yield browser.new_page(viewport={"width": 1240, "height": 900}, **context)
