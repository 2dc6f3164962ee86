"""This backend called as Label Studio calls it: over HTTP, with the credentials of its connection."""

from __future__ import annotations

from typing import Any

import requests

from backend.errors import BackendError
from backend.settings import Settings, plain

TIMEOUT_S = 100.0  #: Label Studio's, for a click


class BackendCalls:
    """A backend at `address`."""

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False
        if settings.basic_auth_user is not None:
            self._session.auth = (settings.basic_auth_user, plain(settings.basic_auth_pass) or "")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path. Raises BackendError."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """The JSON object that is answered. Raises BackendError."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        try:
            response = self._session.request(method, self.address + path, json=body, timeout=TIMEOUT_S)
            found = response.json()
        except requests.RequestException as error:
            raise BackendError(
                f"{self.address}{path}: no usable answer ({type(error).__name__}); is the backend running there?"
                " `semsam serve` starts it"
            ) from None
        if response.status_code != 200 or not isinstance(found, dict):
            raise BackendError(f"{self.address}{path}: answered {response.status_code}, expected 200")
        return found
